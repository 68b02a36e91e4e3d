"""Reservations: who, since when and why; others are refused; what holds one may be killed, and it is free."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.errors import HilError, Reserved
from hil.rigs.reserve import BUSY, RESERVED, Lock, told, working

HOLD = """
import sys, time
from pathlib import Path
from hil.rigs.reserve import Lock
lock = Lock(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
lock.take(sys.argv[4])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def rig(tmp_path: Path) -> Path:
    path = tmp_path / "bench.yaml"
    path.touch()
    return path


class Holder:
    """Another process that has the rig."""

    def __init__(self, rig: Path, which: str, why: str) -> None:
        words = [sys.executable, "-c", HOLD, str(rig), which, str(rig.parent), why]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def holder(rig: Path) -> Iterator[Holder]:
    made = Holder(rig, RESERVED, "night run\x1b[31m")
    yield made
    made.kill()


def test_a_holder_is_named_and_its_death_frees_the_rig(rig: Path, holder: Holder) -> None:
    lock = Lock(rig, RESERVED, rig.parent)
    with pytest.raises(
        Reserved, match=rf"bench is taken: by \S+ \(process {holder.process.pid}\) since 20.*: night run\?"
    ):
        lock.take("mine")
    holder.kill()
    assert lock.holder() is None and told(None) == "free"
    lock.take("mine")
    found = lock.holder()
    assert found is not None and found["pid"] == os.getpid() and found["why"] == "mine"
    lock.drop()
    assert lock.holder() is None


def test_who_reserved_it_may_work_with_it_and_only_one_at_a_time(rig: Path, holder: Holder) -> None:
    with (
        working(rig, "suite", rig.parent),
        pytest.raises(Reserved, match=r"is taken: by .*: suite"),
        working(rig, "console", rig.parent),
    ):
        pytest.fail("two at once")
    with working(rig, "console", rig.parent):
        assert (Lock(rig, BUSY, rig.parent).holder() or {})["why"] == "console"


def test_a_reservation_of_another_user_is_refused_and_cannot_be_ended(
    rig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(rig, RESERVED, rig.parent)
    lock.take("theirs")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(Reserved, match=r"is reserved: by .*: theirs"), working(rig, "suite", rig.parent):
        pytest.fail("in spite of it")
    with pytest.raises(Reserved, match="is not yours"):
        lock.end()
    lock.drop()
    with pytest.raises(Reserved, match="is not reserved"):
        lock.end()


def test_release_ends_the_process_that_holds_it(rig: Path, holder: Holder) -> None:
    assert Lock(rig, RESERVED, rig.parent).end()["pid"] == holder.process.pid
    holder.process.wait(10)
    assert Lock(rig, RESERVED, rig.parent).holder() is None


def test_a_link_in_the_place_of_the_lock_is_not_followed(rig: Path) -> None:
    lock = Lock(rig, RESERVED, rig.parent)
    victim = rig.parent / "victim"
    victim.write_text("kept")
    lock.path.symlink_to(victim)
    with pytest.raises(HilError, match="Too many levels of symbolic links; EDGEHIL_LOCKS"):
        lock.take("mine")
    assert victim.read_text() == "kept"
