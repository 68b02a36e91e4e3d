"""Block maps (bmap 2.0, as bmaptool has them): which blocks of an image matter, each range with its SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from flash.errors import FlashError
from flash.source import CHUNK, IMAGE_BYTES_MAX, extents

BLOCK = 4096
FILE_BYTES_MAX = 64 << 20
RANGES_MAX = 1_000_000
_NO_CHECKSUM = "0" * 64
_HEX = re.compile("[0-9a-f]{64}")


class Range:
    """Blocks `first` to `last`, both included, and the SHA-256 of their bytes, hex."""

    __slots__ = ("checksum", "first", "last")

    def __init__(self, first: int, last: int, checksum: str) -> None:
        self.first = first
        self.last = last
        self.checksum = checksum


class Bmap:
    """`size` of the image in bytes; its last block may be a part of one."""

    __slots__ = ("block", "ranges", "size")

    def __init__(self, size: int, ranges: Sequence[Range], block: int = BLOCK) -> None:
        self.size = size
        self.ranges = list(ranges)
        self.block = block

    @property
    def mapped(self) -> int:
        """Blocks that matter."""
        return sum(each.last - each.first + 1 for each in self.ranges)

    def bytes_of(self, each: Range) -> tuple[int, int]:
        """(start, end) in bytes."""
        return each.first * self.block, min((each.last + 1) * self.block, self.size)

    def encode(self) -> bytes:
        """The file. Its own checksum is that of the file with zeros in the checksum's place."""
        lines = [
            '<?xml version="1.0" ?>',
            '<bmap version="2.0">',
            f"    <ImageSize> {self.size} </ImageSize>",
            f"    <BlockSize> {self.block} </BlockSize>",
            f"    <BlocksCount> {-(-self.size // self.block)} </BlocksCount>",
            f"    <MappedBlocksCount> {self.mapped} </MappedBlocksCount>",
            "    <ChecksumType> sha256 </ChecksumType>",
            f"    <BmapFileChecksum> {_NO_CHECKSUM} </BmapFileChecksum>",
            "    <BlockMap>",
            *(f'        <Range chksum="{each.checksum}"> {_blocks(each)} </Range>' for each in self.ranges),
            "    </BlockMap>",
            "</bmap>",
            "",
        ]
        data = "\n".join(lines).encode()
        return data.replace(_NO_CHECKSUM.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def create(path: Path) -> Bmap:
    """Of an image with holes: what is not a hole is mapped. FlashError when it cannot be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            spans: list[list[int]] = []
            for start, end in extents(file.fileno(), size):
                first, last = start // BLOCK, (end - 1) // BLOCK
                if spans and first <= spans[-1][1] + 1:
                    spans[-1][1] = last
                else:
                    spans.append([first, last])
            found = Bmap(size, [])
            for first, last in spans:
                each = Range(first, last, "")
                each.checksum = _sha256(file, *found.bytes_of(each))
                found.ranges.append(each)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}.") from None
    if not size:
        raise FlashError(f"{path}: is empty.")
    return found


def load(path: Path) -> Bmap:
    """FlashError when the file is no bmap 2.0, or damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise FlashError(f"{path}: {error.strerror}.") from None
    return parse(data, str(path))


def parse(data: bytes, what: str) -> Bmap:
    """Of a file's bytes; `what` names it in errors."""
    if len(data) > FILE_BYTES_MAX or b"<!" in re.sub(rb"<!--.*?-->", b"", data, flags=re.DOTALL):
        raise FlashError(f"{what}: is no block map: it is too long, or declares a document type.")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        raise FlashError(f"{what}: is no block map ({error}). Make one: edgeflash bmap create IMAGE") from None
    if root.tag != "bmap" or root.get("version") != "2.0":
        raise FlashError(f"{what}: is no bmap 2.0. Make one: edgeflash bmap create IMAGE")
    if _text(root, "ChecksumType", what) != "sha256":
        raise FlashError(f"{what}: its checksums are no SHA-256. Make another: edgeflash bmap create IMAGE")
    checksum = _text(root, "BmapFileChecksum", what)
    if hashlib.sha256(data.replace(checksum.encode(), _NO_CHECKSUM.encode(), 1)).hexdigest() != checksum:
        raise FlashError(f"{what}: its checksum is wrong: it was cut short or changed. Fetch it again.")
    size, block = _number(root, "ImageSize", what), _number(root, "BlockSize", what)
    if not 0 < size <= IMAGE_BYTES_MAX or block not in (512, 1024, 2048, 4096, 8192, 65536):
        raise FlashError(f"{what}: an image of {size} bytes in blocks of {block} is none that is written here.")
    ranges: list[Range] = []
    for element in root.findall("BlockMap/Range"):
        match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", (element.text or "").strip())
        digest = element.get("chksum", "")
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        after = ranges[-1].last if ranges else -1
        if not after < first <= last < -(-size // block) or not _HEX.fullmatch(digest) or len(ranges) >= RANGES_MAX:
            raise FlashError(
                f"{what}: range {len(ranges) + 1} is not in order, not inside the image, or has no checksum."
            )
        ranges.append(Range(first, last, digest))
    found = Bmap(size, ranges, block)
    if found.mapped != _number(root, "MappedBlocksCount", what):
        raise FlashError(f"{what}: its ranges have {found.mapped} blocks, and it says another number.")
    return found


def beside(image: Path) -> Path | None:
    """The block map that a publisher puts beside an image: IMAGE.bmap, or without .xz or .gz before."""
    for name in (image.name, image.name.removesuffix(".xz").removesuffix(".gz")):
        for stem in (name, name.removesuffix(".img")):
            if (path := image.with_name(f"{stem}.bmap")).exists():
                return path
    return None


def _blocks(each: Range) -> str:
    return str(each.first) if each.first == each.last else f"{each.first}-{each.last}"


def _sha256(file: BinaryIO, start: int, end: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    while start < end:
        chunk = file.read(min(CHUNK, end - start))
        if not chunk:
            raise OSError(0, "it became shorter while it was read")
        digest.update(chunk)
        start += len(chunk)
    return digest.hexdigest()


def _text(root: ET.Element, name: str, what: str) -> str:
    text = (root.findtext(name) or "").strip()
    if not text:
        raise FlashError(f"{what}: has no {name}. It is damaged, or no block map.")
    return text


def _number(root: ET.Element, name: str, what: str) -> int:
    text = _text(root, name, what)
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise FlashError(f"{what}: {name} is no number.")
    return int(text)
