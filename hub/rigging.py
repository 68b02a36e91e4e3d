"""Runs of rigs as CI tells them and people look at them: an action and its audit row, and what is shown.

Each runs inside a transaction of the caller's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hub.core.model import HubError
from hub.core.rigs import (
    PAGE_BYTES_MAX,
    PAGE_UNPACKED_MAX,
    PAGES_KEPT,
    RIGS_MAX,
    RUN_BYTES_MAX,
    RUNS_KEPT,
    Rig,
    Run,
    Verdict,
    check_name,
    is_beyond,
    judge,
)
from hub.core.roles import Principal
from hub.operations import Doing
from hub.store import rigs
from hub.store.rigs import Figures
from hub.store.sql import SqlTx

GZIP = 16 + zlib.MAX_WBITS  # for zlib: RFC 1952


@dataclass(frozen=True)
class Told:
    """A run as it came in, its form checked."""

    id: str
    suite: str
    claimed: Verdict
    began_s: int
    seconds: float
    retries: int
    steps: list[dict[str, Any]]  # name, outcome, at_s, seconds, load, error, said
    figures: list[dict[str, Any]]  # what, guest, value, unit, limit, least
    detail: dict[str, Any]  # host, versions, guests


@dataclass
class Trend:
    """One figure of a suite over its runs, the oldest first; `points`: (number of the run, value)."""

    what: str
    guest: str
    unit: str
    limit: float | None = None  # of the newest run that had one
    least: bool = False
    points: list[tuple[int, float]] = field(default_factory=list)


def take_run(do: Doing, name: str, who: Principal, told: Told) -> tuple[Run, bool]:
    """(the run, whether it is new): one that was told before, by its id, is not taken again. Raises HubError."""
    rig = rigs.find(do.tx.connection, check_name(name))
    if rig is None:
        if rigs.count(do.tx.connection) >= RIGS_MAX:
            raise HubError(f"rig {name}: there are {RIGS_MAX} rigs, which is the most. Remove one that is gone")
        rig = Rig(name, who.user, do.wall_s, login=who.login)
        rigs.add(do.tx.connection, rig)
        do.note("rig.add", f"rig:{name}", user=rig.login)
    known = rigs.run_of_id(do.tx.connection, name, told.id)
    if known is not None:
        return known, False
    verdict, failed = judge(told.steps, told.figures, told.retries, told.claimed)
    detail = {**told.detail, "steps": told.steps}
    if len(json.dumps([detail, told.figures])) > RUN_BYTES_MAX:
        raise HubError(f"run: more than {RUN_BYTES_MAX} bytes. Shorten what its steps say")
    before = next(iter(rigs.runs(do.tx.connection, name, suite=told.suite, limit=1)), None)
    rig.runs += 1
    run = Run(
        rig=name,
        number=rig.runs,
        id=told.id,
        suite=told.suite,
        verdict=verdict,
        began_s=told.began_s,
        received_s=do.wall_s,
        seconds=told.seconds,
        retries=told.retries,
        failed=failed[:300],
        actor=do.actor,
        steps=len(told.steps),
        passed=sum(step["outcome"] == "passed" for step in told.steps),
    )
    rigs.save(do.tx.connection, rig)
    rigs.add_run(do.tx.connection, run, detail, told.figures)
    rigs.trim(do.tx.connection, name, run.number - RUNS_KEPT + 1, run.number - PAGES_KEPT + 1)
    do.note("rig.run", f"rig:{name}", run=run.number, suite=run.suite, verdict=verdict.value, failed=run.failed)
    _tell(do, run, before)
    do.tx.note("rigs")
    return run, True


def take_page(do: Doing, run: Run, packed: bytes) -> None:
    """The page of a run, gzipped HTML. Raises HubError."""
    rig = rigs.find(do.tx.connection, run.rig)
    if rig is None or run.number <= rig.runs - PAGES_KEPT:
        raise HubError(f"report: only the newest {PAGES_KEPT} runs of a rig keep theirs")
    unpack(packed)
    rigs.save_page(do.tx.connection, run.rig, run.number, packed)
    do.note("rig.report", f"rig:{run.rig}", run=run.number, bytes=len(packed))
    do.tx.note("rigs")


def remove(do: Doing, rig: Rig) -> None:
    """With all its runs."""
    rigs.drop(do.tx.connection, rig.name)
    do.note("rig.remove", f"rig:{rig.name}", runs=rig.runs, user=rig.login)
    do.tx.note("rigs")


def unpack(packed: bytes) -> bytes:
    """UTF-8 text of one gzip member. Raises HubError, without unpacking more than PAGE_UNPACKED_MAX."""
    if len(packed) > PAGE_BYTES_MAX:
        raise HubError(f"report: {len(packed)} bytes; at most {PAGE_BYTES_MAX}, gzipped")
    unpacker = zlib.decompressobj(GZIP)
    try:
        page = unpacker.decompress(packed, PAGE_UNPACKED_MAX + 1)
    except zlib.error as error:
        raise HubError("report: not gzip. Send report.html as gzip -c makes it") from error
    if len(page) > PAGE_UNPACKED_MAX:
        raise HubError(f"report: more than {PAGE_UNPACKED_MAX} bytes when it is unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise HubError("report: the gzip is cut off, or something follows it")
    try:
        page.decode()
    except UnicodeDecodeError as error:
        raise HubError("report: not UTF-8") from error
    return page


# What is shown


def find(tx: SqlTx, name: str) -> Rig:
    found = rigs.find(tx.connection, name)
    if found is None:
        raise HubError(f"rig {name[:64]!r}: there is none. A rig is there once a run of it was told")
    return found


def find_run(tx: SqlTx, name: str, number: int) -> Run:
    find(tx, name)
    found = rigs.run(tx.connection, name, number)
    if found is None:
        raise HubError(f"run {number} of rig {name}: there is none; the newest {RUNS_KEPT} are kept")
    return found


def trends(found: Iterable[Figures]) -> list[Trend]:
    """Of runs of one suite, the oldest first; in the order of the newest run's table, then those it does not have."""
    made: dict[tuple[str, str, str], Trend] = {}
    newest: Sequence[tuple[str, str, str]] = ()
    for number, rows in found:
        newest = [_key(row) for row in rows]
        for row in rows:
            trend = made.setdefault(_key(row), Trend(row["what"], row["guest"], row["unit"]))
            if trend.points and trend.points[-1][0] == number:  # measured again in the same run: the worst counts
                value = (
                    min(trend.points.pop()[1], row["value"])
                    if row["least"]
                    else max(trend.points.pop()[1], row["value"])
                )
            else:
                value = row["value"]
            trend.points.append((number, value))
            trend.limit, trend.least = row["limit"], row["least"]
    order = {key: at for at, key in enumerate(dict.fromkeys(newest))}
    return [made[key] for key in sorted(made, key=lambda key: order.get(key, len(order)))]


