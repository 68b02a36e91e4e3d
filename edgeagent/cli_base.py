"""What verbs of `edgeagent` have in common: exit status, errors, settings, and the agent that runs."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from edgeagent.config import Settings

OK, FAILED, USAGE, NOT_RUNNING, REFUSED, TIMED_OUT = range(6)
EXIT_OF_CODE = {"usage": USAGE, "refused": REFUSED, "timeout": TIMED_OUT}
ASK_TIMEOUT_S = 10.0


class CommandError(Exception):
    """Ends the command; `what: why. What next.`"""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def settings_of(options: argparse.Namespace) -> Settings:
    """Defaults, file, environment and command line. Raises CommandError."""
    from edgeagent.config import SETTINGS, ConfigError, load

    given = {name: getattr(options, name.replace("-", "_"), None) for name in SETTINGS}
    try:
        return load(given, file=getattr(options, "config", None))
    except ConfigError as error:
        raise CommandError(USAGE, f"{error}.") from None


def connect(settings: Settings, timeout_s: float) -> Any:
    """A connection to the running agent, None when none runs."""
    from edgeagent.io.localclient import connect as to_agent

    try:
        return to_agent(settings.socket, timeout_s)
    except PermissionError:
        raise CommandError(
            FAILED, f"{settings.socket}: not permitted. Only root and the agent's user may: try sudo."
        ) from None
    except OSError as error:
        raise CommandError(FAILED, f"{settings.socket}: {error.strerror or error}.") from None


def ask(options: argparse.Namespace, request: dict[str, Any]) -> Any:
    """What the running agent answers. Raises CommandError."""
    from edgeagent.io.localclient import LocalError

    settings = settings_of(options)
    client = connect(settings, ASK_TIMEOUT_S)
    if client is None:
        crash = f"{settings.state_dir}/crash"
        died = f" The last one died: {crash}." if os.path.exists(crash) else ""
        raise CommandError(NOT_RUNNING, f"the agent is not running.{died} Start it: edgeagent up.")
    try:
        return client.ask(request)
    except LocalError as error:
        text = str(error)
        if error.code == "timeout":
            text += " The hub may be out of reach: edgeagent status."
        raise CommandError(EXIT_OF_CODE.get(error.code, FAILED), text) from None
