"""The hub's API (docs/api.md), for edgeflash and edgehil: one request a call, with an API token that nobody typed as an
argument."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from flash.errors import FlashError

TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 8 << 20
TOKEN_BYTES_MAX = 256
DETAIL_CHARS_MAX = 500
EXPIRES_S = 7 * 86_400  # of a join token: time to ship a device, unless said otherwise
_LOCAL = ("127.0.0.1", "::1", "localhost")


class Unreached(FlashError):
    """There was no answer, or none of a hub's."""


class Refused(FlashError):
    """The hub did not do it, and said why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The API token goes to whom it was meant for."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Hub:
    """`url` is that of the dashboard, https, or http on this very machine; no redirect is followed. `option` is what
    errors call it. An https proxy of the environment is used."""

    def __init__(
        self,
        url: str,
        api_token: str,
        ca_file: str | None = None,
        *,
        option: str = "--hub",
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("https", "http") or parts.username or parts.query or parts.fragment:
            raise FlashError(f"{option} {url[:80]!r}: want the address of the dashboard, as https://hub.example.org.")
        if parts.scheme == "http" and host not in _LOCAL:
            raise FlashError(
                f"{option} {url[:80]!r}: an API token is sent over https only, but on the hub's own machine."
            )
        self.url = url.rstrip("/")
        self._api_token = check_token(api_token)
        self._timeout_s = timeout_s
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if parts.scheme == "http":
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy would read the token
        else:
            try:
                context = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise FlashError(f"--hub-ca {ca_file}: {error.strerror or error}.") from None
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # which Python 3.13 sets: edgeagent/approval.py
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def create_token(self, tags: Sequence[str], expires_s: int) -> str:
        """A new join token for one device. Raises Unreached, Refused."""
        asked = {"uses": 1, "expires_in": expires_s, "tags": list(tags)}
        token = self.ask("POST", "/api/v1/tokens", asked).get("token")
        if not isinstance(token, str):
            raise Unreached(f"{self.url}: answered without a token. Is this an edgehub?")
        return token

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> dict[str, Any]:
        """The answer, {} for none. `body` is sent as JSON, bytes as they are. Raises Unreached, Refused."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {self._api_token}")
        if data is not None:
            request.add_header("Content-Type", kind)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                said = answer.read(ANSWER_BYTES_MAX)
            found = json.loads(said) if said else {}
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(f"{self.url}{path}: {error.code}: {_detail(error)}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            said_why = getattr(reason, "strerror", None) or reason or type(error).__name__
            raise Unreached(f"{self.url}: {said_why}. Is the hub's dashboard there?") from None
        if not isinstance(found, dict):
            raise Unreached(f"{self.url}: the answer is not a hub's. Is it the address of the dashboard?")
        return found


def check_token(text: str) -> str:
    """Whether it can be an API token; what is said of one that cannot says nothing of it. Raises FlashError."""
    word = text.strip()
    well_formed = word.startswith("em_") and word.isascii() and word.isprintable() and " " not in word
    if not well_formed or len(word) > TOKEN_BYTES_MAX:
        raise FlashError("that is no API token: one is a word that begins with em_. Make one: edgehub users token NAME")
    return word


def _detail(error: urllib.error.HTTPError) -> str:
    """Of RFC 9457, without what would move a terminal's cursor."""
    try:
        detail = str(json.loads(error.read(ANSWER_BYTES_MAX))["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason or "it says no more. Is it the address of the dashboard?"
    return "".join(char if char.isprintable() else " " for char in detail)[:DETAIL_CHARS_MAX]
