"""`edgehub lock`: node keys count only when a key signed them that the hub never has."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeagent import crypto as providers
from hub.core import actions, lock
from hub.core.lock_signer import DeviceRequest, Request, SignedStatement, Signer, describe, key_text, parse_key
from hub.core.model import HubError, LockSignature
from hub.core.scribe import Scribe
from hub.io.locklines import answer_line, read_answers, read_requests, request_line
from hub.opening import change, open_store
from hub.output import ago, parse_duration, print_error, print_json, print_pairs, print_table
from hub.store.sqlite import SqliteTx

PASSPHRASE = "EDGEHUB_LOCK_PASSPHRASE"
FILE_BYTES_MAX = 64 << 20

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
def key(
    key_file: Annotated[Path, typer.Option(help="A new file; keep it off the hub, and a copy elsewhere.")],
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Protect it with a passphrase (argon2id).")] = False,
) -> None:
    """Make a lock key on this machine, which need not be the hub, and print its public half.

    \b
    edgehub lock key --key-file /media/stick/lock.key --passphrase
    """
    from hub.io import lockkey

    signer = lockkey.make(key_file, _new_passphrase() if passphrase else "")
    print_error(f"{key_file}: the key is in it. Whoever has it can let devices in; without it nobody can")
    sys.stdout.write(key_text(signer.public) + "\n")


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
    signer = _signer(key_file, request, make=True)
    keys = [*([signer.public] if signer else []), *(parse_key(text) for text in public or ())]
    with change() as (tx, scribe, wall_s):
        draft = lock.first_draft(scribe.lock, tx, list(dict.fromkeys(keys)), anew=replace)
        done = _say(tx, scribe, wall_s, draft, signer, request, anew=replace)
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
    if as_json:
        print_json(
            {
                "lock": None if statement is None else ("on" if statement.on else "off"),
                "statement": statement.sequence if statement else 0,
                "keys": [key_text(each) for each in statement.keys] if statement else [],
                "revoked": dict(statement.revoked) if statement else {},
                "devices": len(found),
                "pending": len(waiting),
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
    signer = _signer(key_file, "")
    assert signer is not None
    with open_store() as store, store.read() as tx:
        view = lock.LockView(providers.load(), tx.network().id)
        requests = _requests(view, tx, devices or [], everyone=everyone, by=signer.public, valid=valid)
    _confirm(requests, yes=yes)
    with change() as (tx, scribe, wall_s):
        for request in requests:
            _take(tx, scribe, signer.device(request, wall_s))
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
        found = tx.device(device) or actions.find_device(tx, device)
    _change(
        key_file, request, f"what was signed of {found.name or found.id} is void", revoke=(found.id, int(time.time()))
    )


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
        requests = _requests(view, tx, devices or [], everyone=not devices, by=None, valid=valid)
    _write(file, [request_line(each) for each in requests])
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
    requests = read_requests(_read(file))
    _confirm(requests, yes=yes or file == "-")
    signer = _signer(key_file, "")
    assert signer is not None
    _write(out, [answer_line(signer.sign(each, int(time.time()))) for each in requests])
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
    answers = read_answers(_read(file))
    with change() as (tx, scribe, wall_s):
        for answer in answers:
            network = answer.network if isinstance(answer, SignedStatement) else answer[0]
            if network != tx.network().id:
                raise HubError(f"{file}: signatures for network {network}, and this is {tx.network().id}")
            if isinstance(answer, SignedStatement):
                _put_in_force(tx, scribe, wall_s, answer.raw, anew=replace, force=force)
            else:
                _take(tx, scribe, answer[1])
    print_error(f"{len(answers)} signatures are in force")


# Common parts

_LACKS = {
    "signature": "a lock key's signature",
    "node-key": "its own signature of its node key: it must be online once",
}


def _lacks(standing: lock.Standing) -> list[str]:
    return [*([] if standing.by else ["signature"]), *([] if standing.node_key else ["node-key"])]


def _change(key_file: Path | None, request: str, done: str, *, force: bool = False, **what: Any) -> None:
    """The statement in force with a change: signed here, or written down to be signed elsewhere."""
    signer = _signer(key_file, request)
    with change() as (tx, scribe, wall_s):
        draft = lock.next_draft(scribe.lock, tx, **what)
        if draft.on and not force:
            lock.refuse_to_silence(lock.standings(scribe.lock, tx, wall_s), keys=draft.keys)
        said = _say(tx, scribe, wall_s, draft, signer, request)
    if said:
        print_error(done)


def _say(
    tx: SqliteTx,
    scribe: Scribe,
    wall_s: int,
    draft: lock.Draft,
    signer: Signer | None,
    request: str,
    *,
    anew: bool = False,
) -> bool:
    if signer is not None:
        lock.take_statement(scribe.lock, scribe.crypto, tx, signer.statement(draft, wall_s), anew=anew)
        return True
    _write(request, [request_line(draft)])
    print_error(f"have it signed: edgehub lock sign-requests {request} --key-file F --out OUT; then import-signatures")
    return False


def _put_in_force(tx: SqliteTx, scribe: Scribe, wall_s: int, raw: bytes, *, anew: bool, force: bool) -> None:
    before = lock.standings(scribe.lock, tx, wall_s)  # whoever the statement itself revokes is meant to be cut off
    statement = lock.take_statement(scribe.lock, scribe.crypto, tx, raw, anew=anew)
    if statement.on and not force:
        lock.refuse_to_silence(before, keys=tuple(statement.keys))


def _take(tx: SqliteTx, scribe: Scribe, signature: LockSignature) -> None:
    scribe.push(tx, lock.take_signature(scribe.lock, scribe.crypto, tx, signature))


def _requests(
    view: lock.LockView, tx: SqliteTx, names: list[str], *, everyone: bool, by: bytes | None, valid: str
) -> list[DeviceRequest]:
    """`by`: with --all, those that this key has not signed; None: those that no key has."""
    statement = lock.require(view, tx)
    if bool(names) is everyone:
        raise HubError("sign: name devices, or all with --all. `edgehub lock pending` shows those that are not signed")
    try:
        end = int(time.time()) + parse_duration(valid) if valid else 0
    except ValueError as error:
        raise HubError(f"--for {error}") from error
    found = [actions.find_device(tx, name) for name in names]
    if everyone:
        standings = lock.standings(view, tx, int(time.time()))
        found = [each.device for each in standings if (by not in each.by if by else not each.by)]
    network = tx.network().id
    return [
        DeviceRequest(network, each.id, each.name or "-", each.device_key, end, statement.revoked.get(each.id, -1))
        for each in found
    ]


def _confirm(requests: list[DeviceRequest] | list[Request], *, yes: bool) -> None:
    """What a person is about to vouch for."""
    if yes or not sys.stdin.isatty():
        return
    for request in requests:
        print_error(describe(request))
    if requests and not typer.confirm(f"Sign {len(requests)}?", err=True):
        raise typer.Exit(1)


def _signer(key_file: Path | None, request: str, *, make: bool = False) -> Signer | None:
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
    return lockkey.read(key_file, _passphrase)


def _passphrase() -> str:
    given = os.environ.get(PASSPHRASE)
    if given is None and not sys.stdin.isatty():
        raise HubError(f"the key has a passphrase, and there is no terminal to ask at. Set {PASSPHRASE}")
    return given if given is not None else str(typer.prompt("Passphrase", hide_input=True, err=True))


def _new_passphrase() -> str:
    given = os.environ.get(PASSPHRASE)
    if given is None:
        if not sys.stdin.isatty():
            raise HubError(f"--passphrase: there is no terminal to ask at. Set {PASSPHRASE}")
        given = str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True))
    if not given:
        raise HubError("--passphrase: an empty one protects nothing")
    return given


def _read(file: str) -> list[str]:
    if file == "-":
        data = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
    else:
        with Path(file).open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise HubError(f"{file}: longer than {FILE_BYTES_MAX >> 20} MiB. Is this the right file?")
    return data.decode("utf-8", "replace").splitlines()


def _write(file: str, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        with Path(file).open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise HubError(f"{file}: it is there already. Name another file") from None


def _name(tx: SqliteTx, device_id: str) -> str:
    device = tx.device(device_id)
    return f"{device.name} ({device_id})" if device is not None and device.name else device_id
