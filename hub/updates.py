"""The repository of updates, as The Update Framework 1.0 has it: made, filled and renewed by python-tuf, which is
loaded only here.

    updates/metadata/    N.root.json  N.targets.json  N.snapshot.json  timestamp.json     devices fetch them
    updates/targets/     SHA256.NAME                                                      and these
    updates/keys/        targets.key  snapshot.key  timestamp.key                         0600, the hub's
    the root key         a file wherever its owner wants it, under a passphrase if they wish; the hub never needs it

What is written is new beside the old, synced and renamed, and the timestamp last: who fetches sees the old state or the
new one, whole. One writer at a time (`lock`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub import published
from hub.agentfile import AgentFile
from hub.core.filters import version_key
from hub.core.model import HubError
from hub.io import lockkey
from hub.renewal import HALF_LIFE_S

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root

ONLINE = ("targets", "snapshot", "timestamp")
LIFE_S = {"root": 5 * 365 * 86_400, **{role: 2 * half_s for role, half_s in HALF_LIFE_S.items()}}
KEPT = 10  # metadata of older versions, for devices that are fetching it
TARGETS_MAX = 256
DRAFT_MARK = "edgehub-update-root"
REVOKED = "x-edgemesh-revoked"
REVOKED_MAX = 256
_NONE = "updates: there is no repository here. `edgehub update init --root-key FILE` makes one"


class Repository:
    """In `State.updates`. `wall_s` is the time wherever something is signed. Methods raise HubError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata, self.targets, self.keys = directory / "metadata", directory / "targets", directory / "keys"

    @property
    def exists(self) -> bool:
        return (self.metadata / "timestamp.json").exists()

    def read(self) -> published.Published:
        return published.read(self.directory)

    def root_digest(self) -> bytes:
        """SHA-256 of the first root, which devices are told to begin with."""
        return sha256((self.metadata / "1.root.json").read_bytes()).digest()

    # Roots

    def draft(self, wall_s: int, *, root_public: bytes = b"", renew: tuple[str, ...] = ()) -> Metadata[Root]:
        """The next root, unsigned: the first one, or one with new keys for the roles `renew`, and another root key
        where `root_public` (Ed25519, 32 B) says so. New online keys are put aside until `install`."""
        from tuf.api.metadata import Metadata, Role, Root

        number = published.newest_root(self.metadata)
        if number:
            root = self._root(number).signed
            root.version += 1
        else:
            root = Root(expires=_date(wall_s, "root"), consistent_snapshot=True)
            renew = ONLINE
        root.expires = _date(wall_s, "root")
        for role in renew:
            root.roles[role] = Role([], 1)
            root.add_key(self._new_online_key(role).public_key, role)
        if root_public:
            root.roles["root"] = Role([], 1)
            root.add_key(_public_key(root_public), "root")
        used = {key for role in root.roles.values() for key in role.keyids}
        root.keys = {name: key for name, key in root.keys.items() if name in used}
        return Metadata(root)

    def install(self, draft: Metadata[Root], wall_s: int) -> None:
        """A root that is signed: by its own root keys, and by those of the one before. Then all else is signed anew."""
        from tuf.api.exceptions import UnsignedMetadataError

        number = published.newest_root(self.metadata)
        if draft.signed.version != number + 1:
            raise HubError(
                f"root: version {number + 1} expected, not {draft.signed.version}. Ask for it to be made anew"
            )
        try:
            for judge in (draft, *([self._root(number)] if number else [])):
                judge.signed.verify_delegate("root", draft.signed_bytes, draft.signatures)
        except UnsignedMetadataError:
            raise HubError(
                "root: it is not signed by the keys that it takes: its own, and those of the root before. "
                "Sign it with `edgehub update sign`, with each of them"
            ) from None
        for role in ONLINE:
            new = self.keys / f"{role}.new"
            wanted = set(draft.signed.roles[role].keyids)
            if new.exists() and self._signer(new).public_key.keyid in wanted:
                os.replace(new, self.keys / f"{role}.key")
            if self._signer(self.keys / f"{role}.key").public_key.keyid not in wanted:
                raise HubError(f"root: its key for {role} is not the one that this hub has. Ask for it to be made anew")
        self._write(self.metadata / f"{draft.signed.version}.root.json", _bytes(draft))
        self._publish(wall_s, anew=True)

    # Versions

    def publish(self, agent: AgentFile, wall_s: int, *, downgrade: bool = False) -> str:
        """Let devices fetch it; the name of the target. What is there already stays as it is. `downgrade`: devices that
        run a newer one shall take it all the same."""
        from tuf.api.metadata import TargetFile

        targets = self._load("targets")
        known = self.read()
        digest = sha256(agent.data).hexdigest()
        old = next((each for each in known.targets if each.name == agent.name), None)
        if old is not None:
            if old.sha256 != digest:
                raise HubError(
                    f"version {agent.version} for {agent.abi}: another file of it is published. "
                    "A version is one file for good: give the new one another number"
                )
            return agent.name
        if agent.version in known.revoked:
            raise HubError(f"version {agent.version}: it was revoked. Give what mends it another number")
        newest = max((each for each in known.targets if each.abi == agent.abi), key=_by_version, default=None)
        if not downgrade and newest is not None and version_key(agent.version) < version_key(newest.version):
            raise HubError(
                f"version {agent.version} for {agent.abi}: older than {newest.version}, which is published. "
                "Devices take no older one: give what shall follow it a higher number, or say --downgrade"
            )
        if len(known.targets) >= TARGETS_MAX:
            raise HubError(f"updates: {TARGETS_MAX} files are published. Revoke old versions first")
        target = TargetFile(len(agent.data), {"sha256": digest}, agent.name)
        target.unrecognized_fields["custom"] = {"version": agent.version, "abi": agent.abi, "published": wall_s}
        if downgrade:
            target.unrecognized_fields["custom"]["downgrade"] = True
        self._write(self.targets / f"{digest}.{agent.name}", agent.data)
        targets.signed.targets[agent.name] = target
        self._publish(wall_s, targets=targets)
        return agent.name

    def revoke(self, version: str, wall_s: int) -> list[str]:
        """Take it back: no device begins it any more. The names of its targets."""
        targets = self._load("targets")
        gone = [each for each in self.read().targets if each.version == version]
        if not gone:
            raise HubError(f"version {version}: it is not published. `edgehub update list` shows what is")
        for each in gone:
            del targets.signed.targets[each.name]
        before = targets.signed.unrecognized_fields.get(REVOKED, [])
        targets.signed.unrecognized_fields[REVOKED] = [*before, version][-REVOKED_MAX:]
        self._publish(wall_s, targets=targets)
        for each in gone:
            (self.targets / f"{each.sha256}.{each.name}").unlink(missing_ok=True)
        return [each.name for each in gone]

    def refresh(self, wall_s: int, *, force: bool = False) -> list[str]:
        """Sign anew what has lived half its life; the roles. The root only its own key can renew."""
        due = [
            role.name
            for role in self.read().roles
            if role.name in ONLINE and (force or role.expires_s - wall_s < HALF_LIFE_S[role.name])
        ]
        if due:
            targets = self._load("targets") if "targets" in due else None
            self._publish(wall_s, targets=targets, only_timestamp=due == ["timestamp"])
        return due

    @contextmanager
    def writing(self) -> Iterator[Repository]:
        """One writer at a time; waits for another."""
        for directory, mode in (
            (self.directory, 0o755),
            (self.metadata, 0o755),
            (self.targets, 0o755),
            (self.keys, 0o700),
        ):
            directory.mkdir(mode=mode, exist_ok=True)
        with open(os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self

    # Inner

    def _publish(
        self, wall_s: int, *, targets: Metadata[Any] | None = None, only_timestamp: bool = False, anew: bool = False
    ) -> None:
        """Targets where they have changed, then snapshot, then timestamp. `anew`: all, with the keys of the root."""
        from tuf.api.metadata import MetaFile, Snapshot, Targets, Timestamp

        first = anew and not self.exists
        if anew:
            targets = _unnumbered(Targets()) if first else self._load("targets")
        snapshot = _unnumbered(Snapshot()) if first else self._load("snapshot")
        timestamp = _unnumbered(Timestamp()) if first else self._load("timestamp")
        if targets is not None:
            data = self._sign(targets, wall_s)
            self._write(self.metadata / f"{targets.signed.version}.targets.json", data)
            snapshot.signed.meta["targets.json"] = MetaFile(
                targets.signed.version, len(data), {"sha256": sha256(data).hexdigest()}
            )
        if not only_timestamp:
            data = self._sign(snapshot, wall_s)
            self._write(self.metadata / f"{snapshot.signed.version}.snapshot.json", data)
            timestamp.signed.snapshot_meta = MetaFile(
                snapshot.signed.version, len(data), {"sha256": sha256(data).hexdigest()}
            )
        self._write(self.metadata / "timestamp.json", self._sign(timestamp, wall_s))
        for role in ("targets", "snapshot"):
            self._drop_old(role)

    def _sign(self, metadata: Metadata[Any], wall_s: int) -> bytes:
        role = metadata.signed.type
        metadata.signed.version += 1
        metadata.signed.expires = _date(wall_s, role)
        metadata.signatures.clear()
        metadata.sign(self._signer(self.keys / f"{role}.key"))
        return _bytes(metadata)

    def _load(self, role: str) -> Metadata[Any]:
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        number = next((each.version for each in self.read().roles if each.name == role), 0)
        if not number:
            raise HubError(_NONE)
        name = "timestamp.json" if role == "timestamp" else f"{number}.{role}.json"
        try:
            return Metadata[Any].from_bytes((self.metadata / name).read_bytes())
        except RepositoryError as error:
            raise HubError(
                f"{self.metadata / name}: it cannot be read ({error}). Bring it back from a backup"
            ) from error

    def _root(self, number: int) -> Metadata[Root]:
        from tuf.api.metadata import Metadata

        return Metadata[Any].from_bytes((self.metadata / f"{number}.root.json").read_bytes())

    def _new_online_key(self, role: str) -> CryptoSigner:
        path = self.keys / f"{role}.new"
        path.unlink(missing_ok=True)
        return signer(lockkey.make_seed(path, "", lockkey.UPDATE_MARK))

    def _signer(self, path: Path) -> CryptoSigner:
        return signer(lockkey.read_seed(path, _no_passphrase, lockkey.UPDATE_MARK, "Bring it back from a backup"))

    def _drop_old(self, role: str) -> None:
        numbered = sorted(
            (int(path.name.partition(".")[0]), path)
            for path in self.metadata.glob(f"*.{role}.json")
            if path.name.partition(".")[0].isdecimal()
        )
        for _, path in numbered[:-KEPT]:
            path.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        new = path.with_name(f".{path.name}.new")
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


# A root on its way between two machines: JSON in text, its metadata as TUF has it.


def write_draft(draft: Metadata[Root]) -> str:
    return json.dumps({DRAFT_MARK: 1, "root": json.loads(_bytes(draft))}, indent=1) + "\n"


def read_draft(text: str) -> Metadata[Root]:
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get(DRAFT_MARK) != 1:
            raise ValueError
        draft = Metadata[Any].from_bytes(json.dumps(fields["root"]).encode())
        if not isinstance(draft.signed, Root):
            raise ValueError
    except (ValueError, KeyError, RecursionError, RepositoryError):
        raise HubError(
            "this is no root of updates. `edgehub update init --request` and `rotate --request` write one"
        ) from None
    return draft


def sign_draft(draft: Metadata[Root], seed: bytes) -> None:
    """With one root key, more may follow. Whether it may, who installs it asks."""
    draft.sign(signer(seed), append=True)


def describe_draft(draft: Metadata[Root]) -> str:
    """What a person is about to vouch for."""
    root = draft.signed
    keys = "; ".join(
        f"{name}: {', '.join(root.keys[key].keyval['public'][:16] for key in role.keyids)}"
        for name, role in sorted(root.roles.items())
    )
    return f"root of updates, version {root.version}, until {root.expires:%Y-%m-%d}. Keys: {keys}"


def signer(seed: bytes) -> CryptoSigner:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    return CryptoSigner(Ed25519PrivateKey.from_private_bytes(seed))


def _public_key(public: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import SSlibKey

    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(public))


def _unnumbered(signed: Any) -> Metadata[Any]:
    """The first of its role: numbers are given when it is signed."""
    from tuf.api.metadata import Metadata

    signed.version = 0
    return Metadata(signed)


def _bytes(metadata: Metadata[Any]) -> bytes:
    from tuf.api.serialization.json import JSONSerializer

    return metadata.to_bytes(JSONSerializer(compact=True))


def _date(wall_s: int, role: str) -> datetime:
    return datetime.fromtimestamp(wall_s + LIFE_S[role], UTC)


def _by_version(target: published.Target) -> tuple[int, ...]:
    return version_key(target.version)


def _no_passphrase() -> str:
    raise HubError("a key of the hub has a passphrase, and nobody is there to ask")
