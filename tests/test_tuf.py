"""The device's verifier against python-tuf: the same repository, the same mutations, the same verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations

from edgeagent.proto.tuf import BYTES_MAX, Distrust, Trust, TufError
from tests.control_kit import CRYPTO
from tests.tuf_kit import NOW, TARGET, Files, Ours, Repository, Theirs, edited

Mutation = Callable[[Repository], None]


def changed(file: str, change: Callable[[Any], None]) -> Mutation:
    def mutate(repo: Repository) -> None:
        name = {"targets": "2.targets.json", "snapshot": "2.snapshot.json", "root": "1.root.json"}.get(file, file)
        repo.files[name] = edited(repo.files[name], change)

    return mutate


def resigned(file: str, change: Callable[[Any], None], *, rest: bool = True) -> Mutation:
    """Changed, and signed as it should be: what signers do by mistake, or with a stolen key."""

    def mutate(repo: Repository) -> None:
        change(getattr(repo, file))
        if rest:
            repo.publish()
        else:
            name = "timestamp.json" if file == "timestamp" else f"2.{file}.json"
            repo.files[name] = repo.sign(getattr(repo, file))

    return mutate


def endless(file: str) -> Mutation:
    def mutate(repo: Repository) -> None:
        repo.files[file] += b" " * 6_000_000

    return mutate


def cut(file: str, at: float) -> Mutation:
    def mutate(repo: Repository) -> None:
        repo.files[file] = repo.files[file][: int(at * len(repo.files[file]))]

    return mutate


def gone(file: str) -> Mutation:
    def mutate(repo: Repository) -> None:
        del repo.files[file]

    return mutate


def wrong_key(role: str) -> Mutation:
    def mutate(repo: Repository) -> None:
        repo.keys[role] = [CryptoSigner.generate_ed25519()]
        repo.publish()

    return mutate


def revoked(role: str) -> Mutation:
    """The role's key is another, and what is served was signed by the old one."""

    def mutate(repo: Repository) -> None:
        old = repo.keys[role]
        repo.rotate(role)
        repo.keys[role] = old
        repo.publish()

    return mutate


def rotated(role: str) -> Mutation:
    def mutate(repo: Repository) -> None:
        repo.rotate(role)
        repo.rotate(role)
        repo.next()

    return mutate


def root_by_strangers(repo: Repository) -> None:
    repo.keys["root"] = [CryptoSigner.generate_ed25519()]
    repo.root.version += 1
    repo.publish_root()


def root_skips(repo: Repository) -> None:
    repo.root.version += 1
    data = repo.sign(repo.root)
    repo.root.version += 1
    repo.files["2.root.json"] = repo.sign(repo.root)
    assert data


def older(repo: Repository) -> None:
    """Everything as it was before: signed, and rolled back."""
    for signed in (repo.targets, repo.snapshot, repo.timestamp):
        signed.version -= 1
    repo.publish()


def older_snapshot(repo: Repository) -> None:
    repo.timestamp.version += 1
    repo.snapshot.version = 1
    repo.publish()


def older_targets(repo: Repository) -> None:
    repo.timestamp.version += 1
    repo.snapshot.version += 1
    repo.targets.version = 1
    repo.publish()


def mixed(repo: Repository) -> None:
    """A snapshot of another day beside this timestamp."""
    before = repo.files["2.snapshot.json"]
    repo.next()
    repo.files["3.snapshot.json"] = before


def mixed_targets(repo: Repository) -> None:
    before = repo.files["2.targets.json"]
    repo.next()
    repo.files["3.targets.json"] = before


def snapshot_forgets(repo: Repository) -> None:
    repo.next()
    del repo.snapshot.meta["targets.json"]
    repo.files["3.snapshot.json"] = data = repo.sign(repo.snapshot)
    repo.timestamp.snapshot_meta.length = len(data)
    repo.timestamp.snapshot_meta.hashes = None
    repo.files["timestamp.json"] = repo.sign(repo.timestamp)


def one_key_twice(repo: Repository) -> None:
    signatures = json.loads(repo.files["timestamp.json"])["signatures"]
    repo.files["timestamp.json"] = edited(
        repo.files["timestamp.json"], lambda document: document.update(signatures=signatures * 2)
    )


def raise_threshold(repo: Repository) -> None:
    repo.root.version += 1
    repo.root.roles["targets"].threshold = 2
    repo.publish_root()
    repo.next()


def expire(role: str) -> Mutation:
    def mutate(repo: Repository) -> None:
        getattr(repo, role).expires = NOW - timedelta(seconds=1)
        if role == "root":
            repo.root.version += 1
            repo.publish_root()
        repo.next()

    return mutate


