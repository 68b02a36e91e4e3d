"""`/live`: server-sent events about what has changed, so that no page asks again and again.

An event is `device` (data {"device": ID}), or the name of what changed: devices (many at once), tokens, users, …;
`telemetry:ID` and `commands:ID` are of one device. `all` says that some were missed. What it became is not in the
event: the page asks for what it shows and may see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from hub.core.roles import PERMISSIONS, Principal
from hub.io.live import Listener
from hub.web.auth import CurrentUser, current_user
from hub.web.errors import Problem

VIEWERS_MAX = 256
VIEWERS_MAX_EACH = 16  # of one person
QUEUE_MAX = 64
RECENT_MAX = 256  # messages that a page may have missed between its making and its stream
GATHER_S = 0.25  # what changes within this time is said once
DEVICES_MAX = 64  # in one gathering; more are one `devices`
BEAT_S = 20.0  # a comment so often, and a look whether the session still counts

log = logging.getLogger("edgehub.web")
router = APIRouter(include_in_schema=False)


class Broadcaster:
    """Hears announcements and hands them to every viewer. All in the event loop's thread."""

    def __init__(self, listener: Listener, also: dict[str, Callable[[], None]]) -> None:
        self._listener = listener
        self._also = also  # what else is to be done when a kind of thing has changed
        self._queues: dict[asyncio.Queue[dict[str, Any]], str] = {}
        self._heard: dict[str, dict[str, Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)
        self._said = 0
        self._epoch = secrets.token_hex(4)  # of this process: another one's numbers say nothing

    @property
    def mark(self) -> str:
        """For a page that is made now: its stream begins here, however late it is opened."""
        return f"{self._epoch}-{self._said}"

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._read)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._listener.close()

    def demand_room(self, person: str) -> None:
        """Raises Problem when there are too many viewers."""
        if len(self._queues) >= VIEWERS_MAX or Counter(self._queues.values())[person] >= VIEWERS_MAX_EACH:
            raise Problem(503, "too-many-viewers", "Too many pages are open. Close some.")

    @contextlib.contextmanager
    def viewer(self, person: str, mark: str = "") -> Any:
        """A queue of messages, first those since `mark`. Raises Problem when there are too many viewers."""
        self.demand_room(person)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_MAX)
        self._queues[queue] = person
        self._put(queue, self._since(mark))
        try:
            yield queue
        finally:
            del self._queues[queue]

    def __len__(self) -> int:
        return len(self._queues)

    def _read(self) -> None:
        for message in self._listener.take():
            self._heard[json.dumps(message)] = message
            if (action := self._also.get(message.get("kind", ""))) is not None:
                action()
        if self._timer is None and self._heard:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._say)

    def _say(self) -> None:
        self._timer = None
        heard, self._heard = list(self._heard.values()), {}
        if sum("device" in message for message in heard) > DEVICES_MAX:
            heard = [message for message in heard if "device" not in message] + [{"kind": "devices"}]
        self._recent += heard
        self._said += len(heard)
        for queue in self._queues:
            self._put(queue, heard)

    def _since(self, mark: str) -> list[dict[str, Any]]:
        if not mark:
            return []
        epoch, _, number = mark.partition("-")
        missed = self._said - int(number) if epoch == self._epoch and number.isdecimal() else -1
        if not 0 <= missed <= len(self._recent):
            return [{"kind": "all"}]
        return list(self._recent)[len(self._recent) - missed :]

    @staticmethod
    def _put(queue: asyncio.Queue[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if queue.qsize() >= QUEUE_MAX - 1:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait({"kind": "all"})
                break
            queue.put_nowait(message)


def may_hear(who: Principal, message: dict[str, Any]) -> bool:
    """Whoever may not read a kind of thing is not told that it changes either."""
    kind = "devices" if "device" in message else str(message.get("kind", "")).partition(":")[0]
    return who.may(f"{kind}:read") if f"{kind}:read" in PERMISSIONS else True


@router.get("/live")
async def live(request: Request, who: CurrentUser, since: Annotated[str, Query(max_length=32)] = "") -> Response:
    broadcaster: Broadcaster = request.app.state.broadcaster
    broadcaster.demand_room(who.user)
    return StreamingResponse(
        listen(request, who, since), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


async def listen(request: Request, who: Principal, since: str = "") -> AsyncIterator[str]:
    """What one viewer is sent. However much there is to say, in between it is asked whether they may still hear it."""
    loop = asyncio.get_running_loop()
    # The place is taken here: who goes away before the first line has had none
    with request.app.state.broadcaster.viewer(who.user, since) as queue:
        yield "retry: 3000\n\n"
        look_at = loop.time() + BEAT_S
        while True:
            message = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    message = await queue.get()
            if loop.time() >= look_at:
                try:
                    who = await current_user(request)
                except Problem:
                    return
                yield ": still here\n\n"
                look_at = loop.time() + BEAT_S
            if message is not None and may_hear(who, message):
                name = "device" if "device" in message else message.get("kind", "all")
                yield f"event: {name}\ndata: {json.dumps(message)}\n\n"
