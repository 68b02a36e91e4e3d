"""What edgeflash says while it works: a line that moves on a terminal, or JSON lines on standard output."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

INTERVAL_S = 0.25  # between two lines about one thing


class Telling:
    """With `as_json`, one object a line on standard output: {"event": …, …}; else text on standard error."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()  # several cards are written at once
        self._moving = False

    def progress(self, what: str, step: str, done: int, total: int) -> None:
        """`done` of `total` bytes; `total` 0 for unknown. At most one line each INTERVAL_S, but for the last."""
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(what, 0.0) < INTERVAL_S and done != total:
                return
            self._last[what] = now
            if self.as_json:
                self.event("progress", what=what, step=step, done=done, total=total)
            elif sys.stderr.isatty():
                share = f"{100 * done // total:3d} %" if total else f"{done >> 20} MiB"
                sys.stderr.write(f"\r\033[K{what}: {step} {share}")
                sys.stderr.flush()
                self._moving = True

    def event(self, event: str, **about: Any) -> None:
        """Only with --json."""
        if self.as_json:
            print(json.dumps({"event": event, **about}), flush=True)

    def say(self, text: str) -> None:
        """Only without --json."""
        if not self.as_json:
            if self._moving:
                sys.stderr.write("\r\033[K")
                self._moving = False
            print(text, file=sys.stderr, flush=True)
