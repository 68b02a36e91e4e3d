"""The hub that a rig's devices join: one of edgehil's own, in its own network, or one that is there, by its API."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from hil import hub
from hil.errors import HilError, NotReached

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 8 << 20
TOKEN_S = 86_400
_LOCAL = ("127.0.0.1", "::1", "localhost")


class RigHub(Protocol):
    def token(self) -> str:
        """A join token for one device."""

    def devices(self) -> dict[str, dict[str, Any]]:
        """What the hub lists, by name: docs/api.md. Raises NotReached."""


class OwnHub:
    """In the host's place of edgehil's network."""

    def __init__(self, running: hub.Hub) -> None:
        self._hub = running

    def token(self) -> str:
        return self._hub.ask("token", "create")

    def devices(self) -> dict[str, dict[str, Any]]:
        return self._hub.devices()


class RemoteHub:
    """`url` is the dashboard's. The API token is read from a file; no redirect is followed, or it would be too."""

    def __init__(self, url: str, token_file: Path) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query:
            raise HilError(f"hub_url {url[:80]!r}: want the address of the dashboard, as https://hub.example.org")
        if parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise HilError(f"hub_url {url[:80]!r}: an API token is sent over https only, but on the hub's own machine")
        try:
            self._token = token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise HilError(f"hub_token_file {token_file}: {error}") from None
        if not self._token.startswith("em_") or not self._token.isprintable():
            raise HilError(f"{token_file}: is no API token: one begins with em_. Make one: edgehub users token NAME")
        self._parts = parts
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None

    def token(self) -> str:
        made = self._ask("POST", "/api/v1/tokens", {"uses": 1, "expires_in": TOKEN_S, "tags": []}).get("token")
        if not isinstance(made, str):
            raise NotReached(f"{self._parts.geturl()}: answered without a token. Is this an edgehub?")
        return made

    def devices(self) -> dict[str, dict[str, Any]]:
        return {device["name"]: device for device in self._ask("GET", "/api/v1/devices", None)["devices"]}

    def _ask(self, method: str, path: str, body: object) -> dict[str, Any]:
        host, port, url = self._parts.hostname or "", self._parts.port, self._parts.geturl()
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, self._parts.path.rstrip("/") + path, sent, headers)
            response = connection.getresponse()
            answer = json.loads(response.read(ANSWER_BYTES_MAX))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotReached(f"{url}: {error}. Is the hub's dashboard there?") from None
        finally:
            connection.close()
        if response.status not in (200, 201) or not isinstance(answer, dict):
            detail = answer.get("detail") if isinstance(answer, dict) else ""
            raise NotReached(f"{url}{path}: {response.status}: {detail or response.reason}")
        return answer
