"""Runs of hardware-in-the-loop rigs, as CI tells them: what is kept of them, and how much.

A rig belongs to the person who first told of it: what a night's verdict is worth depends on who may write it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hub.core.model import HubError

RIGS_MAX = 64
RUNS_KEPT = 200  # of a rig; the newest
PAGES_KEPT = 20  # of those, with the page that was sent along
RUN_BYTES_MAX = 256 << 10  # of a run, as JSON
PAGE_BYTES_MAX = 512 << 10  # of a page, gzipped
PAGE_UNPACKED_MAX = 8 << 20
STRIP_RUNS = 20  # shown of a rig in the list of rigs
TREND_RUNS = 50  # of a suite, that a figure is compared over
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Verdict(Enum):
    PASSED = "passed"
    RETRIED = "retried"  # passed, but a boot had to be tried again
    FAILED = "failed"


@dataclass(slots=True)
class Rig:
    name: str
    person: str  # id of whom it belongs to; "" for nobody
    created_s: int
    runs: int = 0  # that it ever had: the number of the newest
    login: str = ""  # of the person, for people to read


@dataclass(slots=True, frozen=True)
class Run:
    """`failed`: what went wrong first, in a line; empty for nothing. `id`: of the report, the same when sent again."""

    rig: str
    number: int  # 1, 2, 3 … of its rig
    id: str
    suite: str
    verdict: Verdict
    began_s: int
    received_s: int
    seconds: float
    retries: int
    failed: str
    actor: str  # as audit rows name it
    steps: int
    passed: int  # of the steps


def judge(
    steps: list[dict[str, Any]], figures: list[dict[str, Any]], retries: int, claimed: Verdict
) -> tuple[Verdict, str]:
    """(verdict, what went wrong first); no better than `claimed`. Raises HubError where there is nothing to judge."""
    if not steps:
        raise HubError("steps: a run without a step proves nothing. Tell of it when a step is done")
    for step in steps:
        if step["outcome"] != "passed":
            return Verdict.FAILED, f"{step['name']}: {step['error'] or step['outcome']}"
    for row in figures:
        if is_beyond(row):
            named = f"{row['what']} {row['guest']}".strip()
            return Verdict.FAILED, f"{named}: {row['value']:g} {row['unit']}, limit {row['limit']:g}"
    if claimed is Verdict.FAILED:
        return claimed, "the suite itself: no step and no limit"
    return (Verdict.RETRIED if retries else claimed), ""


def is_beyond(row: dict[str, Any]) -> bool:
    """Whether a figure is beyond its limit."""
    limit = row["limit"]
    if limit is None:
        return False
    return bool(row["value"] < limit if row["least"] else row["value"] > limit)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise HubError(f"rig {name[:64]!r}: a name of lower-case letters, digits and - expected, as in bench-1")
    return name
