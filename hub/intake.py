"""What one turn of the hub's loop does to the database, in one transaction: what came, and a slice of the work it left.

A commit waits for the disk, whatever is in it. So messages that came together are one, and with them go the rows that
the broker has confirmed. Each message is a savepoint: one that this program stumbles over is dropped, and takes
neither the others nor the hub down, which would get it again, and stumble again, after its restart.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from hub.core import chores
from hub.core.coordinator import Coordinator
from hub.core.model import HubDrop
from hub.core.scribe import Scribe
from hub.io.mqtt import IN_FLIGHT_MAX
from hub.store.sql import SqlTx

BATCH_MAX = 128  # messages a transaction
JOBS_MAX = 64  # a transaction, and
WORK_S = 0.02  # about so long at a time: questions wait meanwhile
_STEP = 4  # jobs between two looks at the clock

log = logging.getLogger("edgehub")


class Message(Protocol):
    @property
    def topic(self) -> str: ...

    @property
    def payload(self) -> bytes: ...


def hear(coordinator: Coordinator, tx: SqlTx, now: float, wall_s: int, messages: Sequence[Message]) -> None:
    """All of them, in their order. Raises what the database as a whole suffers from: nothing of them is kept then."""
    for message in messages:
        try:
            with tx.savepoint():
                coordinator.handle_message(now, wall_s, tx, message.topic, message.payload)
        except (DataError, IntegrityError, ProgrammingError) as error:
            _drop(coordinator, message, error)
        except DBAPIError:
            raise
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is this message's, and logged
            _drop(coordinator, message, error)


def work(scribe: Scribe, tx: SqlTx, wall_s: int, clock: Callable[[], float]) -> bool:
    """Jobs become rows, but no more than can be sent soon. True: there may be more to do at once."""
    end = clock() + WORK_S
    for _ in range(JOBS_MAX // _STEP):
        if tx.outgoing_depth() >= IN_FLIGHT_MAX or not chores.work(scribe, tx, wall_s, _STEP):
            return False  # a job may have left others, so only none is the end of them
        if clock() >= end:
            return True
    return True


def _drop(coordinator: Coordinator, message: Message, error: Exception) -> None:
    """The error's text stays out of the log: it may hold what the message held."""
    coordinator.drops[HubDrop.STUMBLED] += 1
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(at.filename).name}:{at.lineno}"
    log.error("hub: a message on %s was dropped: %s at %s", message.topic, type(error).__name__, place)
