"""`edgehub update`: the repository of updates that devices believe, and the versions in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub import agentfile, updating
from hub.core.model import HubError
from hub.io import lockkey
from hub.lockfiles import ask_passphrase, new_passphrase, read_lines, write_lines
from hub.opening import current_state, doing
from hub.output import ago, print_error, print_json, print_table
from hub.published import read as read_published

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

    from hub.updates import Repository

app = typer.Typer(
    help="Versions of the agent that devices may fetch, signed as The Update Framework has it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PASSPHRASE = "EDGEHUB_ROOT_PASSPHRASE"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RootKey = Annotated[
    Path | None, typer.Option(help="The file of the root key; keep it off this machine when it is not needed.")
]
Request = Annotated[
    str, typer.Option(help="Write the root to be signed elsewhere into this new file, or - for stdout.")
]
Protect = Annotated[bool, typer.Option("--passphrase", help="Protect a new root key with a passphrase (argon2id).")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
_MAKER = "`edgehub update key --root-key FILE` makes one"


@app.command()
def init(
    root_key: RootKey = None,
    passphrase: Protect = False,
    root_public: Annotated[str, typer.Option(help="Public half of a root key that is elsewhere; with --request.")] = "",
    request: Request = "",
) -> None:
    """Make the repository: the root key in a file of its own, the other keys in the hub's state directory.

    Devices hear of the first root in their signed maps. The root key signs only this and `rotate`.

    \b
    edgehub update init --root-key /media/stick/root.key --passphrase
    edgehub update init --root-public 3b6a27bc… --request root.json        the key is on another machine
    """
    with _writing() as repository:
        if repository.exists:
            raise HubError(
                "updates: there is a repository already. `edgehub update list` shows it, `rotate` gives new keys"
            )
        if root_key is not None:
            seed = _make_or_read(root_key, passphrase)
            public = _public(seed)
        else:
            seed, public = b"", _public_from(root_public, request)
        draft = repository.draft(int(time.time()), root_public=public)
        _finish(repository, draft, [seed] if seed else [], request)


@app.command()
def key(root_key: Annotated[Path, typer.Option(help="A new file.")], passphrase: Protect = False) -> None:
    """Make a root key on any machine, which needs no hub, and print its public half.

    \b
    edgehub update key --root-key root.key --passphrase
    """
    seed = lockkey.make_seed(root_key, new_passphrase(PASSPHRASE) if passphrase else "", lockkey.UPDATE_MARK)
    print_error(f"{root_key}: the key is in it. Whoever has it decides what the fleet runs; keep a copy elsewhere")
    typer.echo(_public(seed).hex())


@app.command()
def sign(
    file: Annotated[str, typer.Argument(help="What --request wrote; - for standard input.")],
    root_key: Annotated[Path, typer.Option(help="The file of a root key.")],
    out: Annotated[str, typer.Option(help="A new file, or - for standard output.")] = "-",
    yes: Yes = False,
) -> None:
    """Sign a root on the machine where the key is; needs no hub there. A new root key and the old one both sign.

    \b
    edgehub update sign root.json --root-key root.key --out signed.json
    """
    from hub import updates

    draft = updates.read_draft("\n".join(read_lines(file)))
    print_error(updates.describe_draft(draft))
    if not yes and file != "-":
        typer.confirm("Sign it?", abort=True, err=True)
    updates.sign_draft(draft, _read(root_key))
    write_lines(out, updates.write_draft(draft).splitlines())
    print_error(f"bring it to the hub: edgehub update take {out}")


@app.command()
def take(file: Annotated[str, typer.Argument(help="What `sign` wrote; - for standard input.")]) -> None:
    """Put a root in force that was signed elsewhere.

    \b
    edgehub update take signed.json
    """
    from hub import updates

    draft = updates.read_draft("\n".join(read_lines(file)))
    with _writing() as repository:
        _install(repository, draft)


@app.command()
def rotate(
    root_key: RootKey = None,
    request: Request = "",
    role: Annotated[
        list[str] | None, typer.Option(help="Whose key: targets, snapshot, timestamp; all three without. Repeatable.")
    ] = None,
    new_root_key: Annotated[Path | None, typer.Option(help="Another root key, made if it is not there.")] = None,
    passphrase: Protect = False,
) -> None:
    """Give roles new keys, and the root five more years: after a key was lost, or seen by somebody, or grew old.

    What the old keys signed does not count any more, and is signed anew.

    \b
    edgehub update rotate --root-key root.key
    edgehub update rotate --root-key old.key --new-root-key new.key --role targets
    """
    from hub.updates import ONLINE

    roles = tuple(role or ONLINE)
    if unknown := [each for each in roles if each not in ONLINE]:
        raise HubError(f"--role {unknown[0]}: one of {', '.join(ONLINE)} expected")
    if (root_key is None) is (not request):
        raise HubError("who signs? Give --root-key FILE, or --request FILE for a key on another machine")
    with _writing() as repository:
        if not repository.exists:
            raise HubError("updates: there is no repository here. `edgehub update init --root-key FILE` makes one")
        seeds = [_read(root_key)] if root_key is not None else []
        public = b""
        if new_root_key is not None:
            seeds.append(_make_or_read(new_root_key, passphrase))
            public = _public(seeds[-1])
        draft = repository.draft(int(time.time()), root_public=public, renew=roles)
        _finish(repository, draft, seeds, request)


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="An agent as `tools/package zipapp` makes it.")],
    version: Annotated[str, typer.Option(help="What its manifest must say.")] = "",
    abi: Annotated[str, typer.Option(help="What its manifest must say, as in aarch64-musl.")] = "",
    downgrade: Annotated[bool, typer.Option("--downgrade", help="Devices that run a newer one shall take it.")] = False,
) -> None:
    """Let devices fetch a version. None does before a rollout says so. Repeat for each ABI.

    \b
    edgehub update publish edgeagent-0.2.0-aarch64-musl.pyz
    edgehub rollout create --version 0.2.0
    """
    agent = agentfile.read(file, version=version, abi=abi)
    with _writing() as repository:
        name = repository.publish(agent, int(time.time()), downgrade=downgrade)
        with doing() as do:
            updating.note_published(do, agent)
    print_error(f"published: {name}. Bring it to devices: edgehub rollout create --version {agent.version}")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what is published, and how long the signatures hold.

    \b
    edgehub update list
    """
    found = read_published(current_state().updates)
    if as_json:
        print_json(updating.describe(found))
        return
    print_table(
        ("VERSION", "ABI", "SIZE", "PUBLISHED", "FILE"),
        (
            (each.version, each.abi, f"{each.length / 1024:.0f} KiB", ago(each.published_s), each.name)
            for each in found.targets
        ),
        empty="nothing is published. `edgehub update publish FILE` does that"
        if found.roles
        else "there is no repository of updates. `edgehub update init --root-key FILE` makes one",
    )
    for role in found.roles:
        soon = ": see `edgehub update rotate`" if role.name == "root" and role.is_soon(int(time.time())) else ""
        print_error(f"{role.name} {role.version} holds for {ago(role.expires_s).removeprefix('in ')}{soon}")


