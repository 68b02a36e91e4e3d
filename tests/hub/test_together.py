"""Hubs side by side on one PostgreSQL database and one broker: one leads, and any of them may be killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from edgeagent.proto import topics
from edgeagent.proto.token import Token
from hub.core.events import Webhook
from hub.core.model import HubError, Op, Outgoing
from hub.database import open_database
from hub.moving import attach
from hub.standby import lost
from hub.state import State
from hub.store import hooks
from hub.store.lead import Member
from hub.store.postgres import LeadLost, PostgresStore
from hub.store.schema import delivery
from tests.hub.kit import Dev, load_crypto, make_network, make_postgres, seeded
from tests.hub.postgres import PostgresServer
from tests.hub.rig import Client, Rig
from tests.hub.rig import wait_until as wait_for
from tests.hub.test_external import ExternalRig

pytestmark = pytest.mark.long

needs_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto"
)
JOINS, BATCHES = 24, 4
ASKS, ASKS_AT_ONCE = 64, 16

wait_until = partial(wait_for, deadline_s=90.0)  # three hubs start at once, again and again


class Together:
    """Three hubs, each with a state directory of its own as on three machines."""

    def __init__(self, directory: Path, url: str) -> None:
        first = ExternalRig(directory, url)
        self.hubs: list[Rig] = [first]
        self.store = PostgresStore(url)
        self.broker = first.start_broker(directory / "theirs")
        for name in ("second", "third"):
            other = object.__new__(ExternalRig)
            other.__dict__.update(first.__dict__, state=State(directory / name), log=directory / f"{name}.log")
            attach(other.state, url)
            self.hubs.append(other)
        self._seeds = itertools.count(10)

    def run(self) -> None:
        """All three, whatever became of them."""
        for hub in self.hubs:
            if hub.process is None or hub.process.poll() is not None:
                hub.launch()
        self.wait_ready()

    def devices(self, token: Token, count: int) -> list[Dev]:
        """None of which was here before."""
        first = next(self._seeds) * 100
        return [Dev(self.first, seed, token, f"n{seed}") for seed in range(first, first + count)]

    @property
    def first(self) -> Rig:
        """Commands work on any of them."""
        return self.hubs[0]

    def members(self) -> list[Member]:
        found = self.store.members()
        assert sum(member.leads for member in found) <= 1
        return found

    def leader(self) -> Rig | None:
        """The hub that leads and is connected to the broker."""
        pids = {int(member.name.split()[1]) for member in self.members() if member.leads}
        for hub in self.hubs:
            status = hub.state.read_status()
            if hub.process is not None and hub.process.pid in pids and status.get("pid") in pids:
                return hub if status.get("role") == "leader" and status["connected"] else None
        return None

    def leading(self) -> Rig:
        wait_until(lambda: self.leader() is not None, "a hub that leads")
        leader = self.leader()
        assert leader is not None
        return leader

    def waiting(self) -> Rig:
        """One that does not lead."""
        leader = self.leading()
        return next(hub for hub in self.hubs if hub is not leader)

    def wait_ready(self) -> None:
        wait_until(lambda: self.leader() is not None and len(self.members()) == len(self.hubs), "three hubs, one leads")

    def kill(self, hub: Rig) -> None:
        hub.kill()
        hub.launch()

    def close(self) -> None:
        for hub in self.hubs:
            if hub.process is not None and hub.process.poll() is None:
                hub.process.send_signal(signal.SIGCONT)
            hub.end()
        self.broker.stop()
        self.store.close()


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, postgres_tables: str
) -> Iterator[Together]:
    url = postgres_server.url(postgres_server.database(postgres_tables))
    with contextlib.closing(Together(tmp_path_factory.mktemp("together"), url)) as made:
        yield made


@pytest.fixture
def together(three: Together) -> Together:
    three.run()
    return three


@needs_mosquitto
def test_no_join_is_lost_and_none_counts_twice(together: Together) -> None:
    rig = together.first
    hook = Webhook("h", "http://127.0.0.1:9/", "secret", ("device.joined",), 1)
    with together.store.write() as tx:
        hooks.add(tx.connection, hook)
    token = rig.token("--uses", str(JOINS))
    rig.wait_settled()
    devices = {device.id: device for device in together.devices(token, JOINS)}
    answers: dict[str, set[bytes]] = {device_id: set() for device_id in devices}

    def turn() -> None:
        claim.turn()
        for topic, payload, _ in claim.take():
            parts = topics.parse(topic)
            assert parts is not None
            devices[parts.leaf].read([Outgoing(Op.PUBLISH, topic, payload)])
            answers[parts.leaf].add(payload)

    def answered() -> int:
        return sum(map(bool, answers.values()))

    with rig.client(token.claim, token.password(rig.crypto), "them all") as claim:
        assert claim.subscribe(topics.admit(rig.network.id, token.claim, "+"))
        waiting = list(devices.values())
        for number in range(BATCHES):
            batch, waiting = waiting[: JOINS // BATCHES], waiting[JOINS // BATCHES :]
            before = answered()
            for device in batch:
                claim.publish(*device.join())
            wait_until(lambda before=before: answered() > before, "the first answer", turn)  # type: ignore[misc]
            together.kill(together.waiting() if number == 1 else together.leading())
        wait_until(lambda: answered() == JOINS, "all answers", turn)
    assert all(device.answers[0].get("ok") for device in devices.values())
    maps = [device.map.body for device in devices.values() if device.map]
    assert len({body["addrs"][0] for body in maps}) == len({body["name"] for body in maps}) == JOINS
    assert rig.json("token", "list")[0]["used"] == JOINS
    together.wait_ready()
    rig.wait_settled()
    for device in devices.values():
        with rig.client(device.id, device.identity.password) as client:
            assert client.code == 0
    with together.store.write() as tx:
        told = list(tx.connection.execute(select(delivery.c.body)).scalars())
        hooks.drop(tx.connection, hook.id)
    assert len(told) == len(set(told)) == JOINS, "each join is an event once"


def asked(together: Together, kill: Any) -> None:
    """Two devices, one of which asks for the other again and again; `kill` is called in the middle."""
    rig = together.first
    token = rig.token("--uses", "2")
    asker, other = together.devices(token, 2)
    with rig.client(token.claim, token.password(rig.crypto)) as claim:
        claim.subscribe(topics.admit(rig.network.id, token.claim, "+"))
        for device in (asker, other):
            claim.publish(*device.join())
            device.read(
                [Outgoing(Op.PUBLISH, admit := topics.admit(asker.net, token.claim, device.id), claim.expect(admit))]
            )
    answers: dict[int, set[bytes]] = {}

    def turn() -> None:
        client.turn()
        for topic, payload, _ in client.take():
            for kind, body in asker.read([Outgoing(Op.PUBLISH, topic, payload)]):
                if kind == "rec" and "id" in body:
                    assert "no" not in body
                    answers.setdefault(body["id"], set()).add(payload)

    rig.wait_settled()
    with rig.client(asker.id, asker.identity.password) as client:
        assert client.subscribe(f"em1/{asker.net}/{asker.id}/d/#")
        asks: list[int] = []
        while len(asks) < ASKS:
            asks.append(asker.seq + 1)
            client.publish(*asker.ask(h=other.name))
            if len(asks) == ASKS // 2:
                wait_until(lambda: bool(answers), "the first answer", turn)
                kill(client)
            wait_until(lambda: len(asks) - len(answers) < ASKS_AT_ONCE, "answers to most", turn)
        wait_until(lambda: len(answers) == ASKS, "all answers", turn)
        assert sorted(answers) == asks
        assert all(len(payloads) == 1 for payloads in answers.values()), "each was answered once"


@needs_mosquitto
@pytest.mark.parametrize("which", ["leading", pytest.param("waiting", marks=pytest.mark.slow)])
def test_asks_while_one_is_killed(together: Together, which: str) -> None:
    killed: list[int] = []

    def kill(_: Client) -> None:
        hub: Rig = getattr(together, which)()
        assert hub.process is not None
        killed.append(hub.process.pid)
        together.kill(hub)

    asked(together, kill)
    together.wait_ready()
    [gone] = killed
    assert str(gone) not in {member.name.split()[1] for member in together.members()}, "it is another process now"


@needs_mosquitto
def test_a_leader_that_hangs_and_comes_back(together: Together) -> None:
    hung: list[Rig] = []

    def hang(client: Client) -> None:
        leader = together.leading()
        assert leader.process is not None
        leader.process.send_signal(signal.SIGSTOP)
        for _ in range(4):
            client.turn()
        assert together.store.end_silent_leader(0.0), "what the others do after a while"
        wait_until(lambda: together.leader() not in (None, leader), "another that leads")
        leader.process.send_signal(signal.SIGCONT)
        hung.append(leader)

    asked(together, hang)
    wait_until(lambda: hung[0].state.read_status().get("role") == "standby", "that it waits its turn")
    together.wait_ready()
    assert "does not lead any more" in hung[0].log.read_text()


@needs_mosquitto
def test_all_lose_the_database_for_a_moment(together: Together) -> None:
    def cut(_: Client) -> None:
        with psycopg.connect(together.first.state.database_url(), autocommit=True) as other:
            cuts = other.execute(
                "SELECT application_name, pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'edgehub serve %'"
            ).fetchall()
        assert all(done for _, done in cuts)
        hubs = {name.split()[-1] for name, _ in cuts}
        assert hubs == {str(hub.process.pid) for hub in together.hubs if hub.process is not None}, "all three were cut"

    asked(together, cut)
    together.wait_ready()


@needs_mosquitto
def test_a_clean_end_hands_over_and_status_says_who_leads(together: Together) -> None:
    leader = together.leading()
    assert leader.process is not None
    told = together.waiting().json_status()
    assert [hub["leads"] for hub in told["hubs"]] == [True, False, False]
    assert told["process"]["role"] == "standby" and told["process"]["leader"] == told["hubs"][0]["name"]
    assert told["hubs"][0]["name"].endswith(f" {leader.process.pid}")
    text = together.waiting().run("status")
    assert f"process {leader.process.pid}," in next(line for line in text.splitlines() if line.startswith("leads"))
    gone, leader = leader, together.waiting()
    assert gone.stop() == 0
    wait_until(lambda: together.leader() not in (None, gone), "another that leads")
    for hub in together.hubs:
        if hub is not gone:
            assert hub.stop() == 0
    assert together.members() == []


@needs_mosquitto
def test_a_second_hub_and_a_broker_that_is_the_first_ones_own(tmp_path: Path, postgres_server: PostgresServer) -> None:
    url = postgres_server.url(postgres_server.database())
    rig = Rig(tmp_path / "first", url)
    try:
        rig.start()
        attach(State(tmp_path / "second"), url)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "hub",
                "--state-dir",
                str(tmp_path / "second"),
                "serve",
                "--no-web",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 1
        assert "with a broker of its own" in done.stderr and "--external-broker" in done.stderr
        assert "Traceback" not in done.stderr
        assert rig.json_status()["process"]["connected"]
    finally:
        rig.end()


def test_the_lead_is_one_sessions(postgres_url: str) -> None:
    network = make_network(load_crypto(), seeded(0))
    with (
        contextlib.closing(make_postgres(postgres_url, network)) as one,
        contextlib.closing(PostgresStore(postgres_url)) as two,
    ):
        assert one.take_lead("a 1") and not two.take_lead("b 2")
        assert [(member.name, member.leads) for member in two.members()] == [("a 1", True), ("b 2", False)]
        assert two.end_silent_leader(60.0) == "" and not two.take_lead("b 2")
        assert two.end_silent_leader(-1.0) == "a 1"
        wait_until(lambda: two.take_lead("b 2"), "the lock")
        with pytest.raises(LeadLost), one.write():
            pytest.fail("it wrote without leading")
        for use in (one.write, one.read):
            with pytest.raises(LeadLost), use():
                pytest.fail("it goes on without leading")
        with pytest.raises(LeadLost):
            one.changes()
        with two.write() as tx:
            assert tx.next_seq() == 1


def test_other_errors_are_none_of_a_lost_lead() -> None:
    assert lost(LeadLost("why")) == "why"
    assert lost(HubError("the disk is full")) == ""


def test_a_file_has_one_hub(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with contextlib.closing(open_database(rig.state)):
        assert rig.json_status()["hubs"] == []
        assert os.listdir(tmp_path)
