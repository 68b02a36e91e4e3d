"""`edgehub lock`: node keys count only when a key signed them that the hub never has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeagent import crypto as providers
from hub import locking
from hub.core import actions, lock
from hub.core.lock_signer import DeviceRequest, Signer, key_text, parse_key
from hub.core.model import HubError
from hub.io.locklines import request_line
from hub.lockfiles import confirm, read_key, signer_of, write_lines
from hub.opening import doing, open_store
from hub.operations import Doing
from hub.output import ago, parse_duration, print_error, print_json, print_pairs, print_table
from hub.store.sql import SqlTx

ENDING_S = 30 * 86_400

app = typer.Typer(
    help="The network lock: devices accept only those that a key signed which the hub never has. See docs/lock.md.",
    epilog="Begin with:  edgehub lock init --key-file F,  edgehub lock sign --all --key-file F,  "
    "edgehub lock pending,  edgehub lock on --key-file F",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyFile = Annotated[
    Path | None,
    typer.Option(help="The file of a lock key. It asks for the passphrase, or takes EDGEHUB_LOCK_PASSPHRASE."),
]
RequestFile = Annotated[
    str, typer.Option("--request", metavar="FILE", help="Write what is to be signed elsewhere; - for standard output.")
]
Devices = Annotated[list[str] | None, typer.Argument(metavar="[DEVICE]…", help="Host names, addresses or ids.")]
Force = Annotated[bool, typer.Option("--force", help="Even if devices are cut off by it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    key_file: KeyFile = None,
    public: Annotated[list[str] | None, typer.Option("--key", help="A further lock key, public. Repeatable.")] = None,
    request: RequestFile = "",
    replace: Annotated[bool, typer.Option("--replace", help="Begin anew when all keys are lost.")] = False,
) -> None:
    """Give the network a lock, not yet on: devices learn its keys and sign their node keys, and refuse nothing.

    \b
    edgehub lock init --key-file /media/stick/lock.key
    edgehub lock init --key bGV0IG1lIGluIG9yIG5vdCwgdGhhdCBpcyBpdCBhbGw= --request lock.txt
    """
    signer = signer_of(key_file, request, make=True)
    keys = [*([signer.public] if signer else []), *(parse_key(text) for text in public or ())]
    with doing() as do:
        draft = lock.first_draft(do.scribe.lock, do.tx, list(dict.fromkeys(keys)), anew=replace)
        done = _say(do, draft, signer, request, anew=replace)
    if done:
        print_error("the network has a lock; it is not on yet. Next: edgehub lock sign --all, then edgehub lock on")


@app.command()
def status(as_json: Json = False) -> None:
    """Show the lock: on or off, its keys, how many devices are signed.

    \b
    edgehub lock status
    """
    with open_store() as store, store.read() as tx:
        view = lock.LockView(providers.load(), tx.network().id)
        statement = view.in_force(tx)
        found = lock.standings(view, tx, int(time.time()))
        names = {device: _name(tx, device) for device in (statement.revoked if statement else ())}
    waiting = [each for each in found if each.is_pending]
    ending = sum(0 < each.until < time.time() + ENDING_S for each in found)
    if as_json:
        print_json(
            {
                "lock": None if statement is None else ("on" if statement.on else "off"),
                "statement": statement.sequence if statement else 0,
                "keys": [key_text(each) for each in statement.keys] if statement else [],
                "revoked": dict(statement.revoked) if statement else {},
                "devices": len(found),
                "pending": len(waiting),
                "ending": ending,
            }
        )
        return
    if statement is None:
        print_error("the network has no lock: its devices trust what the hub signs. `edgehub lock init` makes one")
        return
    print_pairs(
        [
            ("lock", "on" if statement.on else "off: devices refuse nothing"),
            ("statement", str(statement.sequence)),
            *(
                ("key", key_text(each) + (" (signed the statement)" if each == statement.by else ""))
                for each in statement.keys
            ),
            ("devices", f"{len(found) - len(waiting)} of {len(found)} can be reached under the lock"),
            *(
                ("revoked", f"{name}, what was signed up to {ago(statement.revoked[id_])}")
                for id_, name in names.items()
            ),
        ]
    )
    if ending:
        print_error(f"the signatures of {ending} devices end within 30 days: edgehub lock sign DEVICE…")
    if waiting:
        print_error(f"{len(waiting)} devices are not signed. `edgehub lock pending` shows them")


@app.command()
def pending(as_json: Json = False) -> None:
    """List devices that others refuse under the lock, and what each lacks.

    \b
    edgehub lock pending
    """
    with open_store() as store, store.read() as tx:
        view = lock.LockView(providers.load(), tx.network().id)
        lock.require(view, tx)
        found = [each for each in lock.standings(view, tx, int(time.time())) if each.is_pending]
    if as_json:
        print_json([{"id": each.device.id, "name": each.device.name, "lacks": _lacks(each)} for each in found])
        return
    print_table(
        ("NAME", "ID", "LACKS", "SEEN"),
        (
            (
                each.device.name or "-",
                each.device.id,
                " and ".join(_LACKS[what] for what in _lacks(each)),
                "online" if each.device.online else ago(each.device.last_seen_s),
            )
            for each in found
        ),
        empty="none: every device is signed",
    )


@app.command()
def sign(
    devices: Devices = None,
    everyone: Annotated[bool, typer.Option("--all", help="All that no key of the lock has signed yet.")] = False,
    key_file: KeyFile = None,
    valid: Annotated[str, typer.Option("--for", help="How long it holds: 90d, 52w; without it, for good.")] = "",
    yes: Yes = False,
) -> None:
    """Let devices in under the lock. Their node keys may then change as often as they like without you.

    \b
    edgehub lock sign cam-3 --key-file /media/stick/lock.key
    edgehub lock sign --all --key-file /media/stick/lock.key
    """
    if key_file is None:
        raise HubError("sign: --key-file is missing. For a key on another machine: edgehub lock export-requests")
    signer = read_key(key_file)
    with open_store() as store, store.read() as tx:
        view = lock.LockView(providers.load(), tx.network().id)
        requests = requests_for(view, tx, devices or [], everyone=everyone, by=signer.public, valid=valid)
    confirm(requests, yes=yes)
    with doing() as do:
        locking.take_signatures(do, [signer.device(request, do.wall_s) for request in requests])
    print_error(f"{len(requests)} devices are signed")


@app.command()
def on(key_file: KeyFile = None, request: RequestFile = "", force: Force = False) -> None:
    """From now on devices refuse node keys that are not signed. Refused while that would cut devices off.

    \b
    edgehub lock on --key-file /media/stick/lock.key
    """
    _change(key_file, request, "the lock is on", force=force, on=True)


@app.command()
def off(key_file: KeyFile = None, request: RequestFile = "") -> None:
    """Devices refuse nothing any more. They keep the lock's keys: only those can turn it on again, or change it.

    \b
    edgehub lock off --key-file /media/stick/lock.key
    """
    _change(key_file, request, "the lock is off", on=False)


@app.command("add-key")
def add_key(
    public: Annotated[str, typer.Argument(metavar="KEY", help="Public, as `edgehub lock key` prints it.")],
    key_file: KeyFile = None,
    request: RequestFile = "",
) -> None:
    """Let a further key sign. A key of the lock must sign this; tokens made from now on name both.

    \b
    edgehub lock add-key bGV0IG1lIGluIG9yIG5vdCwgdGhhdCBpcyBpdCBhbGw= --key-file /media/stick/lock.key
    """
    _change(key_file, request, "the lock has another key", add=parse_key(public))


@app.command("remove-key")
def remove_key(
    public: Annotated[str, typer.Argument(metavar="KEY", help="As `edgehub lock status` shows it.")],
    key_file: KeyFile = None,
    request: RequestFile = "",
    force: Force = False,
) -> None:
    """Void a key and all that it signed. Another key of the lock must sign this.

    \b
    edgehub lock sign --all --key-file new.key
    edgehub lock remove-key bGV0IG1lIGluIG9yIG5vdCwgdGhhdCBpcyBpdCBhbGw= --key-file new.key
    """
    _change(key_file, request, "the key is void", force=force, remove=parse_key(public))


@app.command()
def revoke(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Host name, address or id, of a removed one too.")],
    key_file: KeyFile = None,
    request: RequestFile = "",
) -> None:
    """Void what was signed of a device, for devices that the hub may not reach or a hub that may lie.

    \b
    edgehub devices remove cam-3
    edgehub lock revoke z5mnfn2kspa4rqvkq6nmx3yl --key-file /media/stick/lock.key
    """
    with open_store() as store, store.read() as tx:
        what = locking.revocation(tx, int(time.time()), device)
        name = _name(tx, what[0])
    _change(key_file, request, f"what was signed of {name} is void", revoke=what)


# Common parts

_LACKS = {
    "signature": "a lock key's signature",
    "node-key": "its own signature of its node key: it must be online once",
}


def _lacks(standing: lock.Standing) -> list[str]:
    return [*([] if standing.by else ["signature"]), *([] if standing.node_key else ["node-key"])]


def _change(key_file: Path | None, request: str, done: str, *, force: bool = False, **what: Any) -> None:
    """The statement in force with a change: signed here, or written down to be signed elsewhere."""
    signer = signer_of(key_file, request)
    with doing() as do:
        draft = locking.draft_request(do.scribe.lock, do.tx, do.wall_s, force=force, **what)
        said = _say(do, draft, signer, request)
    if said:
        print_error(done)


def _say(do: Doing, draft: lock.Draft, signer: Signer | None, request: str, *, anew: bool = False) -> bool:
    if signer is not None:
        locking.take_statement(do, signer.statement(draft, do.wall_s), anew=anew)
        return True
    write_lines(request, [request_line(draft)])
    print_error(f"have it signed: edgehub lock sign-requests {request} --key-file F --out OUT; then import-signatures")
    return False


def requests_for(
    view: lock.LockView, tx: SqlTx, names: list[str], *, everyone: bool, by: bytes | None, valid: str
) -> list[DeviceRequest]:
    """`by`: with --all, those that this key has not signed; None: those that no key has."""
    lock.require(view, tx)
    if bool(names) is everyone:
        raise HubError("sign: name devices, or all with --all. `edgehub lock pending` shows those that are not signed")
    try:
        end = int(time.time()) + parse_duration(valid) if valid else 0
    except ValueError as error:
        raise HubError(f"--for {error}") from error
    found = [actions.find_device(tx, name) for name in names]
    return locking.requests(view, tx, int(time.time()), found, by=by, end=end)


def _name(tx: SqlTx, device_id: str) -> str:
    device = tx.device(device_id)
    return f"{device.name} ({device_id})" if device is not None and device.name else device_id
