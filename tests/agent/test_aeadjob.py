"""Which AEAD an agent starts with, and that it measures beside its work when it does not know."""

from __future__ import annotations

import os
from pathlib import Path
from selectors import DefaultSelector
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import aeadjob
from edgeagent.aeadjob import AeadJob, recall
from edgeagent.engine import bakeoff
from edgeagent.engine.bakeoff import BATCHES, SIZES, Row
from edgeagent.engine.fast import library
from edgeagent.io.keystore import Keystore, StateFile


@pytest.fixture
def context(tmp_path: Path) -> Any:
    keystore = Keystore(str(tmp_path / "state"))
    keystore.open()
    selector = DefaultSelector()
    context = SimpleNamespace(selector=selector, load_or_none=keystore.load, save=keystore.save, keystore=keystore)
    yield context
    assert not selector.get_map()
    selector.close()
    keystore.close()


def turn(context: Any, job: AeadJob) -> None:
    due = job.poll_timeout()
    wait_s = 5.0 if due is None else max(0.0, min(5.0, due - monotonic()))
    for key, _ in context.selector.select(wait_s):
        key.data(monotonic(), key.fd)
    job.on_timeout(monotonic())


def rows(**ps: int) -> list[Row]:
    cells = [(size, batch) for size in SIZES for batch in BATCHES]
    return [Row(name.replace("_", "-"), "1", "", dict.fromkeys(cells, cost)) for name, cost in ps.items()]


def test_what_was_measured_is_used_and_what_does_not_hold_is_not(context: Any, tmp_path: Path) -> None:
    path = tmp_path / "libedgefast.so"
    path.write_bytes(b"one")
    assert recall(context, str(path)) is None
    context.save(StateFile.AEAD, bakeoff.dump(rows(portable=9, lanes_128=3), bakeoff.fingerprint(str(path))))
    assert recall(context, str(path)) == ("lanes-128", "lanes-128")
    path.write_bytes(b"another")
    assert recall(context, str(path)) is None
    context.save(StateFile.AEAD, b"damage inside a good file")
    assert recall(context, str(path)) is None


def test_it_measures_in_another_process_and_keeps_the_result(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.path()
    if path is None:
        pytest.skip(library.why_missing())
    monkeypatch.setattr(aeadjob, "BEGIN_AFTER_S", 0.0)
    job = AeadJob(monotonic(), context, path)
    longest_s, deadline = 0.0, monotonic() + 30
    while job.poll_timeout() is not None:
        began = monotonic()
        job.on_timeout(began)
        for key, _ in context.selector.select(0):
            key.data(monotonic(), key.fd)
        longest_s = max(longest_s, monotonic() - began)
        assert began < deadline
        context.selector.select(0.01)
    assert longest_s < 0.2  # nothing waits for the measurement
    small_large = recall(context, path)
    assert small_large is not None and set(small_large) <= set(bakeoff.MEASURED)


def test_one_that_hangs_is_killed_and_nothing_is_kept(
    context: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(aeadjob, "BEGIN_AFTER_S", 0.0)
    monkeypatch.setattr(bakeoff, "QUIET_S_MAX", 0.1)
    children: list[int] = []

    def sleeper(_library: str, _cell_ms: int, _names: list[str]) -> tuple[int, int]:
        reading, writing = os.pipe()
        children.append(os.posix_spawn("/bin/sleep", ["sleep", "60"], {}))
        held.append(writing)
        return children[-1], reading

    held: list[int] = []
    monkeypatch.setattr(bakeoff, "_spawn", sleeper)
    job = AeadJob(monotonic(), context, str(tmp_path / "none.so"))
    while job.poll_timeout() is not None:
        turn(context, job)
    assert len(children) == 1  # it said nothing, so it is not a provider's fault
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], os.WNOHANG)
    assert context.keystore.load(StateFile.AEAD) is None
    for fd in held:
        os.close(fd)


def test_closed_while_it_measures_it_leaves_nothing(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library.path()
    if path is None:
        pytest.skip(library.why_missing())
    monkeypatch.setattr(aeadjob, "BEGIN_AFTER_S", 0.0)
    job = AeadJob(monotonic(), context, path)
    job.on_timeout(monotonic())
    assert len(context.selector.get_map()) == 1
    job.close()
    assert job.poll_timeout() is None and context.keystore.load(StateFile.AEAD) is None
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
