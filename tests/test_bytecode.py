"""Byte code beside a zipapp: it is what runs while it is whole and of that zipapp, by that Python; else sources do."""

from __future__ import annotations

import errno
import marshal
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import CodeType

import pytest

from edgeagent import bytecode, bytecodejob, slots
from flash import bytecode as flashed
from tools.package import contents

ROOT = Path(bytecode.__file__).parent
# An agent that says where it runs from, by the real entry and the real modules of what finds it.
CLI = """
from edgeagent import zipped

def main():
    print(__file__, zipped.archive(), zipped.library() is not None)
    assert False, "is left out of byte code, which is made as by -OO"
    return 0
"""


def zipapp(path: Path, cli: str = CLI) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__main__.py", contents.MAIN)
        archive.writestr("edgeagent/cli.py", cli)
        archive.writestr("edgeagent/engine/fast/libedgefast.so", b"a library")
        for name in ("__init__", "bytecode", "bytecodejob", "zipped"):
            archive.write(ROOT / f"{name}.py", f"edgeagent/{name}.py")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return zipapp(tmp_path / "edgeagent-0.1.0-any.pyz")


@pytest.fixture
def kept(source: Path) -> Path:
    assert bytecodejob.main([str(source), "0"]) == 0
    return Path(bytecode.kept_at(str(source)))


def run(source: Path, *options: str) -> tuple[int, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    words = [sys.executable, *options, "-P", str(source)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, env=environ, cwd="/")
    return done.returncode, done.stdout


def test_it_runs_and_what_is_asked_of_the_archive_is_the_zipapps(source: Path, kept: Path) -> None:
    assert kept.name == f"edgeagent-0.1.0-any.{sys.implementation.cache_tag}.pyz"
    assert run(source) == (0, f"{kept}/edgeagent/cli.pyc {source} True\n")
    kept.unlink()
    assert run(source) == (1, f"{source}/edgeagent/cli.py {source} True\n")
    assert run(source, "-OO") == (0, f"{source}/edgeagent/cli.py {source} True\n")


def test_of_another_zipapp_it_is_not_used(source: Path, kept: Path) -> None:
    assert bytecode.path_of(str(source)) == str(kept)
    zipapp(source, "def main():\n    print('new')\n    return 3\n")
    assert run(source) == (3, "new\n")


def test_every_byte_that_is_another_or_missing_is_noticed(source: Path, kept: Path) -> None:
    data = kept.read_bytes()
    for at in (0, 40, len(data) // 2, len(data) - bytecode.STAMP_BYTES - 1, len(data) - 1):
        kept.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        assert bytecode.path_of(str(source)) == str(source), at
        kept.write_bytes(data[:at])
        assert bytecode.path_of(str(source)) == str(source), at
    kept.write_bytes(data)
    assert bytecode.path_of(str(source)) == str(kept)
    kept.unlink()
    kept.mkdir()
    assert bytecode.path_of(str(source)) == str(source)


def test_another_pythons_is_not_used(source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "MAGIC_NUMBER", b"\x01\x02\x0d\x0a")
    assert bytecode.path_of(str(source)) == str(source)


def test_what_is_no_zipapp_by_its_name_has_none(tmp_path: Path) -> None:
    path = zipapp(tmp_path / "edgeagent")
    assert bytecode.path_of(str(path)) == str(path) and bytecode.source_of(str(path)) == str(path)


@pytest.mark.parametrize("broken", [b"", b"no archive"])
def test_where_it_cannot_be_made_nothing_is_left(
    source: Path, broken: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_bytes(broken)
    assert bytecodejob.main([str(source), "0"]) == 1
    assert "not made: " in capsys.readouterr().err and [path.name for path in source.parent.iterdir()] == [source.name]
    zipapp(source, "def main(:\n")
    assert bytecodejob.main([str(source), "0"]) == 1
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_on_little_flash_none_is_made(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bytecodejob.main([str(source), str(1 << 60)]) == 0
    assert "MiB are free" in capsys.readouterr().out and [path.name for path in source.parent.iterdir()] == [
        source.name
    ]


def test_a_committed_slot_compiles_itself(source: Path) -> None:
    """By what updates.py starts: isolated, without site, by the archive's own job."""
    words = [sys.executable, "-I", "-S", "-X", "no_debug_ranges", "-c", slots.COMPILE, str(source)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, env={})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout or bytecode.path_of(str(source)) == bytecode.kept_at(str(source))


def test_edgeflash_makes_what_the_device_will_use(source: Path) -> None:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    name, data = flashed.made(source.read_bytes(), python)
    assert name == Path(bytecode.kept_at("edgeagent.pyz")).name
    Path(bytecode.kept_at(str(source))).write_bytes(data)
    assert bytecode.path_of(str(source)) == bytecode.kept_at(str(source))
    assert flashed.made(source.read_bytes(), "python3.2") == ("", b"")
    assert flashed.made(b"no archive", python) == ("", b"")


def test_what_somebody_else_has_put_beside_a_zipapp_is_not_run(
    source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.lstat

    def of(owner: int) -> None:
        def lstat(path: str) -> os.stat_result:
            fields = list(real(path))
            fields[4] = owner
            return os.stat_result(fields)

        monkeypatch.setattr(os, "lstat", lstat)

    of(os.stat(source).st_uid + 1)
    assert bytecode.path_of(str(source)) == str(source)
    of(0)
    assert bytecode.path_of(str(source)) == str(kept)


def test_a_zipapp_that_is_replaced_while_it_is_compiled_does_not_get_the_old_ones_byte_code(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dumps(code: CodeType) -> bytes:
        if source.read_bytes() != new.read_bytes():
            os.replace(shutil.copyfile(new, source.with_name("coming")), source)
        return marshal.dumps(code)

    new = zipapp(source.with_name("new"), "def main():\n    print('new')\n    return 3\n")
    monkeypatch.setattr(bytecodejob, "dumps", dumps)
    assert bytecodejob.main([str(source), "0"]) == 0
    assert run(source) == (3, "new\n")


def test_where_the_disk_gets_full_nothing_is_left(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert bytecodejob.main([str(source), "0"]) == 1
    assert [path.name for path in source.parent.iterdir()] == [source.name]
