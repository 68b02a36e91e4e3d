"""What a device reports of a version, or of settings, that it was told to take (docs/protocol.md, report)."""

from __future__ import annotations

from enum import IntEnum


class UpdateState(IntEnum):
    """`s` of a report."""

    IDLE = 0
    WAITING = 1  # for budget or space; settings: for a connection
    FETCHING = 2
    TRIAL = 3  # it runs, and has not shown yet that it is sound
    COMMITTED = 4
    RETURNED = 5  # it was tried, and the one before it runs again
    REFUSED = 6  # it was not tried, and is not tried again for this rollout
