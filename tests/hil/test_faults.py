"""Recorded writes and what power cuts make of them: the log's format, the order of cuts, disks, and the rule."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from edgeagent import slots
from edgeagent.io.keystore import Keystore, StateFile
from hil.faults import disk
from hil.faults.disk import Found
from hil.faults.powercut import choose
from hil.faults.rule import Rule
from hil.faults.writelog import DISCARD, FLUSH, FUA, MAGIC, Cut, Disk, LogDamaged, Write, WriteLog, cuts

ROOT = Path(__file__).parents[2]
WHOLE = {"identity": "aa", "admission": "bb"}


def a_log(path: Path, *entries: tuple[int, bytes, int], sector: int = 512, count: int | None = None) -> Path:
    parts = [struct.pack("<QQQI", MAGIC, 1, len(entries) if count is None else count, sector).ljust(sector, b"\0")]
    for at, data, flags in entries:
        parts.append(struct.pack("<QQQQ", at // sector, len(data) // sector, flags, 0).ljust(sector, b"\0"))
        parts.append(b"" if flags & DISCARD else data)
    path.write_bytes(b"".join(parts))
    return path


def test_a_log_is_read(tmp_path: Path) -> None:
    log = WriteLog(a_log(tmp_path / "log", (0, b"a" * 1024, 0), (0, b"", FLUSH), (4096, b"b" * 512, FUA)))
    assert [(each.at, each.size, each.flags) for each in log.writes] == [(0, 1024, 0), (0, 0, FLUSH), (4096, 512, FUA)]
    with log.path.open("rb") as file:
        assert log.data(file, log.writes[2]) == b"b" * 512


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 4096),
        lambda path: a_log(path, (0, b"a" * 512, 0), count=3),
        lambda path: a_log(path, (0, b"a" * 512, 0), count=1 << 40),
        lambda path: path.write_bytes(
            struct.pack("<QQQI", MAGIC, 1, 1, 512).ljust(512, b"\0") + struct.pack("<QQQQ", 0, 1 << 40, 0, 0)
        ),
    ],
    ids=["empty", "foreign", "short", "endless", "huge write"],
)
def test_a_log_that_is_none_is_refused(tmp_path: Path, damage: object) -> None:
    damage(tmp_path / "log")  # type: ignore[operator]
    with pytest.raises(LogDamaged):
        WriteLog(tmp_path / "log")


def test_cuts_are_each_prefix_and_some_that_a_cache_may_leave() -> None:
    writes = [Write(0, 512, 0, 0), Write(512, 512, 0, 0), Write(0, 0, FLUSH, 0), Write(0, 512, 0, 0)]
    made = cuts(writes, 1, strays=0)
    assert made == [Cut(0, ()), Cut(0, (0,)), Cut(0, (0, 1)), Cut(2, ()), Cut(2, (3,))]
    strays = set(cuts(writes, 1, strays=20)) - set(made)
    assert strays == {Cut(0, (1,))}  # and (), which is the first prefix
    forced = [Write(0, 512, 0, 0), Write(512, 512, FUA, 0), Write(1024, 512, 0, 0)]
    assert all(1 in cut.some for cut in cuts(forced, 1, strays=20)[3:])  # what was forced is there


def test_of_too_many_cuts_those_stay_that_the_rule_goes_by() -> None:
    made = cuts([Write(512 * at, 512, FLUSH if at % 3 == 2 else 0, 0) for at in range(60)], 1, strays=0)
    few = choose(made, 10)
    assert [cut for cut in few if not cut.some] == [cut for cut in made if not cut.some]
    assert 0 < len([cut for cut in few if cut.some]) <= 10 and few == sorted(few, key=made.index)
    assert choose(made, len(made)) == made


def test_a_disk_is_cut_and_taken_back(tmp_path: Path) -> None:
    log = WriteLog(
        a_log(
            tmp_path / "log",
            (0, b"a" * 512, 0),
            (512, b"b" * 512, 0),
            (0, b"", FLUSH),
            (0, b"c" * 512, 0),
            (0, b"d" * 512, 0),
        )
    )
    image = tmp_path / "image"
    image.write_bytes(bytes(1024))
    made = Disk(image, log)
    expected = {
        Cut(0, ()): (0, 0),
        Cut(0, (1,)): (0, ord("b")),
        Cut(0, (0, 1)): (ord("a"), ord("b")),
        Cut(2, (3,)): (ord("c"), ord("b")),
        Cut(2, (4,)): (ord("d"), ord("b")),
        Cut(2, (3, 4)): (ord("d"), ord("b")),
        Cut(2, ()): (ord("a"), ord("b")),
    }
    for cut, (first, second) in expected.items():
        made.make(cut)
        data = image.read_bytes()
        assert (data[0], data[512]) == (first, second), cut
    with pytest.raises(ValueError, match="order"):
        made.make(Cut(0, ()))


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="no qemu-io (package qemu-utils)")
def test_what_qemu_writes_is_read(tmp_path: Path) -> None:
    image, log = tmp_path / "image", tmp_path / "log"
    image.write_bytes(bytes(1 << 20))
    log.write_bytes(b"")
    options = f"driver=blklogwrites,file.driver=file,file.filename={image},log.driver=file,log.filename={log}"
    words = ["qemu-io", "--image-opts", options]
    for request in ("write -P 0x11 0 4k", "flush", "write -P 0x22 8k 512", "discard 32k 4k", "write -z 0 512", "flush"):
        words += ["-c", request]
    subprocess.run(words, check=True, capture_output=True)
    read = WriteLog(log)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(bytes(1 << 20))
    made = Disk(fresh, read)
    made.make(Cut(len(read.writes), ()))
    assert fresh.read_bytes() == image.read_bytes()
    assert image.read_bytes()[8192] == 0x22
    assert any(each.flags & FLUSH for each in read.writes)


def test_a_state_is_read_from_a_disk_that_was_not_unmounted(tmp_path: Path) -> None:
    state = tmp_path / "root" / disk.STATE.lstrip("/")
    state.mkdir(parents=True)
    (state / "identity").write_bytes(b"torn")
    image = tmp_path / "image"
    subprocess.run(["truncate", "-s", "16M", image], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tmp_path / "root", image], check=True)
    before = image.read_bytes()
    there = disk.mounted(image, tmp_path / "state", tmp_path / "undo")
    assert (there / "identity").read_bytes() == b"torn"
    assert image.read_bytes() == before
    [found] = disk.look(ROOT, [there])
    assert found == Found({"identity": disk.DAMAGED}, "factory", "", "", "")


def judge(*found: tuple[Cut, Found]) -> list[str]:
    rule = Rule({"", "0.9.0"})
    for cut, each in found:
        rule.judge(cut, each)
    return rule.faults


def test_the_rule_names_what_a_cut_has_lost() -> None:
    good = Found(WHOLE, "factory", "", "", "")
    assert judge((Cut(0, ()), good), (Cut(0, (1,)), good._replace(slot="a", version="0.9.0"))) == []
    lost = Found({"identity": "aa"}, "factory", "", "", "")
    assert "admission is missing" in judge((Cut(0, ()), good), (Cut(0, (1,)), lost))[0]
    assert (
        judge((Cut(0, ()), Found({}, "factory", "", "", "")), (Cut(0, (1,)), lost)) == []
    )  # it was not there for sure
    assert "damaged" in judge((Cut(0, ()), good._replace(files={**WHOLE, "cache": disk.DAMAGED})))[0]
    assert "slot a" in judge((Cut(0, ()), good._replace(slot="a", fault="slot a: damaged", version="0.9.0")))[0]
    assert "'0.9.1' would start" in judge((Cut(0, ()), good._replace(slot="a", version="0.9.1")))[0]


def test_the_rule_names_what_a_cut_has_taken_back() -> None:
    def state(cache: str, **more: str) -> Found:
        return Found({**WHOLE, "cache": cache, **more}, "factory", "", "", "")

    first, second, third = state("1"), state("2"), state("3")
    sure = [(Cut(0, ()), first), (Cut(0, (0,)), first), (Cut(0, (0, 1)), second), (Cut(0, (1,)), first)]
    assert judge(*sure, (Cut(2, ()), second), (Cut(2, (2,)), third), (Cut(2, (3,)), second)) == []
    [said] = judge(*sure, (Cut(2, ()), second), (Cut(2, (2, 3)), third), (Cut(2, (3,)), first))
    assert said == "write 3, 1 since the last flush: cache is as it was before what is on the disk for sure"
    # What was never there for sure, but was written before what is, is older too.
    between = [(Cut(0, ()), first), (Cut(0, (0,)), second), (Cut(0, (0, 1)), third), (Cut(2, ()), third)]
    assert "cache" in judge(*between, (Cut(2, (2,)), second))[0]
    assert "cache" in judge(*between, (Cut(2, ()), first))[0], "a rollback that is on the disk for sure"
    assert judge(*between, (Cut(2, (2,)), state("4")), (Cut(3, ()), state("5"))) == []
    taken_back = [(Cut(0, ()), state("1", routing="a")), (Cut(1, ()), state("1", routing="b"))]
    assert judge(*taken_back, (Cut(1, (2,)), state("1", routing="a"))) == []


def test_the_rule_names_a_clock_that_went_back_and_a_commit_that_was_forgotten() -> None:
    good = Found(WHOLE, "factory", "", "", "", clock=(7_000, 50))
    assert judge((Cut(0, ()), good), (Cut(0, (1,)), good._replace(clock=(9_000, 50)))) == []
    for clock in ((6_999, 50), (7_000, 49), (0, 0)):
        assert "the clock went back" in judge((Cut(0, ()), good), (Cut(0, (1,)), good._replace(clock=clock)))[0]
    assert judge((Cut(0, (1,)), good), (Cut(0, (2,)), good._replace(clock=(1, 1)))) == [], "it was not there for sure"
    trial = good._replace(slot="a", version="0.9.0")
    assert judge((Cut(0, ()), trial), (Cut(0, (1,)), good)) == [], "a trial may end"
    committed = trial._replace(committed="0.9.0")
    assert judge((Cut(0, ()), good), (Cut(0, (1,)), committed), (Cut(0, (0,)), good), (Cut(2, ()), committed)) == []
    assert "'0.9.0' was committed" in judge((Cut(0, ()), committed), (Cut(0, (1,)), good))[0]


def test_a_clock_and_a_commit_are_read_from_a_state(tmp_path: Path) -> None:
    keys = Keystore(str(tmp_path))
    keys.open()
    keys.save(StateFile.CLOCK, (5).to_bytes(8, "big") + (6).to_bytes(8, "big"))
    keys.close()
    directory = slots.directory_of(str(tmp_path))
    program = b"an agent"
    (Path(directory) / "a").mkdir(parents=True)
    (Path(directory) / "a" / slots.PROGRAM).write_bytes(program)
    files = {slots.PROGRAM: [len(program), sha256(program).hexdigest()]}
    (Path(directory) / "a" / slots.MANIFEST).write_text(json.dumps({"version": "0.9.0", "files": files}))
    choice = slots.Choice()
    choice.begin_trial("a", 1, "0.9.0", 60)
    slots.write_choice(directory, choice)
    [found] = disk.look(ROOT, [tmp_path])
    assert (found.clock, found.version, found.committed, found.fault) == ((5, 6), "0.9.0", "", "")
    choice.commit()
    slots.write_choice(directory, choice)
    [found] = disk.look(ROOT, [tmp_path])
    assert (found.version, found.committed) == ("0.9.0", "0.9.0")
