"""The ceiling on the process: what it is, how it is set, and that what it costs is input."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import ceiling, daemon
from edgeagent.ceiling import Ceiling, describe, own_group, set_high
from edgeagent.config import load
from edgeagent.daemon import Agent
from tests.agent.test_cli import Cli, cli  # noqa: F401  a fixture

MIB = 1 << 20


def made(**given: str) -> Ceiling:
    return Ceiling(load({name.replace("_", "-"): value for name, value in given.items()}, {}))


def test_it_is_what_the_settings_say() -> None:
    assert [made(memory_profile=each).kib for each in ("small", "normal", "large")] == [30 << 10, 40 << 10, 64 << 10]
    assert made(memory_ceiling="77").kib == 77 << 10
    assert made(memory_ceiling="off").kib is None


# Two processes of their own: a limit that was lowered stays so where the hard one is, and heaps are nobody else's.
TRIAL = """
import sys
from edgeagent.ceiling import Ceiling, process
from edgeagent.config import load
kept = Ceiling(load({"memory-ceiling": sys.argv[1]}, {}))
kept.enforce()
heap = []
try:
    while len(heap) < 400:
        heap.append(bytearray(b"x" * (1 << 20)))
except MemoryError:
    rss_kib = process()["rss_kib"]
    room = kept.hit()
    heap.clear()
    print(kept.kib, rss_kib, kept.hits, room)
else:
    print("no end")
"""


@pytest.mark.parametrize("mib", [20, 60])
def test_the_resident_set_stays_below_it_and_what_is_too_much_is_a_memory_error(mib: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(mib)], capture_output=True, text=True, timeout=60, check=True
    )
    kib, rss_kib, hits, room = done.stdout.split()
    assert (int(kib), hits, room) == (mib << 10, "1", "True")
    assert int(rss_kib) <= int(kib)
    assert int(rss_kib) > int(kib) - 6 * 1024  # nor far below: libraries' own data is counted on both sides


def test_one_that_is_too_low_is_raised_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    monkeypatch.setattr(ceiling, "own_group", lambda: None)
    kept = made(memory_ceiling="20")
    now = {"rss_kib": 60_000, "rss_peak_kib": 60_000, "data_kib": 50_000, "file_kib": 10_000}
    monkeypatch.setattr(ceiling, "process", lambda: now)
    kept.enforce()
    assert kept.kib == 61_024 and limits[0][0] == 51_024 * 1024
    assert "raised to 59.6 MiB" in caplog.text


def test_where_proc_says_nothing_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "process", dict)
    kept = made()
    kept.enforce()
    assert kept.kib is None


class Group:
    """A control group as its files show it."""

    def __init__(self, root: Path, *, version: int, path: str = "/system/edgeagent", **files: str) -> None:
        self.root = root
        base = root / "memory" if version == 1 else root
        folder = base / path.lstrip("/")
        folder.mkdir(parents=True)
        names = ("memory.usage_in_bytes", "memory.limit_in_bytes") if version == 1 else ("memory.current", "memory.max")
        for each in (folder, folder.parent):
            (each / names[0]).write_text(f"{30 * MIB}\n")
            (each / names[1]).write_text("9223372036854771712\n" if version == 1 else "max\n")
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text)
        self.limit = folder.parent / names[1]
        self.folder = str(folder)
        self.listed = str(root / "listed")
        (root / "listed").write_text(f"5:cpu:/other\n4:memory:{path}\n0::/none\n" if version == 1 else f"0::{path}\n")

    def own(self) -> str | None:
        return own_group(str(self.root), self.listed)


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_limit_of_a_group_and_those_above_it_counts(tmp_path: Path, version: int) -> None:
    group = Group(tmp_path, version=version)
    assert group.own() == group.folder
    found = describe(group.own())
    assert found == {"path": group.folder, "usage_kib": 30 << 10, "limit_kib": None, "high_kib": None}
    group.limit.write_text(f"{64 * MIB}\n")
    found = describe(group.own())
    assert found is not None and found["limit_kib"] == 64 << 10


def test_none_to_be_seen_is_none(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text("0::/gone\nnonsense\n")
    assert own_group(str(tmp_path), str(tmp_path / "listed")) is None
    assert own_group(str(tmp_path), str(tmp_path / "missing")) is None
    assert describe(None) is None


def test_only_a_group_of_our_own_that_nobody_bounded_is_bounded(tmp_path: Path) -> None:
    us = f"{os.getpid()}\n"
    cases = [(us, "max\n", True), (f"1\n{us}", "max\n", False), (us, "5\n", False)]
    for number, (procs, high, done) in enumerate(cases):
        root = tmp_path / str(number)
        root.mkdir()
        group = Group(root, version=2, memory_high=high)
        (Path(group.folder) / "cgroup.procs").write_text(procs)
        assert set_high(group.folder, 40 * MIB) is done
        assert (Path(group.folder) / "memory.high").read_text().strip() == (str(40 * MIB) if done else high.strip())
    assert set_high(str(tmp_path / "nowhere"), 1) is False


def agent_that(monkeypatch: pytest.MonkeyPatch, turns: Sequence[BaseException | None]) -> tuple[Any, list[float]]:
    """A loop whose turns end like that, then stops."""
    agent: Any = Agent.__new__(Agent)
    agent.context = SimpleNamespace(ceiling=made())
    agent._stopping = False
    agent._deadline = lambda: None
    agent._farewell = lambda: None
    agent._crash_path = "/nonexistent/crash"
    pauses: list[float] = []
    monkeypatch.setattr(daemon, "sleep", pauses.append)
    monkeypatch.setattr(ceiling, "gc", SimpleNamespace(collect=lambda: 0))  # of a test run's heap: half a second
    left = iter(turns)

    def turn(_deadline: float | None) -> None:
        end = next(left, StopIteration)
        if end is StopIteration:
            agent._stopping = True
        elif end is not None:
            raise end

    agent._turn = turn
    return agent, pauses


def test_a_turn_that_finds_no_memory_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [MemoryError(), OSError(errno.ENOMEM, "no memory"), None] * 60  # more in all than would be too many in a row
    agent, pauses = agent_that(monkeypatch, bad)
    agent.loop()
    assert agent.context.ceiling.hits == 120 and len(pauses) == 120
    assert "input dropped, 64 times" in caplog.text and "63 times" not in caplog.text


def test_other_errors_of_the_system_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _ = agent_that(monkeypatch, [OSError(errno.EIO, "broken")])
    with pytest.raises(OSError, match="broken"):
        agent.loop()
    assert agent.context.ceiling.hits == 0


def test_without_any_memory_it_ends_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _ = agent_that(monkeypatch, [MemoryError()] * (ceiling.HITS_IN_A_ROW_MAX + 1))
    with pytest.raises(MemoryError):
        agent.loop()
    assert agent.context.ceiling.hits == ceiling.HITS_IN_A_ROW_MAX


# The agent as it is, but for one request more: it wants so many MiB.
HOG = """
import sys
from edgeagent import daemon, requests
from edgeagent.config import load
def hog(now, agent, client, request):
    kept = [bytearray(b"x" * (1 << 20)) for _ in range(request["mib"])]
    client.answer(len(kept))
