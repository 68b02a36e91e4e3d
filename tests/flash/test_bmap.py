"""Block maps: ours read by bmaptool, bmaptool's read by us, and damage is named."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from flash import bmap
from flash.cli import main
from flash.errors import FlashError
from tests.flash.kit import MIB, tool

needs_bmaptool = pytest.mark.skipif(
    shutil.which("bmaptool") is None, reason="bmaptool is not here (package bmap-tools)"
)


def sparse(path: Path, size: int = 9 * MIB + 1000) -> Path:
    """Data at the start, in the middle and at the end, holes between."""
    with path.open("wb") as file:
        for at, data in ((0, os.urandom(5000)), (4 * MIB, os.urandom(MIB)), (size - 700, os.urandom(700))):
            file.seek(at)
            file.write(data)
    return path


@needs_bmaptool
def test_bmaptool_copies_by_ours(tmp_path: Path) -> None:
    image = sparse(tmp_path / "x.img")
    assert main(["bmap", "create", str(image)]) == 0
    assert bmap.load(tmp_path / "x.img.bmap").mapped < 300
    tool("bmaptool", "copy", "--bmap", tmp_path / "x.img.bmap", image, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()
    text = (tmp_path / "x.img.bmap").read_bytes()
    (tmp_path / "bad").write_bytes(re.sub(rb'chksum="[0-9a-f]{4}', b'chksum="beef', text, count=1))
    with pytest.raises(AssertionError, match=r"[Cc]hecksum"):
        tool("bmaptool", "copy", "--bmap", tmp_path / "bad", image, tmp_path / "copy2")


@needs_bmaptool
def test_we_copy_by_bmaptools(tmp_path: Path) -> None:
    image, card = sparse(tmp_path / "x.img"), tmp_path / "card"
    tool("bmaptool", "create", "-o", tmp_path / "x.img.bmap", image)
    theirs, ours = bmap.load(tmp_path / "x.img.bmap"), bmap.create(image)
    spans = [(each.first, each.last, each.checksum) for each in ours.ranges]
    assert [(each.first, each.last, each.checksum) for each in theirs.ranges] == spans
    card.write_bytes(b"\xaa" * 12 * MIB)
    assert main(["bmap", "copy", str(image), str(card), "--yes", "--fixed"]) == 0
    for each in ours.ranges:
        start, end = ours.bytes_of(each)
        assert card.read_bytes()[start:end] == image.read_bytes()[start:end]
    assert card.read_bytes()[5 * MIB + 4096 : 8 * MIB] == b"\xaa" * (3 * MIB - 4096)  # what is a hole was not written


def test_damage_is_named(tmp_path: Path) -> None:
    image = sparse(tmp_path / "x.img")
    good = bmap.create(image).encode()
    assert bmap.parse(good, "x").mapped == bmap.create(image).mapped
    for data, said in (
        (good.replace(b"0-1", b"0-2", 1), "its checksum is wrong"),
        (good[:-20], "is no block map"),
        (good.replace(b'"2.0"', b'"3.0"'), "is no bmap 2.0"),
        (b"<!DOCTYPE x [<!ENTITY a 'a'>]><bmap/>", "declares a document type"),
        (b"hello", "is no block map"),
        (_resealed(good.replace(b"0-1", b"9-1", 1)), "range 1 is not in order"),
        (_resealed(good.replace(b"0-1", b"0-99999", 1)), "range 1 is not in order, not inside"),
        (_resealed(re.sub(rb'chksum="[0-9a-f]{8}', b'chksum="x', good, count=1)), "has no checksum"),
        (_resealed(good.replace(b"<ImageSize> 9", b"<ImageSize> 9" + b"9" * 5)), "is none that is written here"),
    ):
        with pytest.raises(FlashError, match=said):
            bmap.parse(data, "x.bmap")


def _resealed(data: bytes) -> bytes:
    zeros = re.sub(rb"(<BmapFileChecksum> )[0-9a-f]{64}", rb"\g<1>" + b"0" * 64, data)
    return zeros.replace(b"0" * 64, hashlib.sha256(zeros).hexdigest().encode(), 1)
