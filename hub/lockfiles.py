"""What `edgehub lock` asks for and writes: keys in files, passphrases, files of lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from hub.core.lock_signer import Request, Signer, describe, key_text
from hub.core.model import HubError
from hub.output import print_error

PASSPHRASE = "EDGEHUB_LOCK_PASSPHRASE"
FILE_BYTES_MAX = 64 << 20


def confirm(requests: Sequence[Request], *, yes: bool) -> None:
    """What a person is about to vouch for."""
    if yes or not sys.stdin.isatty():
        return
    for request in requests:
        print_error(describe(request))
    if requests and not typer.confirm(f"Sign {len(requests)}?", err=True):
        raise typer.Exit(1)


def signer_of(key_file: Path | None, request: str, *, make: bool = False) -> Signer | None:
    """The key in a file, made if it is to be and is not there; None where a request is written instead."""
    from hub.io import lockkey  # argon2id and its libraries are for those who sign

    if (key_file is None) is (not request):
        raise HubError("who signs? Give --key-file F, or --request FILE for a key on another machine")
    if key_file is None:
        return None
    if make and not key_file.exists():
        signer = lockkey.make(key_file, os.environ.get(PASSPHRASE, ""))
        print_error(
            f"{key_file}: a new lock key, {key_text(signer.public)}. Take it off this machine when you are done"
        )
        return signer
    return read_key(key_file)


def read_key(key_file: Path) -> Signer:
    from hub.io import lockkey

    return lockkey.read(key_file, ask_passphrase)


def ask_passphrase(variable: str = PASSPHRASE) -> str:
    """Of a key that has one: what the environment's `variable` says, else what a person types."""
    given = os.environ.get(variable)
    if given is None and not sys.stdin.isatty():
        raise HubError(f"the key has a passphrase, and there is no terminal to ask at. Set {variable}")
    return given if given is not None else str(typer.prompt("Passphrase", hide_input=True, err=True))


def new_passphrase(variable: str = PASSPHRASE) -> str:
    given = os.environ.get(variable)
    if given is None:
        if not sys.stdin.isatty():
            raise HubError(f"--passphrase: there is no terminal to ask at. Set {variable}")
        given = str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True))
    if not given:
        raise HubError("--passphrase: an empty one protects nothing")
    return given


def read_lines(file: str) -> list[str]:
    if file == "-":
        data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
    else:
        with Path(file).open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise HubError(f"{file}: longer than {FILE_BYTES_MAX >> 20} MiB. Is this the right file?")
    return data.decode("utf-8", "replace").splitlines()


def write_lines(file: str, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise HubError(f"{file}: it is there already. Name another file") from None
