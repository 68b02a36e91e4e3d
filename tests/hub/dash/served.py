"""A hub's dashboard as a process, over a fleet that was written into its database."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from edgeagent.proto import telemetry
from edgeagent.proto.codec import decode
from edgeagent.proto.telemetry import SAMPLE
from hub.core.policing import set_policy
from hub.io import live
from hub.setup import initialise
from hub.state import State
from hub.store import websettings
from hub.store.sqlite import SqliteStore
from tests.hub.dash.fleet import POLICY, add_fleet, add_live, add_people
from tests.hub.dash.network import add_lock, add_names, add_routes
from tests.hub.dash.rigs import add_rigs
from tests.hub.dash.rollouts import add_rollouts
from tests.hub.rig import DEADLINE_S, free_port

ROOT = Path(__file__).parents[3]


class Served:
    """`url` answers while it runs."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with contextlib.closing(SqliteStore(state.database)) as store, store.write() as tx:
            websettings.save(tx.connection, websettings.WebSettings(listen=f"127.0.0.1:{self.port}"))

    def fill(self, count: int = 48) -> list[str]:
        """The people, and as many devices; their ids."""
        with contextlib.closing(SqliteStore(self.state.database)) as store, store.write() as tx:
            wall_s = int(time.time())
            add_people(tx, wall_s)
            if not count:
                return []
            set_policy(tx, wall_s, POLICY, "ada@example.org")
            ids = add_fleet(tx, wall_s, count)
            add_live(tx, wall_s, ids[0], ids[1:8])
            add_routes(tx, wall_s, ids)
            add_names(tx)
            add_lock(tx, wall_s, ids)
            add_rollouts(tx, self.state, wall_s, ids)
            add_rigs(tx, wall_s)
            return ids

    def say(self, device_id: str, *, up: int) -> None:
        """A sample of a watched device, taken in as the hub does it."""
        with contextlib.closing(SqliteStore(self.state.database)) as store:
            with store.write() as tx:
                known = tx.telemetry(device_id)
                assert known is not None
                sample = SAMPLE.check(decode(known[1]), "sample")
                wall_s = int(time.time())
                tx.save_telemetry(device_id, wall_s, telemetry.write({**sample, "up": up, "t": wall_s}))
            live.announce(self.state.live, tx.changes)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        log = self.state.directory / "web.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "hub.web", str(self.state.directory)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=ROOT,
            )
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not self._answers():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE_S)
            assert process.stdin is not None
            process.stdin.close()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False


def make_site(directory: Path) -> Served:
    state = State(directory)
    initialise(state, domain="fleet.example", listen=f"127.0.0.1:{free_port()}", addresses=["127.0.0.1"])
    return Served(state)