def nested(repo: Repository) -> None:
    repo.files["timestamp.json"] = b'{"signed":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def not_there_yet(repo: Repository) -> None:
    del repo.targets.targets[TARGET]
    repo.next()


MUTATIONS: dict[str, Mutation] = {
    "nothing": lambda repo: None,
    "the next versions": lambda repo: repo.next(),
    "arbitrary: target's hash": changed(
        "targets", lambda d: d["signed"]["targets"][TARGET]["hashes"].update(sha256="00" * 32)
    ),
    "arbitrary: target's length": changed("targets", lambda d: d["signed"]["targets"][TARGET].update(length=1)),
    "arbitrary: timestamp's version": changed("timestamp.json", lambda d: d["signed"].update(version=9)),
    "arbitrary: a field more": changed("timestamp.json", lambda d: d["signed"].update(zz=1)),
    "no signature": changed("timestamp.json", lambda d: d.update(signatures=[])),
    "a signature of zeros": changed("timestamp.json", lambda d: d["signatures"][0].update(sig="00" * 64)),
    "a signature that is no hex": changed("timestamp.json", lambda d: d["signatures"][0].update(sig="zz" * 64)),
    "a signature that is short": changed("timestamp.json", lambda d: d["signatures"][0].update(sig="00")),
    "a signature without key": changed("timestamp.json", lambda d: d["signatures"][0].pop("keyid")),
    "one key twice": one_key_twice,
    "wrong key: timestamp": wrong_key("timestamp"),
    "wrong key: snapshot": wrong_key("snapshot"),
    "wrong key: targets": wrong_key("targets"),
    "revoked: timestamp": revoked("timestamp"),
    "revoked: snapshot": revoked("snapshot"),
    "revoked: targets": revoked("targets"),
    "rotated: timestamp": rotated("timestamp"),
    "rotated: snapshot": rotated("snapshot"),
    "rotated: targets": rotated("targets"),
    "rotated: root": rotated("root"),
    "a root by strangers": root_by_strangers,
    "a root that skips one": root_skips,
    "rollback: all": older,
    "rollback: snapshot": older_snapshot,
    "rollback: targets": older_targets,
    "freeze: timestamp expired": expire("timestamp"),
    "freeze: snapshot expired": expire("snapshot"),
    "freeze: targets expired": expire("targets"),
    "freeze: root expired": expire("root"),
    "mix and match: snapshot": mixed,
    "mix and match: targets": mixed_targets,
    "the snapshot forgets targets": snapshot_forgets,
    "threshold of two, one signature": raise_threshold,
    "endless: root": endless("1.root.json"),  # nobody asks for it
    "endless: timestamp": endless("timestamp.json"),
    "endless: snapshot": endless("2.snapshot.json"),
    "endless: targets": endless("2.targets.json"),
    "cut: timestamp": cut("timestamp.json", 0.5),
    "cut: snapshot": cut("2.snapshot.json", 0.9),
    "cut: targets": cut("2.targets.json", 0.99),
    "empty: timestamp": cut("timestamp.json", 0),
    "gone: timestamp": gone("timestamp.json"),
    "gone: snapshot": gone("2.snapshot.json"),
    "gone: targets": gone("2.targets.json"),
    "no JSON": lambda repo: repo.files.update({"timestamp.json": b"\xff\xfe{}"}),
    "a list": lambda repo: repo.files.update({"timestamp.json": b"[]"}),
    "nested": nested,
    "another kind of file": lambda repo: repo.files.update({"timestamp.json": repo.files["2.snapshot.json"]}),
    "another specification": resigned("timestamp", lambda s: setattr(s, "spec_version", "2.0.0")),
    "a later minor of it": resigned("timestamp", lambda s: setattr(s, "spec_version", "1.2.3")),
    "fields that nobody knows": resigned("timestamp", lambda s: s.unrecognized_fields.update(zz={'é\n"\\': [1, None]})),
    "snapshot changed under its timestamp": resigned(
        "snapshot", lambda s: s.unrecognized_fields.update(zz=1), rest=False
    ),
    "targets changed under their snapshot": resigned(
        "targets", lambda s: s.unrecognized_fields.update(zz=1), rest=False
    ),
    "no such target": not_there_yet,
}


