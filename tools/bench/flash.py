"""`edgeflash write` beside dd, which writes and looks no further, and dd with a comparison after it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from flash.devices import Device
from flash.writer import write
from tools import OBJECTS
from tools.bench.figures import Figure, Note, Row, Say, bench

SIZE = 512 << 20
ROUNDS = 3
RATIO = 0.9


@bench
def flash(say: Say) -> Iterator[Row]:
    """A file stands in for the card; everybody writes past the page cache and ends with a flush."""
    room = OBJECTS.parent
    room.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=room) as folder:
        source, card = Path(folder, "image"), Path(folder, "card")
        with source.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        card.write_bytes(b"")
        os.truncate(card, SIZE)
        plain, compared, ours, ours_verified = [], [], [], []
        for number in range(ROUNDS + 1):
            say(f"round {number} of {ROUNDS}")
            dd = _dd(source, card)
            looked = _compare(source, card)
            written, verified = _edgeflash(source, card)
            if number:  # the first one has allocated the file
                plain.append(dd)
                compared.append(dd + looked)
                ours.append(written)
                ours_verified.append(written + verified)
    for name, mine, peer, theirs in (
        ("write, while verification is on", ours, "dd", plain),
        ("write and verify", ours_verified, "dd, then dd to cmp", compared),
    ):
        ratio = statistics.median(their / our for our, their in zip(mine, theirs, strict=True))
        value, other = SIZE / statistics.median(mine) / 1e6, SIZE / statistics.median(theirs) / 1e6
        limit = RATIO * other if mine is ours else None  # cmp has a process of its own beside the one that reads
        yield Figure(name, value, "MB/s", peer=(peer, other), ratio=ratio, at_least=limit, better="more")
    yield Note("card", f"a file of {SIZE >> 20} MiB, O_DIRECT, blocks of 4 MiB")


def _edgeflash(source: Path, card: Path) -> tuple[float, float]:
    (done,) = write(source, "raw", SIZE, None, [Device(str(card), "", SIZE)], lambda *_: None)
    if done.error:
        sys.exit(done.error)
    return done.written_s, done.verified_s


def _dd(source: Path, card: Path) -> float:
    began = time.monotonic()
    words = [f"if={source}", f"of={card}", "bs=4M", "oflag=direct", "conv=notrunc,fsync", "status=none"]
    subprocess.run(["dd", *words], check=True)
    return time.monotonic() - began


def _compare(source: Path, card: Path) -> float:
    began = time.monotonic()
    read = subprocess.Popen(["dd", f"if={card}", "bs=4M", "iflag=direct", "status=none"], stdout=subprocess.PIPE)
    subprocess.run(["cmp", source, "-"], stdin=read.stdout, check=True)
    read.wait()
    return time.monotonic() - began
