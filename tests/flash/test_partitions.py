"""Partition tables and file systems of images: against sfdisk, and every damage is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash.errors import FlashError
from flash.partitions import Table, read_table
from flash.volumes import volumes
from tests.flash import kit
from tests.flash.kit import MIB, tool

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


def table(path: Path) -> Table:
    with path.open("rb") as file:
        return read_table(file, path.stat().st_size)


def look(path: Path) -> list[tuple[str, str]]:
    with path.open("rb") as file:
        size = path.stat().st_size
        return [(volume.kind, volume.label) for volume in volumes(file, size, read_table(file, size))]


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_tables_of_sfdisk_are_read(tmp_path: Path, label: str) -> None:
    image = tmp_path / "x.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    kind = "5" if label == "dos" else "linux"
    script = f"label: {label}\nstart=2048,size=4096\nsize=8192,type={kind}\n"
    script += "5 : size=2048\n6 : size=1000\n" if label == "dos" else 'size=4096,name="däta"\n'
    tool("sfdisk", image, feed=script.encode())
    found = {part.number: (part.start, part.size) for part in table(image).partitions}
    numbers = (1, 5, 6) if label == "dos" else (1, 2, 3)
    assert {number: kit.part(image, number) for number in numbers}.items() <= found.items()
    if label == "gpt":
        assert [part.name for part in table(image).partitions] == ["", "", "däta"]
        assert table(image).partitions[0].kind == LINUX


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    image = kit.pi_image(tmp_path, {"etc/os-release": "x"})
    assert look(image) == [("vfat", "BOOTFS"), ("ext4", "")] or look(image) == [("vfat", "bootfs"), ("ext4", "")]
    assert look(kit.ext4(tmp_path, {"a": "b"})) == [("ext4", "")]
    assert [kind for kind, _ in look(kit.vfat(tmp_path, {}, "CIDATA"))] == ["vfat"]


def test_damage_of_a_gpt_is_named(tmp_path: Path) -> None:
    whole = kit.gpt(tmp_path / "x.img", [(LINUX, kit.ext4(tmp_path, {"a": "b"}))]).read_bytes()
    image = tmp_path / "y.img"
    last = len(whole) - 512
    for at, data, said in (
        (512 + 40, b"\x01", "the checksum of the GPT header is wrong"),
        (1024 + 40, b"\x01", "the checksum of the GPT's entries is wrong"),
        (512, b"NOT PART", "no GPT header is there"),
        (last + 40, b"\x01", "the checksum of the GPT's second header"),
        (last, b"NOT PART", "the GPT's second header, at the end of the image, is not there"),
    ):
        image.write_bytes(whole)
        patch(image, at, data)
        with pytest.raises(FlashError, match=said):
            table(image)
    image.write_bytes(whole[:-MIB])
    with pytest.raises(FlashError, match="the GPT says that the disk has"):
        table(image)


def test_partitions_beyond_the_end_and_over_each_other(tmp_path: Path) -> None:
    image = kit.pi_image(tmp_path, {"a": "b"})
    size = image.stat().st_size
    with image.open("r+b") as file:
        file.truncate(size - MIB)
    with pytest.raises(FlashError, match=f"partition 2 ends at byte {size}, beyond the image's {size - MIB}"):
        table(image)
    image = kit.pi_image(tmp_path, {"a": "b"})
    patch(image, 446 + 16 + 8, struct.pack("<I", 4096))
    with pytest.raises(FlashError, match="partitions 1 and 2 overlap"):
        table(image)


def test_extended_partitions_that_run_in_a_circle_end(tmp_path: Path) -> None:
    image = tmp_path / "x.img"
    image.write_bytes(bytes(4 * MIB))
    entry = "<B3sB3sII"
    patch(image, 446, struct.pack(entry, 0, b"", 5, b"", 2048, 4096) + bytes(48) + b"\x55\xaa")
    link = struct.pack(entry, 0, b"", 0x83, b"", 1, 1) + struct.pack(entry, 0, b"", 5, b"", 0, 4096)
    patch(image, MIB + 446, link + bytes(32) + b"\x55\xaa")
    with pytest.raises(FlashError, match="or runs in a circle"):
        table(image)


def test_file_systems_that_are_cut_or_in_use(tmp_path: Path) -> None:
    root = kit.ext4(tmp_path, {"a": "b"})
    with root.open("r+b") as file:
        file.truncate(20 * MIB)
    with pytest.raises(FlashError, match="the image is cut short"):
        look(root)
    root = kit.ext4(tmp_path, {"a": "b"}, name="used.ext4")
    (incompatible,) = struct.unpack_from("<I", root.read_bytes(), 1024 + 96)
    patch(root, 1024 + 96, struct.pack("<I", incompatible | 4))
    with pytest.raises(FlashError, match="the journal has not been replayed"):
        look(root)


@given(st.data())
def test_whatever_comes_is_a_table_or_a_named_error(data: st.DataObject) -> None:
    import io

    sectors = bytearray(64 * 512)
    gpt = data.draw(st.booleans())
    entry = st.builds(
        lambda kind, start, size: struct.pack("<B3sB3sII", 0, b"", kind, b"", start, size),
        st.sampled_from([0, 5, 0x83, 0xEE]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    )  # fmt: skip
    sectors[446:510] = b"".join(data.draw(entry) for _ in range(4))
    sectors[510:512] = b"\x55\xaa"
    if gpt:
        sectors[450] = 0xEE
        head = bytearray(92)
        head[:16] = b"EFI PART" + struct.pack("<II", 0x10000, 92)
        head[24:40] = struct.pack("<QQ", 1, data.draw(st.integers(0, 2**64 - 1)))
        head[72:92] = struct.pack(
            "<QIII",
            data.draw(st.integers(0, 2**64 - 1)),
            data.draw(st.integers(0, 2**32 - 1)),
            data.draw(st.integers(0, 600)),
            0,
        )
        head[16:20] = struct.pack("<I", zlib.crc32(head))
        sectors[512 : 512 + 92] = head
    try:
        found = read_table(io.BytesIO(sectors), len(sectors))
    except FlashError:
        return
    assert all(part.start > 0 and part.start + part.size <= len(sectors) for part in found.partitions)
