"""A real hub with its real broker in a directory of its own, and plain MQTT clients; waits are for conditions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgeagent.proto.crypto import Crypto
from edgeagent.proto.identity import Identity
from edgeagent.proto.join import Joined, Joiner, JoinEvent
from edgeagent.proto.token import Token as JoinToken
from edgeagent.proto.walltime import WallFloor
from hub import cli
from hub.database import open_database
from hub.io.mosquitto import find_broker
from hub.io.pki import der_to_pem
from hub.setup import initialise
from hub.state import State
from hub.store.meta import Site, load_site
from tests.hub.kit import load_crypto, seeded

DEADLINE_S = 20.0


def wait_until(
    condition: Callable[[], bool], what: str, turn: Callable[[], object] | None = None, deadline_s: float = DEADLINE_S
) -> None:
    """`turn` is called while the condition does not hold; without it the processor is given away for a moment, or for
    three times as long as it took to ask."""
    deadline = time.monotonic() + deadline_s
    while True:
        asked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"not within {deadline_s} s: {what}"
        if turn is not None:
            turn()
        else:
            time.sleep(min(max(0.01, 3 * (now - asked)), 0.2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Rig:
    """One hub. `start` runs `edgehub serve` as a process; everything is ended by its process id."""

    def __init__(self, directory: Path, database_url: str = "") -> None:
        self.state = State(directory)
        self.crypto: Crypto = load_crypto()
        self.port = free_port()
        self.network = initialise(
            self.state,
            domain="mesh.test",
            listen=f"127.0.0.1:{self.port}",
            addresses=["127.0.0.1"],
            database_url=database_url,
        )
        self.ca_pem = der_to_pem(self.network.ca_der)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "serve.log"

    @property
    def site(self) -> Site:
        with contextlib.closing(open_database(self.state)) as store, store.read() as tx:
            return load_site(tx.connection)

    def start(self) -> None:
        self.wait_connected(self.launch())

    def launch(self) -> int:
        """Without waiting for anything; the process id."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hub", "--state-dir", str(self.state.directory), "serve", "--no-web"],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        return self.process.pid

    def wait_connected(self, pid: int) -> None:
        def connected() -> bool:
            status = self.state.read_status()
            return status.get("pid") == pid and bool(status.get("connected"))

        def check() -> None:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

        wait_until(connected, f"a hub that is connected; {self.log}", check)

    def wait_settled(self) -> None:
        """Until the broker knows what the database knows of accounts."""

        def settled() -> bool:
            with contextlib.closing(open_database(self.state)) as store, store.read() as tx:
                return not tx.accounts_in_flight()

        wait_until(settled, "the broker to be told about accounts")

    def kill(self) -> None:
        """As a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As systemd does; the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(DEADLINE_S)
        self.process = None
        return code

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        broker = find_broker(self.state.broker)
        if broker is not None:
            descriptor = os.pidfd_open(broker[0])
            os.kill(broker[0], signal.SIGKILL)
            wait_until(lambda: find_broker(self.state.broker) is None, "the end of the broker")
            os.close(descriptor)

    def broker_pid(self) -> int:
        found = find_broker(self.state.broker)
        return found[0] if found else 0

    def run(self, *arguments: str, code: int = 0) -> str:
        """An `edgehub` command, in this process; its standard output, or what it complains of."""
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(sys, "argv", ["edgehub", "--state-dir", str(self.state.directory), *arguments]):
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    cli.main()
            except SystemExit as ended:
                assert (ended.code or 0) == code, (arguments, ended.code, out.getvalue(), err.getvalue())
        return err.getvalue() if code in (1, 2) else out.getvalue()

    def run_apart(self, *arguments: str) -> str:
        """The same as a process."""
        done = subprocess.run(
            [sys.executable, "-m", "hub", "--state-dir", str(self.state.directory), *arguments],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=True,
        )
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def json_status(self) -> Any:
        return json.loads(self.run("status", "--json", code=0 if self.state.is_running() else 3))

    def token(self, *options: str) -> JoinToken:
        return JoinToken.decode(self.crypto, self.run("token", "create", *options))

    @contextlib.contextmanager
    def client(
        self, user: str, password: str, client_id: str = "", *, clean: bool = True, **options: Any
    ) -> Iterator[Client]:
        made = Client(self, user, password, client_id or user, clean=clean, **options)
        try:
            yield made
        finally:
            made.close()

    def join(self, token: JoinToken, seed: int = 1, host: str = "box") -> Member:
        """A device that joins as the agent does; waits for the answer."""
        crypto = load_crypto()  # joins may run side by side, and a provider is for one thread
        identity = Identity.create(crypto, seeded(seed))
        now = time.monotonic()
        joiner = Joiner(
            now,
            crypto=crypto,
            entropy=os.urandom,
            jitter=lambda: 0.5,
            token=token,
            identity=identity,
            host=host,
            boot=os.urandom(16),
            facts={},
            wall=WallFloor(now, 0.0),
        )
        events: list[JoinEvent] = []
        with self.client(joiner.username, joiner.password, joiner.client_id) as client:
            client.subscribe(joiner.subscriptions[0])
            joiner.handle_connected(time.monotonic())

            def turn() -> None:
                for publish in joiner.drain_publishes():
                    client.publish(publish.topic, publish.payload)
                client.turn()
                for topic, payload, _ in client.take():
                    joiner.handle_message(time.monotonic(), topic, payload)
                events.extend(joiner.drain_events())

            wait_until(lambda: bool(events), "an answer to a join", turn)
        return Member(identity, events[0], time.monotonic() - now)


class Member:
    """A device after its join."""

    def __init__(self, identity: Identity, event: JoinEvent, took_s: float) -> None:
        self.identity = identity
        self.event = event
        self.took_s = took_s

    @property
    def id(self) -> str:
        return self.identity.device_id

    @property
    def is_in(self) -> bool:
        return isinstance(self.event, Joined)


class Client:
    """A plain MQTT client over TLS; `code` is what CONNACK said."""

    def __init__(self, rig: Rig, user: str, password: str, client_id: str, *, clean: bool) -> None:
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean, reconnect_on_failure=False
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=rig.ca_pem)
        self._client.tls_set_context(context)
        self._client.username_pw_set(user, password)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self.code: int | None = None
        self.session_present = False
        self.ended = False
        self._messages: list[tuple[str, bytes, bool]] = []
        self._granted: dict[int, int] = {}
        self._published: set[int] = set()
        self._client.connect("127.0.0.1", rig.port, 60)
        raw = self._client.socket()
        assert isinstance(raw, socket.socket)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait_until(lambda: self.code is not None or self.ended, "an answer to CONNECT", self.turn)

    def turn(self, wait_s: float = 0.02) -> None:
        self._client.loop(wait_s)

    def subscribe(self, text: str, qos: int = 1) -> bool:
        """Whether the broker took it."""
        _, mid = self._client.subscribe(text, qos)
        assert mid is not None
        wait_until(lambda: mid in self._granted, "SUBACK", self.turn)
        return self._granted[mid] < 128

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Waits for PUBACK: which a broker sends also for what it does not allow."""
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        wait_until(lambda: mid in self._published, "PUBACK", self.turn)

    def send(self, topic: str, payload: bytes) -> int:
        """Without waiting: the message id that `is_confirmed` takes."""
        return self._client.publish(topic, payload, qos=1).mid

    def is_confirmed(self, mid: int) -> bool:
        return mid in self._published

    def take(self) -> list[tuple[str, bytes, bool]]:
        messages, self._messages = self._messages, []
        return messages

    def expect(self, topic: str) -> bytes:
        """The payload of the next message on `topic`; those before it are dropped."""
        found: list[bytes] = []

        def look() -> bool:
            found.extend(payload for name, payload, _ in self.take() if name == topic)
            return bool(found)

        wait_until(look, f"a message on {topic}", self.turn)
        return found[0]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop(0.01)
        raw = self._client.socket()
        if raw is not None:
            raw.close()

    def drop(self) -> None:
        """End without a good-bye."""
        raw = self._client.socket()
        if raw is not None:
            raw.close()

    def _on_connect(self, _c: Any, _u: Any, flags: Any, reason: Any, _p: Any) -> None:
        self.code = reason.value
        self.session_present = bool(flags.session_present)

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, _r: Any, _p: Any) -> None:
        self.ended = True

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        self._messages.append((message.topic, bytes(message.payload), message.retain))

    def _on_subscribe(self, _c: Any, _u: Any, mid: int, reasons: Any, _p: Any) -> None:
        self._granted[mid] = reasons[0].value

    def _on_publish(self, _c: Any, _u: Any, mid: int, _r: Any, _p: Any) -> None:
        self._published.add(mid)
