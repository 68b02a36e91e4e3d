"""How the C library is built: at an install, as a wheel, and what is left where that cannot be."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeagent.engine import choice
from edgeagent.engine.fast import build as builder
from edgeagent.engine.fast import library
from edgeagent.version import VERSION
from tools import OBJECTS, cross

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
FOLDER = "edgeagent/engine/fast"
SMALLEST = """\
#include <stdlib.h>
#include <string.h>
#define E __attribute__((visibility("default")))
E const char *ea_version(void) { return "9"; }
E int ea_self_test(char *why, size_t n) { BODY; strncpy(why, "sums: wrong", n); return 1; }
"""
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, builder.COMPILERS)), reason="no C compiler")


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, once for all tests here, and of object files that other tests left."""
    out = tmp_path_factory.mktemp("library") / builder.LIBRARY
    builder.build(out, builder.find_compiler(), cache=OBJECTS)
    return out


def hatch(target: str, out: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    environ = {**os.environ, "EDGEAGENT_FAST": "", "EDGEHUB_ASSETS": "no", **environ}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)


# The build itself


@needs_compiler
def test_the_same_source_gives_the_same_bytes_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for place in ("here", "elsewhere/below"):
        sources = tmp_path / place
        sources.mkdir(parents=True)
        (sources / "x.c").write_text(SMALLEST.replace("BODY", "if (n) strncpy(why, __FILE__, n)"))
        monkeypatch.setattr(builder, "SOURCES", sources)
        builder.build(sources / "x.so", builder.find_compiler())
        made.append((sources / "x.so").read_bytes())
    assert made[0] == made[1]


@pytest.mark.slow
@needs_compiler
def test_all_sources_give_the_same_bytes_wherever_they_are(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(builder.SOURCES, tmp_path / "elsewhere")
    monkeypatch.setattr(builder, "SOURCES", tmp_path / "elsewhere")
    again = tmp_path / "again.so"
    builder.build(again, builder.find_compiler(), jobs=1)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(made.read_bytes()).digest()


@needs_compiler
def test_what_was_built_is_of_this_release_and_for_this_machine(made: Path) -> None:
    assert builder.try_out(str(made)) == VERSION
    assert library.fault(str(made)) is None
    header = (builder.SOURCES / "version.h").read_text(encoding="utf-8")
    assert f'#define EA_VERSION "{VERSION}"' in header


@needs_compiler
def test_it_exports_what_begins_with_ea_and_needs_no_more_than_libc(made: Path) -> None:
    import ctypes

    loaded = ctypes.CDLL(str(made))
    assert hasattr(loaded, "ea_self_test")
    assert not hasattr(loaded, "test_atomics")
    if readelf := shutil.which("readelf"):
        said = subprocess.run([readelf, "-W", "--dyn-syms", "-d", made], capture_output=True, text=True, check=True)
        exported = re.findall(r"(?:FUNC|OBJECT)\s+GLOBAL\s+DEFAULT\s+\d+ (\S+)", said.stdout)
        assert exported and [name for name in exported if not name.startswith("ea_")] == []
        needed = re.findall(r"NEEDED.*\[(.*?)\]", said.stdout)
        assert [name for name in needed if not name.startswith(("libc.", "libdl.", "libpthread.", "ld-"))] == []


@needs_compiler
def test_a_source_that_does_not_compile_is_an_error_with_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.c").write_text("int broken(void) { return missing_name; }\n")
    monkeypatch.setattr(builder, "SOURCES", tmp_path)
    with pytest.raises(builder.BuildError, match="missing_name"):
        builder.build(tmp_path / "out.so", builder.find_compiler())
    (tmp_path / "broken.c").write_text("int missing_function(void);\nint f(void) { return missing_function(); }\n")
    with pytest.raises(builder.BuildError, match="missing_function"):
        builder.build(tmp_path / "out.so", builder.find_compiler())
    assert not (tmp_path / "out.so").exists()


@needs_compiler
def test_a_cache_compiles_what_is_new_to_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, cache, program = tmp_path / "sources", tmp_path / "cache", tmp_path / "program"
    sources.mkdir()
    (sources / "a.c").write_text('#include "a.h"\nint a(void);\nint a(void) { return A; }\n')
    (sources / "a.h").write_text("#define A 1\n")
    (tmp_path / "main.c").write_text("int a(void);\nint main(void) { return a(); }\n")
    monkeypatch.setattr(builder, "SOURCES", sources)
    compiled: list[str] = []
    run = builder._run

    def counted(command: Sequence[str]) -> str:
        if "-c" in command:
            compiled.append(Path(command[command.index("-c") + 1]).name)
        return run(command)

    monkeypatch.setattr(builder, "_run", counted)

    def status(**options: Any) -> int:
        compiled.clear()
        mains = [tmp_path / "main.c"]
        builder.build(program, builder.find_compiler(), mains=mains, cache=cache, jobs=1, **options)
        return subprocess.run([program], check=False).returncode

    assert (status(), compiled) == (1, ["a.c", "main.c"])
    assert (status(), compiled) == (1, [])
    (sources / "a.h").write_text("#define A 2\n")
    assert (status(), compiled) == (2, ["a.c", "main.c"])  # which may include it as well
    (tmp_path / "main.c").write_text("int a(void);\nint main(void) { return 10 * a(); }\n")
    assert (status(), compiled) == (20, ["main.c"])
    assert (status(flags=["-DA"]), compiled) == (20, ["a.c", "main.c"])
    (sources / "a.h").write_text("#define A 1\n")
    assert (status(), compiled) == (10, ["main.c"])  # a.c was so before
    monkeypatch.setattr(builder, "CACHED_OBJECTS_MAX", 3)
    (sources / "a.h").write_text("#define A 3\n")
    assert status() == 30
    assert len(list(cache.glob("*.o"))) == 3
    assert (status(), compiled) == (30, [])


@needs_compiler
def test_what_several_want_of_a_cache_at_once_is_compiled_once(tmp_path: Path) -> None:
    """By two processes whose compiler says when it is called."""
    sources, said = tmp_path / "sources", tmp_path / "said"
    sources.mkdir()
    for number in range(6):
        (sources / f"{number}.c").write_text(f"int f{number}(void);\nint f{number}(void) {{ return 0; }}\n")
    compiler = tmp_path / "mycc"
    real = shlex.join(builder.find_compiler())
    compiler.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) echo x >>{said}; sleep 0.1;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    code = f"""
from pathlib import Path
from edgeagent.engine.fast import build
build.SOURCES = Path({str(sources)!r})
build.build(None, [{str(compiler)!r}], cache=Path({str(tmp_path / "cache")!r}))
"""
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [each.wait(60) for each in both] == [0, 0]
    assert len(list((tmp_path / "cache").glob("*.o"))) == 6
    assert said.read_text() == "x\n" * 6


