"""`edgehub lock`, the part for a key on a machine without a network: requests go there, signatures come back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from edgeagent import crypto as providers
from hub.cli_lock import Devices, Force, Yes, app, put_in_force, requests_for, take
from hub.core import lock
from hub.core.lock_signer import SignedStatement, key_text
from hub.core.model import HubError
from hub.io.locklines import answer_line, read_answers, read_requests, request_line
from hub.lockfiles import confirm, new_passphrase, read_key, read_lines, write_lines
from hub.opening import change, open_store
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
    with change() as (tx, scribe, wall_s):
        for answer in answers:
            network = answer.network if isinstance(answer, SignedStatement) else answer[0]
            if network != tx.network().id:
                raise HubError(f"{file}: signatures for network {network}, and this is {tx.network().id}")
            if isinstance(answer, SignedStatement):
                put_in_force(tx, scribe, wall_s, answer.raw, anew=replace, force=force)
            else:
                take(tx, scribe, answer[1])
    print_error(f"{len(answers)} signatures are in force")
