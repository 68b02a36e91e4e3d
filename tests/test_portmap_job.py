"""Jobs of UPnP as processes: what they say, what they take, and how they end."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from edgeagent.io import upnp, upnpjob
from edgeagent.io.upnp import UpnpWorker
from edgeagent.io.upnpjob import ROOM_BYTES
from edgeagent.proto.portmap_upnp import Done, Job, Outcome, UpnpFailure, Want

JOB = Job(Want.OPEN, ("eth0", bytes((192, 168, 1, 1)), bytes((192, 168, 1, 9)), 51820), 50_000)


def outcome_of(monkeypatch: pytest.MonkeyPatch, script: str) -> Outcome:
    """Of a job that runs `script`."""
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: name)
    worker = UpnpWorker()
    worker._command = [sys.executable, "-I", "-S", "-c", script]
    try:
        worker.start(JOB)
        select.select([worker.wake], [], [], 20.0)
        outcome = worker.result()
        assert outcome is not None
        return outcome
    finally:
        worker.wait(20.0)
        worker.close()


@pytest.mark.parametrize(
    ("said", "outcome"),
    [("no-router", UpnpFailure.NO_ROUTER), ("port-taken", UpnpFailure.PORT_TAKEN), ("", UpnpFailure.REFUSED),
     ("done nowhere", UpnpFailure.REFUSED), ("x" * 10_000, UpnpFailure.REFUSED)],
    ids=["no router", "taken", "nothing", "no address", "too much"],
)  # fmt: skip
def test_what_a_job_says(monkeypatch: pytest.MonkeyPatch, said: str, outcome: UpnpFailure) -> None:
    assert outcome_of(monkeypatch, f"print({said!r}, end='')") is outcome


def test_a_job_knows_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["open", "192.168.1.1", "192.168.1.9", "51820", "50000", "3600"]
    outcome = outcome_of(monkeypatch, f"import sys; sys.argv[1:] == {words!r} and print('done 203.0.113.9', end='')")
    assert isinstance(outcome, Done) and outcome.address == bytes((203, 0, 113, 9))


def test_a_job_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "JOB_TIMEOUT_S", 0.05)
    before = len(os.listdir("/proc/self/fd"))
    assert outcome_of(monkeypatch, "import time; time.sleep(600)") is UpnpFailure.REFUSED
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_started_where_there_is_no_miniupnpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "posix_spawn", lambda *args, **more: pytest.fail("started"))
    worker = UpnpWorker()
    worker.start(JOB)
    assert worker.wait(20.0) and worker.result() is UpnpFailure.NOT_INSTALLED
    worker.close()


def test_a_job_has_so_much_memory_and_not_more() -> None:
    directory = str(Path(upnpjob.__file__).parent)
    eat = f"confine(); small = bytearray({ROOM_BYTES // 4}); large = bytearray({2 * ROOM_BYTES})"
    script = f"import sys; sys.path.insert(0, {directory!r}); from upnpjob import confine; {eat}"
    words = [sys.executable, "-I", "-S", "-c", script]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode != 0 and "MemoryError" in ended.stderr, ended.stderr
