"""A repository of updates made by python-tuf, and two clients that judge what is served of it: python-tuf's and ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api import exceptions
from tuf.api.metadata import Key, Metadata, Role, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer
from tuf.ngclient import FetcherInterface, Updater

from edgeagent.proto.tuf import Distrust, TufError
from edgeagent.proto.tufrefresh import Refresh
from tests.control_kit import CRYPTO

Files = dict[str, bytes]  # "3.root.json": its bytes
NOW = datetime.now(UTC).replace(microsecond=0)
TARGET = "edgeagent-0.2.0-arm64.pyz"
_JSON = JSONSerializer(compact=False)


class Repository:
    """`keys[role]` sign it; call `publish` after a change, and serve `files`."""

    def __init__(self, *, root_threshold: int = 1) -> None:
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in ("root", "timestamp", "snapshot", "targets")}
        self.keys["root"] = [CryptoSigner.generate_ed25519() for _ in range(2 * root_threshold - 1)]
        self.root = Root(1, expires=NOW + timedelta(days=365), consistent_snapshot=True)
        self.timestamp = Timestamp(1, expires=NOW + timedelta(days=1))
        self.snapshot = Snapshot(1, expires=NOW + timedelta(days=7))
        self.targets = Targets(1, expires=NOW + timedelta(days=90))
        for role, signers in self.keys.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = root_threshold
        self.files: Files = {}
        self.add(TARGET, b"the new agent")
        self.publish_root()
        self.publish()

    def add(self, name: str, data: bytes, **custom: Any) -> None:
        target = TargetFile(len(data), {"sha256": sha256(data).hexdigest()}, name)
        target.unrecognized_fields["custom"] = {"version": "0.2.0", "abi": "arm64", **custom}
        self.targets.targets[name] = target

    def sign(self, signed: Any, *signers: CryptoSigner) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers or self.keys[signed.type]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(_JSON)

    def publish_root(self, *more: CryptoSigner) -> None:
        """`more` sign it too: the keys of the root before."""
        self.files[f"{self.root.version}.root.json"] = self.sign(self.root, *self.keys["root"], *more)

    def publish(self) -> None:
        """Targets, snapshot and timestamp as they stand."""
        targets = self.files[f"{self.targets.version}.targets.json"] = self.sign(self.targets)
        meta = self.snapshot.meta["targets.json"]
        meta.version, meta.length, meta.hashes = (
            self.targets.version,
            len(targets),
            {"sha256": sha256(targets).hexdigest()},
        )
        snapshot = self.files[f"{self.snapshot.version}.snapshot.json"] = self.sign(self.snapshot)
        meta = self.timestamp.snapshot_meta
        meta.version, meta.length, meta.hashes = (
            self.snapshot.version,
            len(snapshot),
            {"sha256": sha256(snapshot).hexdigest()},
        )
        self.files["timestamp.json"] = self.sign(self.timestamp)

    def next(self) -> None:
        """A version later, as a hub publishes it."""
        for signed in (self.targets, self.snapshot, self.timestamp):
            signed.version += 1
        self.publish()

    def rotate(self, role: str) -> None:
        """Another key for the role, in the next root, signed by the old root keys as well."""
        before = list(self.keys["root"])
        self.keys[role] = [CryptoSigner.generate_ed25519() for _ in self.keys[role]]
        self.root.roles[role] = Role([], self.root.roles[role].threshold)
        for signer in self.keys[role]:
            self.root.add_key(signer.public_key, role)
        used = {key_id for each in self.root.roles.values() for key_id in each.keyids}
        self.root.keys = {key_id: key for key_id, key in self.root.keys.items() if key_id in used}
        self.root.version += 1
        self.publish_root(*(before if role == "root" else ()))


class Ours:
    """Our client over a few lives: what it believed is kept, as the agent does it."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.kept: dict[str, bytes] = {}

    def judge(self, files: Files, *, time_known: bool = True, now: datetime = NOW) -> str:
        """ "good" with the SHA-256 of the target, or why not."""
        refresh: Refresh | None = None
        try:
            refresh = Refresh(CRYPTO, self.root, now.timestamp() if time_known else None, self.kept)
            while (wanted := refresh.wanted) is not None:
                data = files.get(wanted)
                if data is not None and len(data) > refresh.bytes_max:
                    raise TufError(Distrust.TOO_LONG, f"{wanted}: longer than {refresh.bytes_max} bytes")
                refresh.take(data)
            return "good " + refresh.trust.target(TARGET).sha256.hex()
        except TufError as error:
            return error.why.value
        finally:
            if refresh is not None:
                self.kept |= {role: data for role, data in refresh.trust.believed.items() if role != "root"}
                self.root = refresh.trust.believed["root"]


class _Fetcher(FetcherInterface):
    def __init__(self, files: Files) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._files.get(url.rpartition("/")[2])
        if data is None:
            raise exceptions.DownloadHTTPError("not there", 404)
        return iter([data])


class Theirs:
    def __init__(self, root: bytes, directory: Path) -> None:
        self.root = root
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def judge(self, files: Files) -> str:
        try:
            updater = Updater(str(self.directory), "http://hub/", fetcher=_Fetcher(files), bootstrap=self.root)
            updater.refresh()
            found = updater.get_targetinfo(TARGET)
        except (exceptions.RepositoryError, exceptions.DownloadError, ValueError) as error:
            return type(error).__name__
        return "no-target" if found is None else "good " + found.hashes["sha256"]


def edited(data: bytes, change: Any) -> bytes:
    """JSON after `change(document)`, its signatures as they were."""
    document = json.loads(data)
    change(document)
    return json.dumps(document, indent=1).encode()


def key_of(signer: CryptoSigner) -> Key:
    return signer.public_key