@needs_compiler
def test_a_library_whose_self_test_fails_or_dies_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "SOURCES", tmp_path)
    for body, said in (("", "self-test fails: sums: wrong"), ("abort()", "dies of signal 6")):
        (tmp_path / "x.c").write_text(SMALLEST.replace("BODY", body))
        builder.build(tmp_path / "x.so", builder.find_compiler())
        with pytest.raises(builder.BuildError, match=said):
            builder.try_out(str(tmp_path / "x.so"))


def test_the_compiler_is_the_one_that_cc_names_or_there_is_none(tmp_path: Path) -> None:
    program = tmp_path / "mycc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert builder.find_compiler({"CC": f"{program} -m32", "PATH": ""}) == [str(program), "-m32"]
    with pytest.raises(builder.BuildError, match="CC is 'nonesuch'"):
        builder.find_compiler({"CC": "nonesuch", "PATH": "/usr/bin:/bin"})
    with pytest.raises(builder.BuildError, match="no C compiler: none of cc, gcc, clang"):
        builder.find_compiler({"PATH": str(tmp_path)})


# The install


def test_without_a_compiler_the_install_leaves_a_note(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "nonesuch")
    (tmp_path / builder.LIBRARY).write_bytes(b"of an earlier install")
    hook.put(builder, tmp_path, "")
    assert not (tmp_path / builder.LIBRARY).exists()
    monkeypatch.setattr(library, "NOTE", str(tmp_path / builder.NOTE))
    monkeypatch.setattr(library, "BESIDE", str(tmp_path / builder.LIBRARY))
    assert "no C compiler: CC is 'nonesuch'" in library.why_missing()
    engine, why = choice.choose({})
    assert (engine, why) == ("pure", f"no C library: {library.why_missing()}")
    with pytest.raises(choice.EngineUnavailable, match="nonesuch"):
        choice.choose({"EDGEAGENT_ENGINE": "fast"})
    with pytest.raises(RuntimeError, match=r"EDGEAGENT_FAST=require.*no C compiler"):
        hook.put(builder, tmp_path, "require")