@pytest.mark.parametrize("fresh", [True, False], ids=["first time", "seen before"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_verdict_is_python_tufs(name: str, fresh: bool, tmp_path: Path) -> None:
    repo = Repository()
    ours, theirs = Ours(repo.files["1.root.json"]), Theirs(repo.files["1.root.json"], tmp_path / "theirs")
    repo.next()
    if not fresh:
        assert ours.judge(repo.files) == theirs.judge(repo.files)
    MUTATIONS[name](repo)
    mine, other = ours.judge(repo.files), theirs.judge(repo.files)
    assert mine.startswith("good") == other.startswith("good"), (mine, other)
    assert mine == other or not mine.startswith("good")
    # And what was refused has spoilt nothing
    repo.files = dict(repo.files)
    assert ours.judge(repo.files).startswith("good") == theirs.judge(repo.files).startswith("good")


def test_root_threshold(tmp_path: Path) -> None:
    repo = Repository(root_threshold=2)
    ours, theirs = Ours(repo.files["1.root.json"]), Theirs(repo.files["1.root.json"], tmp_path / "theirs")
    old = repo.keys["root"]
    repo.rotate("root")
    assert ours.judge(repo.files).startswith("good") and theirs.judge(repo.files).startswith("good")
    repo.root.version += 1
    repo.files["3.root.json"] = repo.sign(repo.root, repo.keys["root"][0], *old)
    assert ours.judge(repo.files) == "not-signed" and theirs.judge(repo.files) == "UnsignedMetadataError"


def test_a_clock_that_nobody_set_expires_nothing() -> None:
    repo = Repository()
    ours = Ours(repo.files["1.root.json"])
    late = NOW + timedelta(days=4_000)
    assert ours.judge(repo.files, now=late) == "expired"
    assert ours.judge(repo.files, now=late, time_known=False).startswith("good")


def narrower(document: Any) -> None:
    document["signed"]["version"] = 9.0


@pytest.mark.parametrize(
    ("why", "mutate"),
    [
        ("malformed", lambda repo: setattr(repo.root, "consistent_snapshot", False) or repo.publish_root()),
        (
            "malformed",  # a name twice: which of the two was signed is a question that no reader should answer
            lambda repo: repo.files.update(
                {"timestamp.json": repo.files["timestamp.json"].replace(b'"signed": {', b'"signed": {"version": 7,', 1)}
            ),
        ),
        (
            "delegated",
            lambda repo: (
                setattr(
                    repo.targets,
                    "delegations",
                    Delegations({}, {"other": DelegatedRole("other", [], 1, False, paths=["*"])}),
                ),
                repo.next(),
            ),
        ),
    ],
)
def test_where_devices_ask_for_more(why: str, mutate: Any) -> None:
    repo = Repository()
    mutate(repo)
    assert Ours(repo.files["1.root.json"]).judge(repo.files) == why


def test_one_key_under_two_names_counts_once() -> None:
    repo = Repository()
    document = json.loads(repo.files["timestamp.json"])
    key_id = document["signatures"][0]["keyid"]
    key = repo.root.keys[key_id]
    again = type(key)("another-name", key.keytype, key.scheme, key.keyval)
    repo.root.keys["another-name"] = again
    repo.root.roles["timestamp"].keyids.append("another-name")
    repo.root.roles["timestamp"].threshold = 2
    repo.publish_root()
    document["signatures"].append({"keyid": "another-name", "sig": document["signatures"][0]["sig"]})
    repo.files["timestamp.json"] = json.dumps(document).encode()
    assert Ours(repo.files["1.root.json"]).judge(repo.files) == Distrust.UNSIGNED.value


REPO = Repository()
PARTS = st.sampled_from(
    [b"", b"{", b"}", b"[", b"]", b'"', b",", b"null", b"-1", b"1e9", b"\\ud800", b"\x00", b"9" * 40]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(REPO.files)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), PARTS), min_size=1, max_size=4),
)
def test_fuzzed_files_are_refused_or_change_nothing(name: str, edits: list[tuple[float, int, bytes]]) -> None:
    files: Files = dict(REPO.files)
    data = files[name]
    for at, length, part in edits:
        start = int(at * len(data))
        data = data[:start] + part + data[start + length :]
    files[name] = data
    verdict = Ours(REPO.files["1.root.json"]).judge(files)
    good = Ours(REPO.files["1.root.json"]).judge(REPO.files)
    assert verdict == good or verdict in {why.value for why in Distrust}
    if name != "1.root.json" and verdict == good:  # what was changed is white space, or nobody signs it
        assert json.loads(data)["signed"] == json.loads(REPO.files[name])["signed"]


@given(st.binary(max_size=200))
def test_no_root_of_any_bytes(data: bytes) -> None:
    with pytest.raises(TufError):
        Trust(CRYPTO, data, None)


def test_files_have_a_length() -> None:
    with pytest.raises(TufError, match="at most") as caught:
        Trust(CRYPTO, b" " * (BYTES_MAX["root"] + 1), None)
    assert caught.value.why is Distrust.TOO_LONG
