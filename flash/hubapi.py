"""Join tokens of the hub's API (docs/api.md), with an API token of the scope tokens:write that is read from a file."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from flash.errors import FlashError

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 65_536
EXPIRES_S = 7 * 86_400  # time to ship a device, unless said otherwise
_LOCAL = ("127.0.0.1", "::1", "localhost")


class Hub:
    """`url` is that of the dashboard, https, or http on this very machine. One request a call; no redirect is followed,
    for the API token would follow too."""

    def __init__(self, url: str, api_token: str, ca_file: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
            raise FlashError(f"--hub {url[:80]!r}: want the address of the dashboard, as https://hub.example.org.")
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise FlashError(f"--hub {url[:80]!r}: an API token is sent over https only, but on the hub's own machine.")
        if not api_token.startswith("em_") or not api_token.isascii() or not api_token.isprintable():
            raise FlashError("--api-token-file: is no API token: one begins with em_. Make one: edgehub users token.")
        self._parts = parts
        self._api_token = api_token
        try:
            self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        except OSError as error:
            raise FlashError(f"--hub-ca {ca_file}: {error.strerror or error}.") from None

    def create_token(self, tags: Sequence[str], expires_s: int) -> str:
        """A new join token for one device."""
        asked = {"uses": 1, "expires_in": expires_s, "tags": list(tags)}
        token = self._post("/api/v1/tokens", asked).get("token")
        if not isinstance(token, str):
            raise FlashError(f"{self._parts.geturl()}: answered without a token. Is this an edgehub?")
        return token

    def _post(self, path: str, body: object) -> dict[str, object]:
        host, port, url = self._parts.hostname or "", self._parts.port, self._parts.geturl()
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._api_token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", self._parts.path.rstrip("/") + path, json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise FlashError(
                f"{url}: {getattr(error, 'strerror', None) or error}. Is the hub's dashboard there?"
            ) from None
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if response.status != 201 or not isinstance(answer, dict):
            detail = answer.get("detail") if isinstance(answer, dict) else ""
            raise FlashError(f"{url}: {response.status}: {detail or response.reason or 'no token was made'}")
        return answer
