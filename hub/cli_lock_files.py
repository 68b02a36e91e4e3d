"""`edgehub lock`, the part for a key on a machine without a network: requests go there, signatures come back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeagent import crypto as providers
from hub import locking
from hub.cli_lock import Devices, Force, Yes, app, requests_for
from hub.core import lock
from hub.core.lock_signer import key_text
from hub.io.locklines import answer_line, read_answers, read_requests, request_line
from hub.lockfiles import confirm, new_passphrase, read_key, read_lines, write_lines
from hub.opening import doing, open_store
from hub.output import print_error

__all__ = ["app"]  # of cli_lock, with the commands of both


@app.command()
def key(
    key_file: Annotated[Path, typer.Option(help="A new file; keep it off the hub, and a copy elsewhere.")],
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Protect it with a passphrase (argon2id).")] = False,
) -> None:
    """Make a lock key on this machine, which need not be the hub, and print its public half.

    \b
    edgehub lock key --key-file /media/stick/lock.key --passphrase
    """
    from hub.io import lockkey

    signer = lockkey.make(key_file, new_passphrase() if passphrase else "")
    print_error(f"{key_file}: the key is in it. Whoever has it can let devices in; without it nobody can")
    sys.stdout.write(key_text(signer.public) + "\n")


@app.command("export-requests")
def export_requests(
    file: Annotated[str, typer.Argument(help="A new file, or - for standard output.")],
    devices: Devices = None,
    valid: Annotated[str, typer.Option("--for", help="How long it shall hold: 90d, 52w; without it, for good.")] = "",
) -> None:
    """Write what is to be signed of devices, for a key on a machine without a network: those named, or all unsigned.

    \b
    edgehub lock export-requests requests.txt
    """
    with open_store() as store, store.read() as tx:
        view = lock.LockView(providers.load(), tx.network().id)
        requests = requests_for(view, tx, devices or [], everyone=not devices, by=None, valid=valid)
    write_lines(file, [request_line(each) for each in requests])
    print_error(f"{len(requests)} requests. Sign them: edgehub lock sign-requests {file} --key-file F --out OUT")


@app.command("sign-requests")
def sign_requests(
    file: Annotated[str, typer.Argument(help="What `export-requests` or --request wrote; - for standard input.")],
    key_file: Annotated[Path, typer.Option(help="The file of a lock key.")],
    out: Annotated[str, typer.Option(help="A new file, or - for standard output.")] = "-",
    yes: Yes = False,
) -> None:
    """Sign on the machine where the key is; needs no hub there. Compare the ids with those that devices show first.

    \b
    edgehub lock sign-requests requests.txt --key-file lock.key --out signed.txt
    """
    requests = read_requests(read_lines(file))
    confirm(requests, yes=yes or file == "-")
    signer = read_key(key_file)
    write_lines(out, [answer_line(signer.sign(each, int(time.time()))) for each in requests])
    print_error(f"{len(requests)} signatures. Bring them to the hub: edgehub lock import-signatures {out}")


@app.command("import-signatures")
def import_signatures(
    file: Annotated[str, typer.Argument(help="What `sign-requests` wrote; - for standard input.")],
    force: Force = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the first statement of a new lock.")] = False,
) -> None:
    """Put signatures in force that were made elsewhere: all of a file, or none if one is wrong.

    \b
    edgehub lock import-signatures signed.txt
    """
    answers = read_answers(read_lines(file))
    with doing() as do:
        locking.take_answers(do, answers, anew=replace, force=force)
    print_error(f"{len(answers)} signatures are in force")
