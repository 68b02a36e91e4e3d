"""The running hub has signatures of updates renewed by another process, when half of their time is over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgeagent import crypto as providers
from hub import renewal, updates
from hub.renewal import Renewal
from hub.state import State
from hub.updates import Repository

ROOT = bytes(range(32))


def make(state: State, wall_s: int) -> Repository:
    with Repository(state.updates).writing() as repository:
        draft = repository.draft(wall_s, root_public=providers.load().ed25519_public(ROOT))
        updates.sign_draft(draft, ROOT)
        repository.install(draft, wall_s)
    return repository


def run(renewal: Renewal) -> None:
    """As long as its process takes."""
    renewal.tick(0.0)
    deadline = time.monotonic() + 60
    while renewal._child is not None:
        assert time.monotonic() < deadline
        renewal.tick(0.0)
        time.sleep(0.05)


def test_what_is_half_over_is_renewed_and_what_is_young_is_left(tmp_path: Path) -> None:
    state = State(tmp_path)
    run(Renewal(state))  # there is none
    now_s = int(time.time())
    repository = make(state, now_s - 5 * 86_400)
    before = {role.name: role.version for role in repository.read().roles}
    renewal = Renewal(state)
    assert renewal.is_due(now_s)
    run(renewal)
    after = {role.name: role.version for role in repository.read().roles}
    assert after == {**before, "timestamp": before["timestamp"] + 1} and not renewal.is_due(now_s)


def test_a_renewal_that_cannot_be_says_so_and_hangs_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path)
    repository = make(state, int(time.time()) - 5 * 86_400)
    (repository.keys / "timestamp.key").unlink()
    run(Renewal(state))
    assert "their signatures were not renewed" in caplog.text
    monkeypatch.setattr(renewal, "SLOW_S", -1.0)
    caplog.clear()
    run(Renewal(state))
    assert "their signatures were not renewed" in caplog.text
