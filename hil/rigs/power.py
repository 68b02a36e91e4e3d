"""Drivers of Power: HTTP (power strips, PoE switches), USB hubs by uhubctl, commands of the operator's."""

from __future__ import annotations

import re
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from hil.errors import HilError, PowerFailed
from hil.programs import run
from hil.rigs.external import call

COMMAND_TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 65_536
SECRET_BYTES_MAX = 4_096


class _Switched:
    """`cycle` of what `on` and `off` do."""

    def __init__(self, name: str, delay_s: float) -> None:
        self.name = name
        self._delay_s = delay_s

    def on(self) -> None:
        raise NotImplementedError

    def off(self) -> None:
        raise NotImplementedError

    def cycle(self) -> None:
        self.off()
        time.sleep(self._delay_s)
        self.on()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the authorization to wherever it says."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HTTPPower(_Switched):
    """`values` are those of HTTPPowerPort. Secrets come of a file, and are in no text that this raises."""

    def __init__(self, name: str, values: Mapping[str, Any], delay_s: float, folder: Path) -> None:
        super().__init__(name, delay_s)
        self._values = values
        self._folder = folder
        for key in ("url", "state_url"):
            parts = urlsplit(values[key])
            if values[key] and parts.scheme not in ("http", "https"):
                raise PowerFailed(f"{name}: {key}: want http:// or https://, not {parts.scheme or 'nothing'}.")
            if parts.username is not None or parts.password is not None:
                raise PowerFailed(f"{name}: {key}: a password in a URL ends up in logs. Take authorization_file.")
        context = None
        if values["ca_file"]:
            try:
                context = ssl.create_default_context(cafile=str(folder / Path(values["ca_file"]).expanduser()))
            except OSError as error:
                raise PowerFailed(f"{name}: ca_file {values['ca_file']}: {error}.") from None
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # which Python 3.13 sets: edgeagent/approval.py
        # A proxy of the environment would see the authorization.
        self._opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def on(self) -> None:
        self._set("value_on")

    def off(self) -> None:
        self._set("value_off")

    def state(self) -> bool | None:
        url = self._values["state_url"]
        if not url:
            return None
        answer = self._ask(self._filled(url, "", True), "GET", None)
        return re.search(self._values["state_pattern"], answer, re.IGNORECASE) is not None

    def _set(self, which: str) -> None:
        state = self._values[which]
        body = self._filled(self._values["body"], state, False).encode() if self._values["body"] else None
        method = self._values["method"]
        if body is None and method != "GET":
            body = b""
        self._ask(self._filled(self._values["url"], state, True), method, body)

    def _filled(self, text: str, state: str, in_url: bool) -> str:
        """Two words are filled in, and no more of a format language: bodies are JSON, and full of braces."""
        for name, value in (("outlet", self._values["outlet"]), ("state", state)):
            text = text.replace("{" + name + "}", quote(value, safe="") if in_url else value)
        return text

    def _ask(self, url: str, method: str, body: bytes | None) -> str:
        headers = {}
        if body:
            headers["Content-Type"] = self._values["content_type"]
        if self._values["authorization_file"]:
            headers["Authorization"] = self._secret()
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=self._values["timeout"]) as answer:
                return str(answer.read(ANSWER_BYTES_MAX).decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                raise PowerFailed(f"{self.name}: {method} {url}: answered {error.code} {error.reason}.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise PowerFailed(
                f"{self.name}: {method} {url}: {reason}. Is the power strip on, and in this network?"
            ) from None

    def _secret(self) -> str:
        path = self._folder / Path(self._values["authorization_file"]).expanduser()
        try:
            with path.open(encoding="ascii") as file:
                if path.stat().st_mode & 0o077:
                    raise PowerFailed(f"{self.name}: {path}: others may read it. chmod 600 {path}")
                text = file.read(SECRET_BYTES_MAX).strip()
        except (OSError, ValueError) as error:
            raise PowerFailed(f"{self.name}: authorization_file {path}: {error}.") from None
        if not text.isprintable() or not text:
            raise PowerFailed(f"{self.name}: {path}: want one line, as in: Bearer TOKEN")
        return text


class USBPower(_Switched):
    """By uhubctl, which knows hubs by the kernel's names of them."""

    def __init__(self, name: str, match: Mapping[str, Any], index: int, delay_s: float) -> None:
        super().__init__(name, delay_s)
        hub = match.get("sys_name")
        if not isinstance(hub, str) or not re.fullmatch(r"\d+(-\d+(\.\d+)*)?", hub) or len(match) != 1:
            raise PowerFailed(f"{name}: USBPowerPort.match: want {{sys_name: '1-1.4'}}, as uhubctl lists hubs.")
        self._where = ("-l", hub, "-p", str(index))

    def on(self) -> None:
        self._do("-a", "on")

    def off(self) -> None:
        # -r: some hubs take a repeat until the power is off, because the kernel had suspended the port
        self._do("-a", "off", "-r", "5")

    def state(self) -> bool | None:
        found = re.search(r"^\s*Port \d+: [0-9a-f]{4} (\w+)", self._do(), re.MULTILINE)
        return found[1] != "off" if found else None

    def _do(self, *words: str) -> str:
        try:
            return call("uhubctl", [*self._where, *words], COMMAND_TIMEOUT_S)
        except HilError as error:
            if error.name == "missing-program":
                raise
            raise PowerFailed(
                f"{self.name}: {error}. Does the hub switch power ({' '.join(self._where)}), and may this user?"
            ) from None


class ExternalPower(_Switched):
    """Commands of the operator's, split as a shell splits words; no shell runs them."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(name, values["delay"])
        self._values = values

    def on(self) -> None:
        self._do("cmd_on")

    def off(self) -> None:
        self._do("cmd_off")

    def cycle(self) -> None:
        if self._values["cmd_cycle"]:
            self._do("cmd_cycle")
        else:
            super().cycle()

    def state(self) -> bool | None:
        return None

    def _do(self, which: str) -> None:
        try:
            words = shlex.split(self._values[which])
        except ValueError as error:
            raise PowerFailed(f"{self.name}: {which}: {error}.") from None
        if not words:
            raise PowerFailed(f"{self.name}: {which}: is empty.")
        try:
            # Only the first word is named in errors: the others may hold what nobody else is to see
            run(words, COMMAND_TIMEOUT_S, name=f"{which} ({words[0]})")
        except HilError as error:
            raise PowerFailed(f"{self.name}: {error}") from None