requests._VERBS["hog"] = hog
sys.exit(daemon.run(load({}), None, None))
"""


def test_an_agent_that_reaches_its_ceiling_lives_and_answers_again(cli: Cli) -> None:  # noqa: F811
    path = cli.environ["EDGEAGENT_SOCKET"]
    agent = subprocess.Popen(
        [sys.executable, "-c", HOG], env=cli.environ | {"EDGEAGENT_MEMORY_CEILING": "60"}, stderr=subprocess.PIPE
    )
    try:
        until(lambda: resource.prlimit(agent.pid, resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY)
        assert ask(path, do="hog", mib=5) == {"ok": True, "result": 5}
        for _ in range(3):
            assert ask(path, do="hog", mib=200) is None  # nothing but the request is lost
        assert ask(path, do="hog", mib=5) == {"ok": True, "result": 5}
        status = json.loads(cli("status", "--json").stdout)["agent"]
        assert (status["pid"], status["ceiling_kib"], status["ceiling_hits"] >= 3) == (agent.pid, 60 << 10, True)
        usage = json.loads(cli("status", "--memory", "--json").stdout)["process"]
        assert usage["hits"] == status["ceiling_hits"]
        assert usage["rss_peak_kib"] <= usage["ceiling_kib"] == 60 << 10
        text = cli("status", "--memory").stdout
        assert "of 60.0 MiB" in text and "input dropped at the ceiling" in text and "log lines" in text
        assert "input dropped for want of it" in cli("status").stdout
        assert agent.poll() is None
    finally:
        agent.terminate()
        said = agent.communicate(timeout=20)[1].decode()
    assert agent.returncode == 0
    assert "the memory ceiling was reached, and input dropped, 1 times" in said


def until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ask(path: str, **request: Any) -> dict[str, Any] | None:
    """The answer; None where the connection ends without one."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20.0)
        client.connect(path)
        client.sendall(json.dumps(request).encode() + b"\n")
        data = client.recv(4096)
    answer: dict[str, Any] | None = json.loads(data) if data else None
    return answer