def describe_rig(rig: Rig, newest: list[Run]) -> dict[str, Any]:
    """`newest`: its last runs, the oldest first."""
    return {
        "name": rig.name,
        "user": rig.login,
        "created": rig.created_s,
        "runs": rig.runs,
        "last": describe_run(newest[-1]) if newest else None,
        "recent": [run.verdict.value for run in newest],
    }


def describe_run(run: Run) -> dict[str, Any]:
    return {
        "rig": run.rig,
        "number": run.number,
        "id": run.id,
        "suite": run.suite,
        "verdict": run.verdict.value,
        "failed": run.failed,
        "began": run.began_s,
        "received": run.received_s,
        "seconds": run.seconds,
        "retries": run.retries,
        "steps": run.steps,
        "passed": run.passed,
        "by": run.actor,
    }


def describe_whole(tx: SqlTx, run: Run) -> dict[str, Any]:
    detail, figures = rigs.detail(tx.connection, run.rig, run.number)
    return {
        "run": describe_run(run),
        **detail,
        "figures": [{**row, "ok": not is_beyond(row)} for row in figures],
        "report": run.number in rigs.pages(tx.connection, run.rig),
    }


def _tell(do: Doing, run: Run, before: Run | None) -> None:
    fields: dict[str, str | int] = {"rig": run.rig, "run": run.number, "suite": run.suite}
    if run.verdict is Verdict.FAILED:
        do.tx.emit("rig.failed", do.wall_s, **fields, failed=run.failed)
    elif before is not None and before.verdict is Verdict.FAILED:
        do.tx.emit("rig.mended", do.wall_s, **fields, verdict=run.verdict.value)


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["what"], row["guest"], row["unit"]
