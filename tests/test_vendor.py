"""How the dashboard's assets are brought: what is checked, and that nothing half-done is left."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from tools import vendor

ROOT = Path(__file__).parents[1]


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one package, and an `npm` that packs it."""
    content = archive({"dist/part.js": b"let a = 1;\n" * 100, "dist/font.woff2": b"font", "evil": b"x"})
    (tmp_path / "part.tgz").write_bytes(content)
    programs = tmp_path / "programs"
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text(
        f'#!/bin/sh\ntest "$5" = "part@1.0.0" || {{ echo "npm error 404 no $5" >&2; exit 1; }}\n'
        f'cp {tmp_path}/part.tgz "$4/part-1.0.0.tgz"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    write_lock(tmp_path, content)
    return tmp_path


def write_lock(tree: Path, content: bytes, *, version: str = "1.0.0", target: str = "part.js") -> None:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    lock = tree / vendor.LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(
        f'[[package]]\nname = "part"\nversion = "{version}"\nintegrity = "sha512-{digest}"\n'
        f'[package.files]\n"dist/part.js" = "{target}"\n"dist/font.woff2" = "fonts/font.woff2"\n'
    )


def test_only_the_named_files_are_kept_and_texts_are_squeezed(tree: Path) -> None:
    assert not vendor.is_current(tree)
    vendor.bring(tree)
    folder = tree / vendor.FOLDER
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == [".lock", "fonts/font.woff2", "part.js", "part.js.gz"]
    assert gzip.decompress((folder / "part.js.gz").read_bytes()) == (folder / "part.js").read_bytes()
    assert vendor.is_current(tree)
    assert [path.name for path in folder.parent.iterdir()] == ["vendor"]


def test_another_digest_is_refused_and_what_was_there_stays(tree: Path) -> None:
    vendor.bring(tree)
    write_lock(tree, b"of something else")
    assert not vendor.is_current(tree)
    with pytest.raises(vendor.VendorError, match=r"its digest is sha512-.* It is not used"):
        vendor.bring(tree)
    assert (tree / vendor.FOLDER / "part.js").exists()


def test_what_npm_says_is_passed_on(tree: Path) -> None:
    write_lock(tree, b"", version="9.9.9")
    with pytest.raises(vendor.VendorError, match=r"npm error 404 no part@9\.9\.9"):
        vendor.bring(tree)


@pytest.mark.parametrize("target", ["../outside.js", "/etc/outside.js", "a/../../outside.js"])
def test_nothing_is_written_outside_of_the_folder(tree: Path, target: str) -> None:
    write_lock(tree, b"", target=target)
    with pytest.raises(vendor.VendorError, match="outside of the folder"):
        vendor.bring(tree)


def test_without_npm_it_says_what_to_install(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(vendor.VendorError, match="apt-get install npm"):
        vendor.bring(tree)


def test_the_lock_file_pins_all_that_templates_use() -> None:
    packages = vendor.read_lock(ROOT / vendor.LOCK)
    assert all(len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64 for package in packages)
    brought = {target for package in packages for target in package.files.values()}
    used = set()
    for path in (ROOT / "hub/web/templates").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        used |= {part.split("'")[0] for part in text.split("asset('vendor/")[1:]}
        used |= {f"icons/{part.split(chr(34))[0]}.svg" for part in text.split('icon("')[1:]}
    assert used <= brought, used - brought
