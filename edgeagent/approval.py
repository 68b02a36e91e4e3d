"""A join token without typing one: this device shows a link, somebody who has signed in to the hub approves it there.

The hub's dashboard is asked over HTTPS, whose certificate is checked: whoever answers there decides which network this
device joins. The token says everything else. Loaded by `edgeagent up --hub` alone, never by the agent.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from urllib.parse import urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ANSWER_MAX = 65_536
TIMEOUT_S = 15.0
INTERVAL_MIN_S, INTERVAL_MAX_S = 1, 30
WAIT_MAX_S = 3_600
MISSES_MAX = 20  # questions in a row that nobody answered
_QR_CHARS = frozenset(" \n▀▄█")


class ApprovalError(Exception):
    """Says why there is no token, and what next. `refused`: somebody said no."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused


def ask(url: str, ca_file: str | None, host: str, facts: dict[str, str], show: Callable[[str], None]) -> str:
    """The token, when somebody has approved. Raises ApprovalError."""
    hub = _Hub(url, ca_file)
    status, begun = hub.post("/join/begin", {"host": host.partition(".")[0].lower()[:63], "facts": facts})
    if status != 201 or not all(isinstance(begun.get(name), str) for name in ("code", "secret", "url")):
        raise ApprovalError(f"it gave no link ({_detail(status, begun)}). Is this the dashboard's address?")
    show(_invitation(begun))
    interval_s = min(max(_number(begun, "interval", 3), INTERVAL_MIN_S), INTERVAL_MAX_S)
    deadline = time.monotonic() + min(_number(begun, "expires_in", 900), WAIT_MAX_S)
    misses = 0
    while time.monotonic() < deadline and misses < MISSES_MAX:
        time.sleep(interval_s)
        try:
            status, answer = hub.post("/join/poll", {"secret": begun["secret"]})
        except ApprovalError:
            misses += 1
            continue
        misses = 0
        state = answer.get("state") if status == 200 else ""
        if state == "approved" and isinstance(answer.get("token"), str):
            return str(answer["token"])
        if state == "denied":
            raise ApprovalError("somebody denied it.", refused=True)
        if state == "over":
            break
    raise ApprovalError("nobody approved it in time. Start again for another link.")


class _Hub:
    """The dashboard."""

    def __init__(self, url: str, ca_file: str | None) -> None:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        self._host, self._port = parts.hostname or "", parts.port
        here = self._host in ("localhost", "127.0.0.1", "::1")
        if not self._host or parts.path.strip("/") or parts.scheme not in ("https", "http"):
            raise ApprovalError("not an address. Write for example https://hub.example.org.")
        if parts.scheme == "http" and not here:
            raise ApprovalError("plain HTTP can be read and answered by anybody on the way. Use https.")
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._context = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise ApprovalError(f"--hub-ca {ca_file}: {error.strerror or 'not a certificate'}.") from None
            # Python 3.13 sets it: a CA made by `openssl req -x509` alone would do on one half of a fleet and not on the
            # other. What it asks for beyond signature, name and dates are extensions (RFC 5280).
            self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, answer). Raises ApprovalError when there is none."""
        connection: http.client.HTTPConnection
        if self._context is not None:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read(ANSWER_MAX)
        except ssl.SSLCertVerificationError as error:
            raise ApprovalError(
                f"its certificate is not good ({error.verify_message}). --hub-ca names another CA."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ApprovalError(f"it does not answer ({getattr(error, 'strerror', None) or error}).") from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        return response.status, answer if isinstance(answer, dict) else {}


def _invitation(begun: dict[str, Any]) -> str:
    """What is shown; whatever the other side sent, it does not steer the terminal."""
    qr = begun.get("qr")
    drawn = qr if isinstance(qr, str) and set(qr) <= _QR_CHARS and len(qr) < 8_192 else ""
    link, code = (_printable(begun[name]) for name in ("url", "code"))
    return f"{drawn}\nTo let this device in, open\n\n    {link}\n\nand compare the code: {code}\n"


def _printable(text: str) -> str:
    return "".join(char for char in text[:300] if char.isprintable())


def _detail(status: int, answer: dict[str, Any]) -> str:
    detail = answer.get("detail")
    return _printable(detail) if isinstance(detail, str) else f"status {status}"


def _number(answer: dict[str, Any], name: str, default: int) -> int:
    value = answer.get(name)
    return value if isinstance(value, int) else default
