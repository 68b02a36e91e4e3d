"""The registrar's thread: nothing that goes wrong in it ends it, and if it ends the relay notices."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import cli, registrar
from relay.hub_session import Leave
from relay.registrar import ORDERS_PER_TURN, Registrar, RegistrarDied
from tests.hub.rig import wait_until
from tests.relay import kit


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registrar]:
    monkeypatch.setattr(registrar, "FAULT_PAUSE_S", 0.0)
    registered = Registrar(
        directory=str(tmp_path),
        networks=[],
        tokens={},
        crypto=kit.CRYPTO,
        host="relay",
        relay_key=kit.RELAY_KEY,
        version="0",
    )
    registered.open()
    yield registered
    registered.stop()
    registered.close()


@pytest.mark.parametrize("part", ["on_timeout", "take", "poll_timeout"])
def test_a_bug_in_a_turn_does_not_end_the_thread(made: Registrar, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    again = threading.Event()
    calls = 0

    def broken(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            monkeypatch.undo()
            again.set()
        raise OSError("no more descriptors")

    monkeypatch.setattr(made._neighbours, part, broken)
    made.start()
    made.tell({})
    assert again.wait(20)
    made.check()


def test_orders_are_taken_some_at_a_time(made: Registrar) -> None:
    """Twenty thousand removals at once, each a signature, would hold up every member."""

    def readable() -> bool:
        return bool(select.select([made.fileno()], [], [], 0)[0])

    made._orders.extend(Leave(str(n)) for n in range(2 * ORDERS_PER_TURN + 1))
    assert not readable()
    got = made.take()
    assert len(got) == ORDERS_PER_TURN and readable()
    got += made.take()
    assert readable()
    got += made.take()
    assert not readable() and made.take() == []
    assert [order.network for order in got if isinstance(order, Leave)] == [str(n) for n in range(len(got))]


def test_a_thread_that_ended_is_noticed(made: Registrar) -> None:
    made._thread = threading.Thread(target=lambda: None)
    made.start()
    wait_until(lambda: not made._thread.is_alive(), "its end", lambda: time.sleep(0.01))
    with pytest.raises(RegistrarDied):
        made.check()


def test_a_relay_whose_registrar_ended_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def __init__(self, *_: object) -> None:
            pass

        def open(self) -> None:
            pass

        def run(self, ready: object) -> None:
            raise RegistrarDied("it has ended")

    monkeypatch.setattr(cli, "load", lambda *_: type("S", (), {"id": "r"}))
    monkeypatch.setattr(cli, "Relay", Dead)
    assert cli.main(["serve"]) == cli.FAILED