@app.command()
def revoke(version: Annotated[str, typer.Argument(help="As `edgehub update list` shows it.")]) -> None:
    """Take a version back: no device begins it any more, and rollouts of it pause. Devices that run it go on with it.

    \b
    edgehub update revoke 0.2.0
    """
    with _writing() as repository:
        gone = repository.revoke(version, int(time.time()))
        with doing() as do:
            paused = updating.note_revoked(do, version)
    print_error(f"revoked: {', '.join(gone)}" + (f"; paused: rollout {', '.join(map(str, paused))}" if paused else ""))


@app.command()
def refresh(force: Annotated[bool, typer.Option("--force", help="Also what is still young.")] = False) -> None:
    """Sign anew what has lived half its life. The running hub does so by itself.

    \b
    edgehub update refresh
    """
    with _writing() as repository:
        if not repository.exists:
            return
        done = repository.refresh(int(time.time()), force=force)
    print_error(f"signed anew: {', '.join(done) or 'nothing was due'}")


# Inner


def _writing() -> updating.Writing:
    return updating.Writing(current_state())


def _finish(repository: Repository, draft: Metadata[Root], seeds: list[bytes], request: str) -> None:
    """Sign and install it, or write it down for whoever has the key."""
    from hub import updates

    for seed in seeds:
        updates.sign_draft(draft, seed)
    if request:
        write_lines(request, updates.write_draft(draft).splitlines())
        print_error(f"{updates.describe_draft(draft)}\nSign it: edgehub update sign {request} --root-key F --out OUT")
        return
    _install(repository, draft)


def _install(repository: Repository, draft: Metadata[Root]) -> None:
    repository.install(draft, int(time.time()))
    with doing() as do:
        updating.note_root(do, repository, draft.signed.version)
    print_error(f"root {draft.signed.version} is in force. Back up {repository.directory} beside the hub")


def _make_or_read(path: Path, passphrase: bool) -> bytes:
    if path.exists():
        return _read(path)
    seed = lockkey.make_seed(path, new_passphrase(PASSPHRASE) if passphrase else "", lockkey.UPDATE_MARK)
    print_error(f"{path}: a new root key. Take it off this machine, and keep a copy: nobody can replace it")
    return seed


def _read(path: Path) -> bytes:
    return lockkey.read_seed(path, lambda: ask_passphrase(PASSPHRASE), lockkey.UPDATE_MARK, _MAKER)


def _public(seed: bytes) -> bytes:
    from edgeagent.crypto import load

    return load().ed25519_public(seed)


def _public_from(text: str, request: str) -> bytes:
    if not text or not request:
        raise HubError("where is the root key? Give --root-key FILE, or --root-public KEY --request FILE")
    try:
        public = bytes.fromhex(text)
    except ValueError:
        public = b""
    if len(public) != 32:
        raise HubError("--root-public: 64 hexadecimal digits expected, as `edgehub update key` prints them")
    return public
