"""The verbs by which a device becomes a member and its agent runs or ends: up, down, run."""

from __future__ import annotations

import json
import os
import sys

from edgeagent.cli_base import EXIT_OF_CODE, FAILED, OK, REFUSED, USAGE, CommandError, ask, connect, settings_of

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any, NoReturn

TOKEN_CHARS_MAX = 8_192


def up(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError

    settings = settings_of(options)
    token = _token(options, options.join)
    if options.hub is not None:
        token = _ask_for_token(options, token)
    if not 0 < options.timeout <= 86_400:
        raise CommandError(USAGE, f"--timeout: {options.timeout}: want seconds, more than 0 and at most a day.")
    request = {"do": "up", "token": token, "hostname": options.hostname and settings.hostname}
    from edgeagent.cli_routes import asked_of

    request["routes"] = asked_of(options)
    client = connect(settings, options.timeout)
    started = client is None
    if client is None:
        from edgeagent.background import start

        client = start(settings, options.timeout)
    try:
        result = client.ask({key: value for key, value in request.items() if value}, _show_progress)
    except LocalError as error:
        text = str(error)
        if error.code == "timeout":
            text += " The agent goes on trying in the background: edgeagent status."
        elif error.code == "closed" and started:
            text = "the agent died before it was ready; why is above."
        raise CommandError(EXIT_OF_CODE.get(error.code, FAILED), text) from None
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['name']} {' '.join(result['addresses'])}")
    return OK


def _ask_for_token(options: argparse.Namespace, token: str | None) -> str:
    """A token by a person's approval in the dashboard."""
    from edgeagent.approval import ApprovalError
    from edgeagent.approval import ask as ask_person
    from edgeagent.board import find
    from edgeagent.context import facts

    if token is not None:
        raise CommandError(USAGE, "--hub: a token is given already. Give one of them.")

    settings = settings_of(options)
    board = settings.board or find(settings.state_dir).id

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        return ask_person(options.hub, options.hub_ca, options.hostname or os.uname().nodename, facts(board), show)
    except ApprovalError as error:
        raise CommandError(REFUSED if error.refused else FAILED, f"--hub {options.hub}: {error}") from None


def _show_progress(progress: dict[str, Any]) -> None:
    print(f"edgeagent: {progress.get('text', '')}", file=sys.stderr, flush=True)


def down(options: argparse.Namespace) -> int:
    ask(options, {"do": "down"})
    return OK


def run(options: argparse.Namespace) -> NoReturn:
    from edgeagent.background import become_agent

    become_agent(settings_of(options), _token(options, None))


def _token(options: argparse.Namespace, argument: str | None) -> str | None:
    """The join token from the argument, the file, or the environment, in this order."""
    if argument is not None and options.join_file is not None:
        raise CommandError(USAGE, "--join and --join-file: give one of them.")
    token = argument
    if options.join_file is not None:
        token = _read_token(options.join_file)
    elif token is None:
        token = os.environ.get("EDGEAGENT_TOKEN")
    if not token:
        return None
    token = token.strip()
    if len(token) > TOKEN_CHARS_MAX or not token.isascii() or not token.startswith("em1."):
        raise CommandError(USAGE, 'join token: not one. It is one line that begins with "em1.".')
    return token


def _read_token(path: str) -> str:
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            return file.read(TOKEN_CHARS_MAX + 2).decode("ascii", "replace")
    except OSError as error:
        raise CommandError(FAILED, f"--join-file {path}: {error.strerror}.") from None
