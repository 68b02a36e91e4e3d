"""The hub that a rig's devices join: one of edgehil's own, in its own network, or one that is there, by its API."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from flash import hubapi
from flash.errors import FlashError
from hil import hub
from hil.errors import HilError, NotReached

TOKEN_S = 86_400


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
    """`url` is the dashboard's. The API token is read from a file."""

    def __init__(self, url: str, token_file: Path) -> None:
        text = _text(token_file)
        try:
            hubapi.check_token(text)
        except FlashError as error:
            raise HilError(f"hub_token_file {token_file}: {error}") from None
        try:
            self._hub = hubapi.Hub(url, text, option="hub_url")
        except FlashError as error:
            raise HilError(str(error)) from None

    def token(self) -> str:
        try:
            return self._hub.create_token([], TOKEN_S)
        except FlashError as error:
            raise NotReached(str(error)) from None

    def devices(self) -> dict[str, dict[str, Any]]:
        try:
            listed = self._hub.ask("GET", "/api/v1/devices").get("devices")
        except FlashError as error:
            raise NotReached(str(error)) from None
        if not isinstance(listed, list):
            raise NotReached(f"{self._hub.url}: answered without devices. Is this an edgehub?")
        return {device["name"]: device for device in listed}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise HilError(f"hub_token_file {file}: {error}") from None
