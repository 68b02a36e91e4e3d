"""Rigs with nights behind them, told as `edgehil report upload` tells them."""

from __future__ import annotations

import functools
import gzip
import json
import time
from pathlib import Path
from typing import Any, cast

from hil import report_html, report_upload
from hub import rigging
from hub.core.roles import Access, Principal
from hub.operations import Doing
from hub.store import people, rigs
from hub.store.sql import SqlTx
from hub.web.api.rigs import RunIn
from tests.hil import report_kit

DAY_S = 86_400
STUCK = (
    "truck: it has said nothing for 120 s and its processor rests, at each of 3 boots. "
    "QEMU says running; it said last:\n"
    "[  OK  ] Reached target network.target - Network.\n"
    "[  OK  ] Started edgeagent.service - edgemesh agent."
)


def add_rigs(tx: SqlTx, wall_s: int) -> None:
    """Three: one that is well, one whose last night failed, one with few runs of another suite."""
    for number in range(1, 25):
        memory = 26.0 + number * 0.12
        told = report_kit.told(seed=number, retries=number in (6, 17), memory_mib=34.5 if number == 12 else memory)
        tell(tx, wall_s - (24 - number) * DAY_S - 6 * 3_600, "bench-graz", told)
    for number in range(1, 10):
        told = report_kit.told(
            seed=100 + number, failed=STUCK if number in (4, 5, 9) else "", retries=2 * (number == 9)
        )
        tell(tx, wall_s - (9 - number) * DAY_S - 5 * 3_600, "bench-lyon", told)
    tell(tx, wall_s - 3 * 3_600, "qemu-ci", report_kit.told(seed=200, suite="rollout"))


def tell(tx: SqlTx, wall_s: int, rig: str, told: dict[str, Any], login: str = "ada@example.org") -> int:
    """As the API takes it, with its page; the number of the run."""
    told = {**told, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_s - 300))}
    do = Doing(tx, cast(Any, None), wall_s, f"token:t-ci of user:{login}")
    body = RunIn(**report_upload.run_of(told))
    person = people.person_by_login(tx.connection, login)
    who = Principal(person.id if person else "u-elsewhere", login, "", Access.OPERATOR)
    run, new = rigging.take_run(do, rig, who, body.told())
    assert new
    rigging.take_page(do, run, _page(json.dumps(told)))
    found = rigs.run(tx.connection, rig, run.number)
    assert found == run
    return run.number


@functools.cache
def _page(told: str) -> bytes:
    """Tests fill one hub after the other with the same nights, and their pages take a second."""
    return gzip.compress(report_html.render(json.loads(told), Path("/nonexistent"), links=False).encode())
