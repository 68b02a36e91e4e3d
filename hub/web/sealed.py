"""What a browser keeps for us for some minutes between two requests, in a cookie that it cannot change."""

from __future__ import annotations

import hmac
import json
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from hashlib import blake2s
from typing import Any

from fastapi import Request, Response

from hub.web import cookies

LIFE_S = 600
_USED_MAX = 4_096


class Sealer:
    """`key` is a secret of this hub, the same in each of its processes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._used: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, request: Request, response: Response, purpose: str, values: dict[str, Any]) -> None:
        text = json.dumps({**values, "exp": int(time.time()) + LIFE_S}).encode()
        value = f"{urlsafe_b64encode(text).decode()}.{self._mark(purpose, text).hex()}"
        cookies.put_short(request, response, purpose, value, LIFE_S)

    def take(self, request: Request, response: Response | None, purpose: str) -> dict[str, Any] | None:
        """Once: a second time gives nothing, and neither does a cookie that we did not make, or long ago."""
        encoded, _, mark = cookies.short(request, purpose).partition(".")
        if response is not None:
            cookies.clear_short(request, response, purpose)
        try:
            text, said = urlsafe_b64decode(encoded), bytes.fromhex(mark)
        except ValueError:
            return None
        if not hmac.compare_digest(said, self._mark(purpose, text)):
            return None
        values: dict[str, Any] = json.loads(text)
        with self._lock:
            if values["exp"] < time.time() or said in self._used:
                return None
            self._used[said] = None
            if len(self._used) > _USED_MAX:
                self._used.popitem(last=False)
        return values

    def _mark(self, purpose: str, text: bytes) -> bytes:
        return blake2s(purpose.encode() + b"\0" + text, key=self._key).digest()
