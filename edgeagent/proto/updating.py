"""From a version that the hub wants to a slot that is to be tried: what is asked for next, believed, kept, given up.

```
want ──▶ WAITING ──▶ FETCHING: roots, timestamp, snapshot, targets, then the target's bytes ──▶ `is_installed`
             ▲            │ no answer, busy, not believed: again, later each time
             └────────────┴──▶ REFUSED: remembered, so that the same rollout of the same version is not begun again
```

Without input or output but for the `Store` that it is given: metadata that was believed, and the slot that is filled.
Parts are taken in order only, so at most one is in memory, and what is written is never read again before its hash counts.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from edgeagent.proto.backoff import Backoff
from edgeagent.proto.control import FETCH_BYTES_MAX, UPDATE_TEXT_BYTES_MAX
from edgeagent.proto.tuf import BYTES_MAX, Distrust, TufError
from edgeagent.proto.tufrefresh import Refresh
from edgeagent.proto.updatestate import UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.crypto import Crypto
    from edgeagent.proto.tuf import Target

WINDOW = 4  # questions under way
ANSWER_S = 15.0  # for the next part to come
ATTEMPTS_MAX = 4  # of one rollout, each after a longer pause, before it is refused
TARGET_BYTES_MAX = 1 << 26
REMEMBERED_MAX = 8  # rollouts that were refused or given up
_RELEASE = re.compile("[0-9]{1,9}(?:[.][0-9]{1,9}){0,5}")


class StoreRefused(Exception):
    """What is here cannot be: the text says why. `wait`: it may be, later."""

    def __init__(self, text: str, *, wait: bool = False) -> None:
        super().__init__(text)
        self.wait = wait


class Store(Protocol):
    """Where it is kept. Each may raise StoreRefused."""

    def kept(self) -> dict[str, bytes]:
        """Metadata by role as it was kept last; `root` is the trusted one, absent where there is none yet."""

    def keep(self, believed: dict[str, bytes]) -> None: ...

    def begin(self, target: Target) -> int:
        """The first byte that is missing."""

    def append(self, data: bytes) -> None: ...

    def start_over(self) -> None: ...

    def is_right(self, target: Target) -> bool: ...

    def install(self, target: Target, version: str, rollout: int) -> None: ...


class _File:
    """One file of the repository under way: `at` is the next byte, `end` its length once that is known."""

    __slots__ = ("asked", "at", "data", "deadline", "end", "limit", "name")

    def __init__(self, name: str, limit: int, *, at: int = 0, end: int | None = None) -> None:
        self.name = name
        self.limit = limit
        self.at = self.asked = at
        self.end = end
        self.data = bytearray()
        self.deadline: float | None = None


class Updating:
    """Drive it: `want` after each map, `handle_part` for each part, `connection_changed`, `handle_timeout` at
    `poll_timeout()`; then `drain_asks`, and tell the hub where `report` has changed.

    `state`, `why`, `rollout` and `version` are what is told. `is_installed`: the other slot is to be tried now.
    """

    def __init__(
        self,
        crypto: Crypto,
        jitter: Callable[[], float],
        store: Store,
        *,
        running: str,
        abi: str = "",
        part_bytes: int = FETCH_BYTES_MAX,
        wall_s: Callable[[float], float | None],
        may_fetch: Callable[[float], str],
    ) -> None:
        """`wall_s(now)` is None as long as the hub has not told the time; `may_fetch(now)` says why not now, "" for yes."""
        self._crypto = crypto
        self._jitter = jitter
        self._store = store
        self._running = running
        self._abi = abi
        self._part_bytes = min(part_bytes, FETCH_BYTES_MAX)
        self._wall_s = wall_s
        self._may_fetch = may_fetch
        self.state = UpdateState.IDLE
        self.why = ""
        self.rollout = 0
        self.version = ""
        self.is_installed = False
        self.root_pin: tuple[int, bytes] | None = (
            None  # version and SHA-256 of the first root, as the hub told it first
        )
        self.refused: list[tuple[int, str, int, str]] = []  # rollout, version, state, why
        self.strays = 0  # parts that nobody waited for
        self._name = ""
        self._attempts = 0
        self._backoff = Backoff(jitter, 5.0, 3_600.0)  # of a hub that does not answer
        self._retry = Backoff(jitter, 20.0, 3_600.0)  # of what was not believed
        self._connected = False
        self._again_at: float | None = None
        self._refresh: Refresh | None = None
        self._target: Target | None = None
        self._file: _File | None = None
        self._asks: list[dict[str, Any]] = []

    # Inputs

    def want(self, now: float, up: dict[str, Any] | None, root: list[Any] | None) -> None:
        """What the map says: `up` and `ur` as control.py has them."""
        if root is not None and self.root_pin is None:
            self.root_pin = (root[0], root[1])
        if up is None:
            if self.state in (UpdateState.WAITING, UpdateState.FETCHING):
                self._stop()
                self.state = UpdateState.IDLE
            return
        if (up["r"], up["v"]) == (self.rollout, self.version) and self.state is not UpdateState.IDLE:
            return
        self._stop()
        self.rollout, self.version, self._name = up["r"], up["v"], up["t"]
        self._attempts = 0
        self._backoff.reset()
        self._retry.reset()
        for rollout, version, state, why in self.refused:
            if (rollout, version) == (self.rollout, self.version):
                self._enter(UpdateState(state), why)
                return
        if self.version == self._running:
            self._enter(UpdateState.COMMITTED)
        else:
            self._enter(UpdateState.WAITING)
            self._begin(now)

    def settle_trial(self, state: UpdateState, rollout: int, version: str, why: str = "") -> None:
        """What became of a slot on trial: TRIAL while it lasts, COMMITTED, or RETURNED, which is remembered."""
        self.rollout, self.version = rollout, version
        self._enter(state, why)
        if state is UpdateState.RETURNED:
            self._remember()

    def connection_changed(self, now: float, connected: bool) -> None:
        self._connected = connected
        self._asks.clear()
        if self._file is not None:
            self._file.asked = self._file.at
            self._file.deadline = None
            if connected:
                self._ask(now, self._file)
        elif connected and self.state is UpdateState.WAITING and self._again_at is None:
            self._begin(now)

    def handle_part(self, now: float, body: dict[str, Any]) -> None:
        """`part` as control.py has it."""
        file = self._file
        if file is None or body["f"] != file.name or not self._connected:
            self.strays += 1
            return
        if "no" in body:
            if body["no"] == "busy":
                self._pause(now, body["s"] * (1.0 + self._jitter()))
            elif file.name.endswith(".root.json") and self._refresh is not None:
                self._took(now, None)
            else:
                self._fail(now, f"the hub does not have {file.name}")
            return
        offset, length, data = body["o"], body["l"], body["d"]
        if offset != file.at or offset + len(data) > length:
            self.strays += 1  # a part before it was lost, and is asked for again when its time is over
            return
        if length > file.limit:
            self._fail(now, f"{file.name}: {length} bytes long, at most {file.limit} were signed for")
            return
        if file.end is None:
            file.end = length
        elif file.end != length:
            self._fail(now, f"{file.name}: another file than when it was begun")
            return
        file.at += len(data)
        self._backoff.reset()
        file.asked = max(file.asked, file.at)
        self._attempt(now, self._write, now, file, data)

    def handle_timeout(self, now: float) -> None:
        if self._again_at is not None and self._again_at <= now:
            self._again_at = None
            if self._file is None:
                self._begin(now)
            elif self._connected:
                self._file.asked = self._file.at
                self._ask(now, self._file)
        file = self._file
        if file is not None and file.deadline is not None and file.deadline <= now:
            file.deadline = None
            self._pause(now, self._backoff.wait_s())

    def poll_timeout(self) -> float | None:
        times = [self._again_at, self._file.deadline if self._file is not None else None]
        return min((at for at in times if at is not None), default=None)

    # Outputs

    def drain_asks(self) -> list[dict[str, Any]]:
        """Bodies of `fetch`."""
        asks, self._asks = self._asks, []
        return asks

    def report(self) -> dict[str, Any] | None:
        """The body of a report's `up`; None: there is nothing to say."""
        if not self.rollout:
            return None
        why = self.why.encode()[:UPDATE_TEXT_BYTES_MAX].decode("utf-8", "ignore")
        return {"r": self.rollout, "s": int(self.state), "v": self._running, "w": why}

    # Inner

    def _begin(self, now: float) -> None:
        self._stop()
        if why := self._may_fetch(now):
            self._enter(UpdateState.WAITING, why)
            self._again_at = now + 60.0 * (1.0 + self._jitter())
        elif not self._connected:
            self._enter(UpdateState.WAITING, "no connection")
        else:
            self._enter(UpdateState.FETCHING)
            self._attempt(now, self._open, now)

    def _attempt(self, now: float, step: Callable[..., None], *arguments: Any) -> None:
        """A step that may find that something cannot be believed, or kept."""
        try:
            step(*arguments)
        except TufError as error:
            self._fail(now, f"{error.why.value}: {error}")
        except StoreRefused as error:
            if error.wait:
                self._stop()
                self._enter(UpdateState.WAITING, str(error))
                self._again_at = now + 600.0 * (1.0 + self._jitter())
            else:
                self._refuse(str(error))

    def _open(self, now: float) -> None:
        kept = self._store.kept()
        if "root" in kept:
            self._refresh = Refresh(self._crypto, kept["root"], self._wall_s(now), kept)
            self._next(now)
        elif self.root_pin is None:
            self._refuse("no root: neither the image nor the hub has named one")
        else:
            self._fetch(now, _File(f"metadata/{self.root_pin[0]}.root.json", BYTES_MAX["root"]))

    def _next(self, now: float) -> None:
        """The next file of metadata, or the target once all is believed."""
        assert self._refresh is not None
        wanted = self._refresh.wanted
        if wanted is not None:
            self._fetch(now, _File(f"metadata/{wanted}", self._refresh.bytes_max))
            return
        self._store.keep(self._refresh.trust.believed)
        target = self._target = self._refresh.trust.target(self._name)
        self._refresh = None  # so much memory is wanted for the rest
        if why := self._unfit(target):
            self._refuse(why)
            return
        at = self._store.begin(target)
        self._file = _File(f"targets/{target.file}", target.length, at=at, end=target.length)
        if at == target.length:
            self._complete(now, target)
        else:
            self._ask(now, self._file)

    def _unfit(self, target: Target) -> str:
        """Why a target that is signed is not for this device."""
        custom = target.custom
        if not 1 <= target.length <= TARGET_BYTES_MAX:
            return f"{target.name}: {target.length} bytes long; devices take at most {TARGET_BYTES_MAX}"
        if custom.get("version", self.version) != self.version:
            return f"{target.name}: signed as another version than {self.version}"
        if self._abi and custom.get("abi", "any") not in ("any", self._abi):
            return f"{target.name}: for {str(custom['abi'])[:32]}, and this device is {self._abi}"
        if custom.get("downgrade") is not True and _older(self.version, self._running):
            return f"{self.version} is older than {self._running}, and is not signed as a downgrade"
        return ""

    def _fetch(self, now: float, file: _File) -> None:
        self._file = file
        self._ask(now, file)

    def _ask(self, now: float, file: _File) -> None:
        """Keep a few questions under way; of a file whose length is not known yet, one."""
        if not self._connected:
            return
        ahead = WINDOW * self._part_bytes if file.end is not None else self._part_bytes
        while file.asked < file.at + ahead and (file.end is None or file.asked < file.end):
            count = self._part_bytes if file.end is None else min(self._part_bytes, file.end - file.asked)
            self._asks.append({"f": file.name, "o": file.asked, "n": count})
            file.asked += count
        file.deadline = now + ANSWER_S

    def _write(self, now: float, file: _File, data: bytes) -> None:
        if self._target is None:
            file.data += data
        else:
            self._store.append(data)
        if file.at < (file.end or 0):
            if self._target is not None and (why := self._may_fetch(now)):
                self._stop()  # what is there is kept
                self._enter(UpdateState.WAITING, why)
                self._again_at = now + 60.0 * (1.0 + self._jitter())
            else:
                self._ask(now, file)
        elif self._target is None:
            self._took(now, bytes(file.data))
        else:
            self._complete(now, self._target)

    def _took(self, now: float, data: bytes | None) -> None:
        self._file = None
        self._attempt(now, self._believe, now, data)

    def _believe(self, now: float, data: bytes | None) -> None:
        if self._refresh is not None:
            self._refresh.take(data)
            self._next(now)
            return
        assert self.root_pin is not None and data is not None
        if sha256(data).digest() != self.root_pin[1]:
            raise TufError(Distrust.MISMATCH, "root: not the one that the hub's map names")
        self._refresh = Refresh(self._crypto, data, self._wall_s(now), {})
        self._store.keep(self._refresh.trust.believed)
        self._next(now)

    def _complete(self, now: float, target: Target) -> None:
        if not self._store.is_right(target):
            self._store.start_over()
            self._fail(now, f"mismatch: {target.name}: what came is not what was signed")
            return
        self._store.install(target, self.version, self.rollout)
        self._stop()
        self._enter(UpdateState.TRIAL)
        self.is_installed = True

    def _fail(self, now: float, why: str) -> None:
        self._stop()
        self._attempts += 1
        if self._attempts >= ATTEMPTS_MAX:
            self._refuse(why)
        else:
            self._enter(UpdateState.WAITING, why)
            self._again_at = now + self._retry.wait_s()

    def _pause(self, now: float, wait_s: float) -> None:
        """Ask again later, from the byte at which it was left."""
        self._asks.clear()
        if self._file is not None:
            self._file.deadline = None
            self._again_at = now + wait_s

    def _refuse(self, why: str) -> None:
        self._stop()
        self._enter(UpdateState.REFUSED, why)
        self._remember()

    def _remember(self) -> None:
        row = (self.rollout, self.version, int(self.state), self.why)
        self.refused = [each for each in self.refused if each[:2] != row[:2]][1 - REMEMBERED_MAX :] + [row]

    def _enter(self, state: UpdateState, why: str = "") -> None:
        self.state, self.why = state, "".join(c for c in why if c.isprintable())

    def _stop(self) -> None:
        self._refresh = self._target = self._file = self._again_at = None
        self._asks.clear()


def _older(version: str, than: str) -> bool:
    """By their numbers; what has none is older than nothing."""
    numbers = [
        [int(part) for part in found[0].split(".")] for text in (version, than) if (found := _RELEASE.match(text))
    ]
    return len(numbers) == 2 and numbers[0] < numbers[1]