@needs_compiler
def test_a_later_install_with_a_compiler_takes_the_note_away(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, folder = tmp_path / "sources", tmp_path / "folder"
    for each in (sources, folder):
        each.mkdir()
    (sources / "x.c").write_text(SMALLEST.replace("BODY", "if (n) return 0"))
    monkeypatch.setattr(builder, "SOURCES", sources)
    (folder / builder.NOTE).write_text("no C compiler\n")
    hook.put(builder, folder, "require")
    assert [path.name for path in folder.iterdir()] == [builder.LIBRARY]


@pytest.mark.slow
@needs_compiler
def test_a_wheel_has_the_library_and_is_for_this_machine_only(hook: ModuleType, tmp_path: Path) -> None:
    done = hatch("wheel", tmp_path, EDGEAGENT_FAST="require")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(rf"edgemesh-{re.escape(VERSION)}-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in archive.read(about)
        archive.extract(f"{FOLDER}/{builder.LIBRARY}", tmp_path)
    assert f"{FOLDER}/{builder.NOTE}" not in names
    assert f"{FOLDER}/version.c" in names
    assert builder.try_out(str(tmp_path / FOLDER / builder.LIBRARY)) == VERSION


def test_a_wheel_has_the_dashboards_assets_or_says_why_not(tmp_path: Path) -> None:
    done = hatch("wheel", tmp_path, EDGEAGENT_FAST="no")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"hub/web/static/app.css", "hub/web/static/app.js", "hub/web/templates/base.html"} <= names
    brought = {
        "hub/web/static/vendor/htmx.js",
        "hub/web/static/vendor/tabler.css.gz",
        "hub/web/static/vendor/inter.woff2",
    }
    assert brought <= names or "hub/web/static/vendor.why" in names


def test_a_wheel_without_the_library_is_for_any_machine_and_says_why(hook: ModuleType, tmp_path: Path) -> None:
    done = hatch("wheel", tmp_path, CC="nonesuch")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"edgemesh-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert f"{FOLDER}/{builder.LIBRARY}" not in archive.namelist()
        assert b"CC is 'nonesuch'" in archive.read(f"{FOLDER}/{builder.NOTE}")
    assert hatch("wheel", tmp_path, CC="nonesuch", EDGEAGENT_FAST="require").returncode != 0
    unknown = hatch("wheel", tmp_path, EDGEAGENT_FAST="yes")
    assert unknown.returncode != 0
    assert "want require, no, or nothing" in unknown.stderr


def test_a_source_distribution_has_what_the_build_needs_and_nothing_built(hook: ModuleType, tmp_path: Path) -> None:
    done = hatch("sdist", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {f"{FOLDER}/{path.name}" for pattern in ("*.c", "*.h", "*.py") for path in builder.SOURCES.glob(pattern)}
    assert wanted | {"hatch_build.py", "pyproject.toml"} <= names
    assert not names & {f"{FOLDER}/{builder.LIBRARY}", f"{FOLDER}/{builder.NOTE}"}


# Which engine


@needs_compiler
def test_the_engine_is_the_library_unless_something_is_wrong_with_it(made: Path, tmp_path: Path) -> None:
    here = {"EDGEAGENT_FAST_LIBRARY": str(made)}
    assert choice.choose(here)[0] == "fast"
    assert choice.choose({**here, "EDGEAGENT_ENGINE": "fast"})[0] == "fast"
    assert choice.choose({**here, "EDGEAGENT_ENGINE": "pure"}) == ("pure", "EDGEAGENT_ENGINE says so")
    with pytest.raises(choice.EngineUnavailable, match=r"'quick'.*Use one of fast, pure"):
        choice.choose({**here, "EDGEAGENT_ENGINE": "quick"})
    for path, said in wrong_files(made, tmp_path):
        engine, why = choice.choose({"EDGEAGENT_FAST_LIBRARY": str(path)})
        assert engine == "pure"
        assert said in why


def wrong_files(made: Path, tmp_path: Path) -> list[tuple[Path, str]]:
    """(file, what is to be said of it)"""
    whole = made.read_bytes()
    other = bytearray(whole)
    other[18:20] = (8).to_bytes(2, sys.byteorder) if whole[18] != 8 else (62).to_bytes(2, sys.byteorder)
    program = bytearray(whole)
    program[16:18] = (2).to_bytes(2, sys.byteorder)
    contents = {
        "mips.so": (bytes(other), "MIPS" if whole[18] != 8 else "x86-64"),
        "short.so": (whole[: len(whole) // 3], "cut short"),
        "head.so": (whole[:40], "cut short"),
        "ident.so": (whole[:5], "cut short"),
        "text.so": (b"not a library\n", "no ELF file"),
        "empty.so": (b"", "no ELF file"),
        "program.so": (bytes(program), "no shared object"),
    }
    for name, (data, _) in contents.items():
        (tmp_path / name).write_bytes(data)
    found = [(tmp_path / name, said) for name, (_, said) in contents.items()]
    return [*found, (tmp_path / "missing.so", "No such file"), (tmp_path, "Is a directory")]


def test_headers_of_every_kind_are_read_without_a_traceback(made: Path, tmp_path: Path) -> None:
    """Each byte of the headers flipped: a fault, or none, and never an error."""
    whole = made.read_bytes()
    target = tmp_path / "flipped.so"
    verdicts = set()
    for at in range(160):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(whole)
            data[at] ^= flip
            target.write_bytes(data)
            verdicts.add((library.fault(str(target)) or "good").split(":")[0][:20])
    assert len(verdicts) >= 4


# Cross builds


def test_the_targets_of_cross_builds_are_named_by_machine_or_with_their_libc() -> None:
    assert len(list(cross.chosen([]))) == 16
    assert [(machine.name, libc) for machine, libc in cross.chosen(["mips-musl", "aarch64"])] == [
        ("aarch64", "musl"),
        ("aarch64", "glibc"),
        ("mips", "musl"),
    ]
    with pytest.raises(ValueError, match="'vax': no such target; known are aarch64"):
        list(cross.chosen(["vax"]))


def test_extras_and_hook_are_where_the_tools_look_for_them() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert any(name.startswith("ziglang") for name in project["project"]["optional-dependencies"]["tools"])
    assert "custom" in project["tool"]["hatch"]["build"]["hooks"]
