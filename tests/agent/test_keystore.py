"""The state directory against power cuts, damage and misuse."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io import keystore
from edgeagent.io.keystore import CacheWriter, Keystore, StateDamaged, StateError, StateFile

OLD, NEW = b"the old state" * 20, b"and the new one" * 30


def opened(path: Path) -> Keystore:
    store = Keystore(str(path))
    store.open()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Keystore]:
    store = opened(tmp_path / "state")
    yield store
    store.close()


class Disk:
    """Stands for `os` in the keystore: does what it is told, and notes what a disk would have to remember."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.journal: list[tuple[Any, ...]] = []
        self._open: dict[
            int, tuple[str, int] | None
        ] = {}  # descriptor -> (path, number of the file), None: a directory
        self._numbers = itertools.count()
        self._calls = 0
        self._fail_at = fail_at

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _call(self) -> None:
        self._calls += 1
        if self._fail_at is not None and self._calls > self._fail_at:
            raise OSError(errno.EIO, "the power is gone")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._call()
        fd = os.open(path, flags, mode)
        self._open[fd] = None
        if flags & os.O_CREAT and flags & os.O_TRUNC:
            number = next(self._numbers)
            self._open[fd] = (path, number)
            self.journal.append(("create", path, number))
        return fd

    def write(self, fd: int, data: bytes) -> int:
        self._call()
        written = os.write(fd, bytes(data)[:64])  # short writes are legal
        file = self._open[fd]
        assert file is not None
        self.journal.append(("write", file[1], bytes(data[:written])))
        return written

    def fsync(self, fd: int) -> None:
        self._call()
        os.fsync(fd)
        file = self._open[fd]
        self.journal.append(("sync directory",) if file is None else ("sync", file[1]))

    def replace(self, source: str, target: str) -> None:
        self._call()
        os.replace(source, target)
        self.journal.append(("rename", source, target))

    def unlink(self, path: str) -> None:
        self._call()
        os.unlink(path)
        self.journal.append(("unlink", path))


def images_after_cut(journal: list[tuple[Any, ...]]) -> Iterator[dict[str, bytes]]:
    """Every directory that may be found when the power goes after `journal`.

    Names change in order and may lag behind up to the last sync of the directory; the contents of a file that was not
    synced may be missing, cut short, or anything.
    """
    contents: dict[int, bytes] = {}
    synced: set[int] = set()
    durable: list[tuple[Any, ...]] = []
    pending: list[tuple[Any, ...]] = []
    for entry in journal:
        match entry:
            case ("create", _, number):
                contents[number] = b""
                pending.append(entry)
            case ("write", number, data):
                contents[number] += data
                synced.discard(number)
            case ("sync", number):
                synced.add(number)
            case ("sync directory",):
                durable += pending
                pending.clear()
            case _:
                pending.append(entry)
    unsynced = [number for number in contents if number not in synced]
    for kept in range(len(pending) + 1):
        names: dict[str, int] = {}
        for entry in durable + pending[:kept]:
            match entry:
                case ("create", path, number):
                    names[path] = number
                case ("rename", source, target):
                    names[target] = names.pop(source)
                case ("unlink", path):
                    names.pop(path)
        for spoiled in itertools.product(("empty", "half", "garbage", "whole"), repeat=len(unsynced)):
            image = dict(contents)
            for number, how in zip(unsynced, spoiled, strict=True):
                data = image[number]
                variants = {"empty": b"", "half": data[: len(data) // 2], "garbage": b"\xa5" * len(data), "whole": data}
                image[number] = variants[how]
            yield {os.path.basename(path): image[number] for path, number in names.items()}


def test_power_cut_at_every_step_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    store = opened(tmp_path / "state")
    monkeypatch.setattr(keystore, "os", disk)
    store.save(StateFile.IDENTITY, OLD)
    first = len(disk.journal)
    store.save(StateFile.IDENTITY, NEW)
    monkeypatch.undo()
    store.close()
    seen: set[bytes | None] = set()
    tried = 0
    for steps in range(len(disk.journal) + 1):
        for image in images_after_cut(disk.journal[:steps]):
            tried += 1
            found = tmp_path / f"after-{tried}"
            found.mkdir(0o700)
            for name, data in image.items():
                (found / name).write_bytes(data)
            reader = opened(found)
            body = reader.load(StateFile.IDENTITY)
            reader.close()
            seen.add(body)
            assert body in (None, OLD) if steps < first else body in (OLD, NEW), (steps, image)
            assert not list(found.glob("*.new"))
    assert seen == {None, OLD, NEW}
    assert tried > 50


def test_a_failed_call_at_every_step_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "state")
    store.save(StateFile.CACHE, OLD)
    for calls in itertools.count():
        monkeypatch.setattr(keystore, "os", Disk(fail_at=calls))
        try:
            store.save(StateFile.CACHE, NEW)
        except OSError:
            monkeypatch.undo()
        else:
            break
        assert store.load(StateFile.CACHE) in (OLD, NEW)
        store.save(StateFile.CACHE, OLD)
    monkeypatch.undo()
    assert calls >= 8
    assert store.load(StateFile.CACHE) == NEW
    store.close()


def test_modes_and_owner(store: Keystore) -> None:
    store.save(StateFile.IDENTITY, b"secret")
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(store.path(StateFile.IDENTITY)).st_mode) == 0o600


