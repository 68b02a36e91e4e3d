"""A power cut after every operation, within every write, with and without what was not synced: the launcher always has an agent.

The operations are recorded as they are made on a real directory, and played again on a model of a file system that may lose
what was not synced: contents, names, or both, as file systems do.
"""

from __future__ import annotations

import os
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from edgeagent import slots, slotwriter
from edgeagent.io import durable
from edgeagent.proto.tuf import Target

TRIAL_S = 600


class Recorder:
    """Stands for `os` in the modules that write: does it, and notes it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.operations: list[tuple[Any, ...]] = []
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        new = not os.path.exists(path)
        fd = os.open(path, flags, mode)
        self._paths[fd] = self._short(path)
        if flags & os.O_CREAT and new:
            self.operations.append(("create", self._short(path)))
        elif flags & os.O_TRUNC:
            self.operations.append(("truncate", self._short(path)))
        return fd

    def write(self, fd: int, data: bytes) -> int:
        self.operations.append(("write", self._paths[fd], bytes(data)))
        return os.write(fd, data)

    def ftruncate(self, fd: int, length: int) -> None:
        assert length == 0
        self.operations.append(("truncate", self._paths[fd]))
        os.ftruncate(fd, length)

    def fsync(self, fd: int) -> None:
        self.operations.append(("sync", self._paths[fd]))
        os.fsync(fd)

    def replace(self, source: str, target: str) -> None:
        self.operations.append(("rename", self._short(source), self._short(target)))
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self.operations.append(("unlink", self._short(path)))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self.operations.append(("mkdir", self._short(path)))

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self.root)


class File:
    def __init__(self, data: bytes = b"") -> None:
        self.data = self.synced = data


class Model:
    """Names now, and as they are on the disk for certain; each name has a file, or None for a directory."""

    def __init__(self, disk: dict[str, bytes | None]) -> None:
        self.names = {name: None if data is None else File(data) for name, data in disk.items()}
        self.certain = dict(self.names)

    def play(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("create", path):
                self.names[path] = File()
            case ("mkdir", path):
                self.names[path] = None
            case ("truncate", path):
                self._file(path).data = b""
            case ("write", path, data):
                self._file(path).data += data
            case ("rename", source, target):
                self.names[target] = self.names.pop(source)
            case ("unlink", path):
                del self.names[path]
            case ("sync", path):
                found = self.names.get(path)  # none for a directory
                if found is not None:
                    found.synced = found.data
                else:
                    inside = [
                        name for name in {*self.names, *self.certain} if os.path.dirname(name) == path.removeprefix(".")
                    ]
                    for name in inside:
                        self.certain.pop(name, None)
                        if name in self.names:
                            self.certain[name] = self.names[name]

    def _file(self, path: str) -> File:
        found = self.names[path]
        assert found is not None
        return found

    def disks(self) -> list[dict[str, bytes | None]]:
        """What may be found after a cut now."""
        found = []
        for names in (self.names, self.certain):
            for synced in (False, True):
                found.append(
                    {
                        name: None if file is None else file.synced if synced else file.data
                        for name, file in names.items()
                        if all(above in names for above in _above(name))
                    }
                )
        return found


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def write_disk(root: Path, disk: dict[str, bytes | None]) -> None:
    for name in sorted(disk):
        data = disk[name]
        if data is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


def read_disk(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def zipapp(version: str, *, library: bool = True) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("edgeagent/agentd.py", f"# {version}\n")
        if library:
            archive.writestr("edgeagent/engine/fast/libedgefast.so", b"\x7fELF" + version.encode())
    return buffer.getvalue()


def target_of(data: bytes) -> Target:
    return Target("edgeagent.pyz", len(data), sha256(data).digest(), {})


def install(directory: Path, data: bytes, version: str, rollout: int) -> None:
    writer = slotwriter.SlotWriter(str(directory))
    at = writer.begin(target_of(data))
    while at < len(data):
        writer.append(data[at : at + 100])
        at += 100
    assert writer.is_right(target_of(data))
    writer.finish(target_of(data), version, rollout, TRIAL_S)


def commit(directory: Path) -> None:
    choice = slots.read_choice(str(directory))
    assert choice is not None
    choice.commit()
    slots.write_choice(str(directory), choice)


def program(directory: Path, slot: str) -> bytes:
    return b"factory" if slot == slots.FACTORY else (directory / slot / slots.PROGRAM).read_bytes()


OLD, NEW = zipapp("0.1.0"), zipapp("0.2.0")


@pytest.mark.parametrize("before", ["factory", "slot"])
def test_old_or_new_after_a_cut_anywhere(before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lived = tmp_path / "lived"
    lived.mkdir()
    if before == "slot":
        install(lived / "slots", OLD, "0.1.0", 1)
        slots.pick(str(lived / "slots"), str(tmp_path / "run"))
        commit(lived / "slots")
    begin = read_disk(lived)
    recorder = Recorder(lived)
    for module in (durable, slotwriter, slots):
        monkeypatch.setattr(module, "os", recorder)
    install(lived / "slots", NEW, "0.2.0", 2)
    assert slots.pick(str(lived / "slots"), str(tmp_path / "run")).trial_s == TRIAL_S
    commit(lived / "slots")
    monkeypatch.undo()
    old = b"factory" if before == "factory" else OLD

    seen: dict[bytes, int] = {}
    disks: dict[tuple[tuple[str, bytes | None], ...], dict[str, bytes | None]] = {}
    for count in range(len(recorder.operations) + 1):
        cuts: list[tuple[Any, ...]] = [()]
        if count < len(recorder.operations) and recorder.operations[count][0] == "write":
            _, path, data = recorder.operations[count]
            cuts = [("write", path, data[:size]) for size in range(len(data))]
        for cut in cuts:
            model = Model(begin)
            for operation in recorder.operations[:count]:
                model.play(operation)
            if cut:
                model.play(cut)
            for disk in model.disks():
                disks[tuple(sorted(disk.items()))] = disk
    assert len(disks) > 500
    for number, disk in enumerate(disks.values()):
        root = tmp_path / str(number)
        root.mkdir()
        write_disk(root, disk)
        picked = slots.pick(str(root / "slots"), str(root / "run"))
        found = program(root / "slots", picked.slot)
        assert found in (old, NEW), (number, picked.slot, picked.why)
        assert picked.slot == slots.FACTORY or slots.check_slot(str(root / "slots"), picked.slot) == ""
        assert not picked.why, picked.why  # a cut is nothing that has to be mended
        seen[found] = seen.get(found, 0) + 1
        if number % 7 == 0:  # and the device gets there all the same
            install(root / "slots", NEW, "0.2.0", 2)
            again = slots.pick(str(root / "slots"), str(root / "run"))
            assert program(root / "slots", again.slot) == NEW
    assert set(seen) == {old, NEW}


@pytest.mark.parametrize("starts", [slots.TRIAL_STARTS])
def test_the_count_of_starts_survives_a_cut(starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the power is cut while starts are counted, the trial has an end."""
    directory = tmp_path / "slots"
    install(directory, NEW, "0.2.0", 2)
    for number in range(starts):
        before = read_disk(tmp_path)
        recorder = Recorder(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", recorder)
            assert slots.pick(str(directory), str(tmp_path / "run")).slot == "a"
        for count in range(len(recorder.operations) + 1):
            model = Model(before)
            for operation in recorder.operations[:count]:
                model.play(operation)
            for disk in model.disks():
                choice = slots.Choice.decode(disk["slots/choice"] or b"")
                assert number <= choice.starts <= number + 1
    assert slots.pick(str(directory), str(tmp_path / "run")).slot == slots.FACTORY
    choice = slots.read_choice(str(directory))
    assert choice is not None and choice.returned == (2, "0.2.0", "it was started 3 times and did not commit itself")
