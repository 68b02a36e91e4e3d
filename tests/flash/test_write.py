"""`edgeflash write` and `verify` on files and loop devices; what must not be written; cards that fail or are pulled."""

from __future__ import annotations

import errno
import json
import lzma
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flash import devices, writer
from flash.cli import main
from tests.flash import kit
from tests.flash.kit import ENVIRON, MIB

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
OLD = b"\xaa"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """18 MiB and 1,000 bytes of what is random, in a partition table."""
    part = tmp_path / "part"
    part.write_bytes(os.urandom(16 * MIB))
    return kit.gpt(tmp_path / "x.img", [(LINUX, part)])


def card(folder: Path, size: int = 24 * MIB, name: str = "card") -> Path:
    path = folder / name
    path.write_bytes(OLD * size)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err


def write(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    return run(capsys, "write", *words, "--yes", "--fixed", "--json")


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_cards_are_written_and_verified(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    source = image
    if packed:
        source = tmp_path / "x.img.xz"
        source.write_bytes(lzma.compress(image.read_bytes(), preset=0))
    cards = [card(tmp_path, name=f"card{number}") for number in range(3)]
    status, events, _ = write(capsys, source, *cards)
    assert status == 0 and [event["ok"] for event in events if event["event"] == "card"] == [True] * 3
    size = image.stat().st_size
    for each in cards:
        data = each.read_bytes()
        assert data[:size] == image.read_bytes() and len(data) == 24 * MIB
        assert data[-34 * 512 :] == bytes(34 * 512)  # what could be the old card's second GPT
    steps = [event["step"] for event in events if event["event"] == "progress" and event["what"] == str(cards[0])]
    assert steps[0] == "writing" and steps[-1] == "verifying"
    assert run(capsys, "verify", source, cards[0])[0] == 0
    with cards[0].open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"x")
    status, _, said = run(capsys, "verify", source, cards[0])
    assert status == 1 and f"between bytes {8 * MIB} and {12 * MIB}" in said


def test_the_first_block_comes_last(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    target = writer._Target

    def noted(name: str) -> Any:
        real = getattr(target, name)

        def call(self: Any, *args: Any) -> Any:
            order.append((name, args[0] if args else 0))
            return real(self, *args)

        return call

    for name in ("write", "flush", "read"):
        monkeypatch.setattr(target, name, noted(name))
    assert write(capsys, image, card(tmp_path))[0] == 0
    first = max(at for at, entry in enumerate(order) if entry == ("write", 0))
    compared = [at for at, entry in enumerate(order) if entry[0] == "read" and entry[1]]
    assert len(compared) == 4 and order[0] == ("write", 0)  # emptied before all
    assert first > max(compared)  # and written after all was compared
    assert order[first - 2 : first] == [("write", 4096), ("flush", 0)]
    assert [name for name, _ in order[first:]] == ["write", "flush", "read"]
    written = [at for at, entry in enumerate(order) if entry[0] == "write" and entry[1] and at > 3]
    assert order[max(written) + 1][0] == "flush"


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_card_that_is_pulled_starts_nothing_and_the_others_go_on(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    pulled, good = card(tmp_path, name="pulled"), card(tmp_path, name="good")
    writes, real = {"n": 0}, writer._Target.write

    def gone(self: writer._Target, offset: int, data: bytes | memoryview) -> None:
        if os.readlink(f"/proc/self/fd/{self._fd}") == str(pulled):
            writes["n"] += 1
            if writes["n"] > after + 2:  # two empty the card
                raise OSError(errno.EIO, "Input/output error")
        real(self, offset, data)

    monkeypatch.setattr(writer._Target, "write", gone)
    status, events, _ = write(capsys, image, pulled, good)
    told = {event["device"]: event for event in events if event["event"] == "card"}
    assert status == 1 and told[str(good)]["ok"] and not told[str(pulled)]["ok"]
    assert "the card is gone, or broken" in told[str(pulled)]["error"] and "write it anew" in told[str(pulled)]["error"]
    assert pulled.read_bytes()[: 4 * MIB] == bytes(4 * MIB)
    assert good.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_a_card_that_keeps_something_else_is_found(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = card(tmp_path), writer._Target.write

    def forgetful(self: writer._Target, offset: int, data: bytes | memoryview) -> None:
        real(self, offset, bytes(data[:-1]) + b"?" if offset == 8 * MIB else data)

    monkeypatch.setattr(writer._Target, "write", forgetful)
    status, events, _ = write(capsys, image, path)
    assert status == 1 and "the card is bad, or smaller than it says" in events[-1]["error"]
    assert path.read_bytes()[: 4 * MIB] == bytes(4 * MIB)


def test_what_must_not_be_written_is_not(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, small = card(tmp_path), card(tmp_path, 2 * MIB, "small")
    folder = tmp_path / "folder"
    folder.mkdir()
    cut = tmp_path / "cut.img"
    cut.write_bytes(image.read_bytes()[: -2 * MIB])
    packed = tmp_path / "cut.xz"
    packed.write_bytes(lzma.compress(image.read_bytes(), preset=0)[:-100])
    for words, said in (
        ((image, path, "--yes"), "is a file and no card. If it is meant, give --fixed"),
        ((image, path, "--fixed"), "nobody is here to ask"),
        ((image, small, path, "--yes", "--fixed"), "Take a larger card"),
        ((image, path, path, "--yes", "--fixed"), "is given twice"),
        ((image, folder, "--yes", "--fixed"), "is no block device"),
        ((image, tmp_path / "none", "--yes", "--fixed"), "No such file or directory"),
        ((cut, path, "--yes", "--fixed"), "the GPT says that the disk has"),
        ((packed, path, "--yes", "--fixed"), "is damaged or cut short"),
        ((folder, path, "--yes", "--fixed"), "is a root file system and no image"),
    ):
        status, _, err = run(capsys, "write", *words)
        assert status == 1 and said in err, err
        assert path.read_bytes() == OLD * (24 * MIB) and small.read_bytes() == OLD * (2 * MIB)


def test_an_image_that_is_not_its_block_maps(tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bmap", "create", str(image)]) == 0
    with image.open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"other")
    path = card(tmp_path)
    capsys.readouterr()
    status, events, _ = write(capsys, image, path)
    assert status == 1 and "are not those of its block map" in events[-1]["error"]
    assert path.read_bytes()[: 4 * MIB] == bytes(4 * MIB)


# What sysfs and procfs say


def disk(root: Path, **about: str) -> Path:
    node = root / "sys/devices/platform/sda"
    files = {"dev": "8:0", "size": "65536", "removable": "1", "ro": "0", "device/model": "Card", "sda1/partition": "1",
             "sda1/dev": "8:1"}  # fmt: skip
    for name, text in {**files, **about}.items():
        (node / name).parent.mkdir(parents=True, exist_ok=True)
        (node / name).write_text(text + "\n")
    for name in ("proc/self/mountinfo", "proc/swaps"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return node


@pytest.mark.parametrize(
    ("about", "mounts", "swaps", "said"),
    [
        ({}, "", "", ""),
        ({"removable": "0"}, "", "", "is a fixed disk (Card) and no card"),
        ({"removable": "0", "device/type": "SD"}, "", "", ""),
        ({"ro": "1"}, "", "", "is read-only"),
        ({"size": "16"}, "", "", "has 8192 bytes, and the image 1048576"),
        ({"sda1/holders/md0/md/x": ""}, "", "", "sda1 is a part of md0 (RAID)"),
        ({"holders/dm-0/dm/name": "vg-root"}, "", "", "sda is a part of vg-root (LVM, or encrypted)"),
        ({}, "30 1 8:1 / /media/my\\040card rw - vfat /dev/sda1 rw", "", "sda1 is mounted at /media/my card"),
        ({}, "30 1 8:1 / / rw - ext4 /dev/root rw", "", "this system runs from it"),
        ({}, "30 1 0:45 /@ / rw - btrfs /dev/sda1 rw", "", "this system runs from it"),
        ({}, "30 1 8:17 / / rw - ext4 /dev/sdb1 rw", "", ""),
        ({}, "", "Filename Type\n/dev/sda1 partition 1 0 -2", "this system runs from it (sda1 is swap)"),
    ],
)
def test_disks_in_use_are_refused(tmp_path: Path, about: dict[str, str], mounts: str, swaps: str, said: str) -> None:
    node = disk(tmp_path, **about)
    (tmp_path / "proc/self/mountinfo").write_text(mounts + "\n")
    (tmp_path / "proc/swaps").write_text(swaps + "\n")
    why = devices.refusal(devices.look_at("/dev/sda", node, tmp_path), MIB, fixed=False)
    assert said in why and bool(why) is bool(said)
    if "runs from it" in said:
        assert "never written" in devices.refusal(devices.look_at("/dev/sda", node, tmp_path), MIB, fixed=True)


def test_a_partition_is_no_card(tmp_path: Path) -> None:
    node = disk(tmp_path)
    with pytest.raises(Exception, match=r"is a partition. Name the whole card: /dev/sda\."):
        devices.look_at("/dev/sda1", node / "sda1", tmp_path)


# Real loop devices


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 24 MiB; skipped where there is no right to make one."""
    yield from made_loop(card(tmp_path, name="backing"))


@pytest.fixture
def failing_loop(tmp_path: Path) -> Iterator[Path]:
    """One of 24 MiB whose backing has room for 12: the kernel then answers as for a card that is gone."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", small], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no mount: {mounted.stderr.strip()}")
    try:
        with (small / "backing").open("wb") as file:
            file.truncate(24 * MIB)
        yield from made_loop(small / "backing")
    finally:
        subprocess.run(["umount", small], check=True)


def made_loop(backing: Path) -> Iterator[Path]:
    made = subprocess.run(["losetup", "-f", "--show", backing], capture_output=True, text=True, env=ENVIRON)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "-d", made.stdout.strip()], env=ENVIRON)


def test_a_loop_device_is_written_and_one_that_is_held_is_not(
    tmp_path: Path, image: Path, loop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "write", image, loop, "--yes")
    assert status == 1 and "is a fixed disk" in err
    assert write(capsys, image, loop)[0] == 0
    assert (tmp_path / "backing").read_bytes()[: image.stat().st_size] == image.read_bytes()
    fd = os.open(loop, os.O_RDONLY | os.O_EXCL)  # as a mount has it
    try:
        status, events, _ = write(capsys, image, loop)
        assert status == 1 and "is in use, says the kernel" in events[-1]["error"]
    finally:
        os.close(fd)


def test_a_loop_device_that_fails_in_the_middle(
    tmp_path: Path, image: Path, failing_loop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, events, _ = write(capsys, image, failing_loop)
    assert status == 1 and not events[-1]["ok"]
    assert "the card is gone, or broken" in events[-1]["error"] or "the card is full" in events[-1]["error"]
    with (tmp_path / "small/backing").open("rb") as file:
        assert file.read(4 * MIB) == bytes(4 * MIB)