def test_an_open_directory_is_closed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(0o755)
    store = opened(tmp_path / "state")
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    store.close()


def test_one_process_at_a_time(store: Keystore) -> None:
    with pytest.raises(StateError, match="another agent"):
        Keystore(store.directory).open()


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError):
        Keystore(str(tmp_path / "state")).open()


def test_same_body_costs_no_write(store: Keystore) -> None:
    store.save(StateFile.CACHE, OLD)
    store.save(StateFile.CACHE, OLD)
    assert store.flash_writes == 1
    store.save(StateFile.CACHE, NEW)
    assert store.flash_writes == 2
    store.remove(StateFile.CACHE)
    store.remove(StateFile.CACHE)
    assert store.load(StateFile.CACHE) is None


def test_absent_is_none_and_not_damage(store: Keystore) -> None:
    assert all(store.load(file) is None for file in StateFile)


@pytest.mark.parametrize("cut", [0, 1, 43, 44, 60, -1])
def test_torn(store: Keystore, cut: int) -> None:
    store.save(StateFile.ADMISSION, OLD)
    path = Path(store.path(StateFile.ADMISSION))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StateDamaged, match="admission: damaged"):
        store.load(StateFile.ADMISSION)


@given(at=st.integers(0, 300), flip=st.integers(1, 255))
def test_every_flipped_byte_is_seen(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    store = opened(tmp_path_factory.mktemp("flip"))
    store.save(StateFile.IDENTITY, OLD)
    path = Path(store.path(StateFile.IDENTITY))
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] ^= flip
    path.write_bytes(data)
    with pytest.raises(StateDamaged):
        store.load(StateFile.IDENTITY)
    store.close()


@given(data=st.binary(max_size=200))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    store = opened(tmp_path_factory.mktemp("garbage"))
    Path(store.path(StateFile.CLOCK)).write_bytes(data)
    with pytest.raises(StateDamaged):
        store.load(StateFile.CLOCK)
    store.close()


def test_a_file_under_another_name_is_damage(store: Keystore) -> None:
    store.save(StateFile.CACHE, OLD)
    os.rename(store.path(StateFile.CACHE), store.path(StateFile.ADMISSION))
    with pytest.raises(StateDamaged, match="checksum"):
        store.load(StateFile.ADMISSION)


def test_too_long_is_damage_and_is_not_read_whole(store: Keystore) -> None:
    path = store.path(StateFile.CLOCK)
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StateDamaged):
        store.load(StateFile.CLOCK)
    with pytest.raises(ValueError, match="at most 16"):
        store.save(StateFile.CLOCK, bytes(17))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_no_file(store: Keystore, make: Any) -> None:
    make(store.path(StateFile.TOKEN))
    with pytest.raises(StateDamaged):
        store.load(StateFile.TOKEN)


def test_cache_writer_waits_and_coalesces() -> None:
    writer = CacheWriter()
    assert writer.poll_timeout() is None
    writer.dirty(100.0)
    writer.dirty(101.0)
    assert writer.poll_timeout() == 102.0
    writer.written(102.0)
    assert writer.poll_timeout() is None
    writer.dirty(103.0)
    assert writer.poll_timeout() == 105.0


def test_a_cache_that_never_rests_is_written_once_a_minute() -> None:
    writer = CacheWriter()
    now, writes = 0.0, 0
    while now < 6 * 3600.0:
        writer.dirty(now)
        due = writer.poll_timeout()
        assert due is not None and due >= now + 2.0
        now = due
        writer.written(now)
        writes += 1
    assert 360 <= writes <= 360 + 8
    writer.dirty(now + 3600.0)
    assert writer.poll_timeout() == now + 3602.0


def test_entropy_has_the_size_asked_for() -> None:
    assert [len(keystore.entropy(size)) for size in (0, 16, 32, 700)] == [0, 16, 32, 700]


def test_writes_are_counted_with_their_bytes(tmp_path: Path) -> None:
    store = Keystore(str(tmp_path / "state"))
    store.open()
    store.save(StateFile.BINDINGS, b"a" * 100)
    store.save(StateFile.BINDINGS, b"a" * 100)  # as it was
    size = (tmp_path / "state" / "bindings").stat().st_size
    assert (store.flash.writes, store.flash.bytes) == (1, size)
    store.remove(StateFile.BINDINGS)
    store.remove(StateFile.BINDINGS)
    assert (store.flash.writes, store.flash.day(monotonic())) == (2, (2, size))
    store.close()


def test_keys_wait_for_random_numbers_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, asked = [100.0], []

    def getrandom(size: int, flags: int = 0) -> bytes:
        assert flags == os.GRND_NONBLOCK
        asked.append(size)
        if clock[0] < 231.0:
            raise BlockingIOError
        return b"r" * min(size, 10)

    monkeypatch.setattr(os, "getrandom", getrandom)
    monkeypatch.setattr(keystore, "monotonic", lambda: clock[0])
    monkeypatch.setattr(keystore, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with caplog.at_level("INFO", "edgeagent"):
        assert keystore.entropy(32) == b"r" * 32
    assert asked[-4:] == [32, 22, 12, 2]
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in said[:-1]] == [
        f"waiting for the kernel's random numbers since {seconds} s" for seconds in (0, 60, 120)
    ]
    assert said[-1] == "random numbers are there after 131 s"
