"""Which software to believe: a client of The Update Framework 1.0, without input or output.

```
root ──signs──▶ the keys of all roles, and its own successor
timestamp ──▶ snapshot ──▶ targets ──▶ length and SHA-256 of each target
```

The order of the specification, section 5: every next root, then timestamp, snapshot, targets; none that is older than the
one that was believed before; an expired one only where nobody has told the time. Signatures are Ed25519 over canonical JSON.
What is narrower than the specification, on purpose: consistent snapshots only, no delegations, no other kind of key, no
name twice in an object, no fractions. Loaded when there is an update: most starts never need it.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from hashlib import sha256, sha512
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeagent.proto.crypto import Crypto

BYTES_MAX = {"root": 65_536, "timestamp": 8_192, "snapshot": 32_768, "targets": 131_072}
ROOTS_MAX = 64  # that one refresh follows
DEPTH_MAX = 12
DIGITS_MAX = 15  # of a number
KEYS_MAX = 32  # of a root, of one role, signatures of one file
NAMES_MAX = 1_024  # of metadata files, of targets
_DATE = re.compile("([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z")
_SPEC = re.compile("1[.][0-9]{1,6}(?:[.][0-9]{1,6})?")
_HEX = re.compile("(?:[0-9a-fA-F]{2})+")
_HASHES: dict[str, tuple[Callable[[bytes], Any], int]] = {"sha256": (sha256, 32), "sha512": (sha512, 64)}
_MONTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Distrust(Enum):
    """Why a file is not believed."""

    MALFORMED = "malformed"
    TOO_LONG = "too-long"
    UNSIGNED = "not-signed"  # by as many keys of its role as it takes
    ROLLED_BACK = "rolled-back"  # older than one that was believed
    EXPIRED = "expired"
    MISMATCH = "mismatch"  # not the one that the file before it names
    DELEGATED = "delegated"
    NO_TARGET = "no-target"


class TufError(Exception):
    """`why` and a sentence that names the file."""

    def __init__(self, why: Distrust, text: str) -> None:
        super().__init__(text)
        self.why = why


class Target:
    """What the signers say of one file: its length, SHA-256, and what they add for the device."""

    __slots__ = ("custom", "length", "name", "sha256")

    def __init__(self, name: str, length: int, digest: bytes, custom: dict[str, Any]) -> None:
        self.name = name
        self.length = length
        self.sha256 = digest
        self.custom = custom

    @property
    def file(self) -> str:
        """Its name in the repository (TUF, section 6.2)."""
        return f"{self.sha256.hex()}.{self.name}"


class Trust:
    """What is believed: begin with a root, then `update_root` until there is no next one, then timestamp, snapshot, targets.

    `wall_s` is the time, None where it is not known: then nothing is called expired. Each update raises TufError, and
    then what was believed before still is. `believed` has the bytes of each role's file that may be kept for the next time.
    """

    def __init__(self, crypto: Crypto, root: bytes, wall_s: float | None) -> None:
        self._crypto = crypto
        self._wall_s = wall_s
        self.believed: dict[str, bytes] = {}
        self._signed: dict[str, dict[str, Any]] = {}
        signed, body, signatures = _parse("root", root)
        _check_root(signed)
        self._verify(signed, "root", body, signatures)
        self._accept("root", signed, root)

    def version(self, role: str) -> int:
        """0: there is none."""
        return int(self._signed[role]["version"]) if role in self._signed else 0

    def bytes_max(self, role: str) -> int:
        """How long the role's file may be."""
        meta = self._named(role) if role in ("snapshot", "targets") else {}
        return min(BYTES_MAX[role], meta.get("length", BYTES_MAX[role]))

    def file(self, role: str) -> str:
        """The name of the file that comes next for this role."""
        if role == "timestamp":
            return "timestamp.json"
        number = self.version("root") + 1 if role == "root" else self._named(role)["version"]
        return f"{number}.{role}.json"

    def update_root(self, data: bytes) -> None:
        if "timestamp" in self._signed:
            raise RuntimeError("roots come before the timestamp")
        signed, body, signatures = _parse("root", data)
        _check_root(signed)
        self._verify(self._signed["root"], "root", body, signatures)
        if signed["version"] != self.version("root") + 1:
            raise TufError(Distrust.ROLLED_BACK, f"root: version {self.version('root') + 1} expected")
        self._verify(signed, "root", body, signatures)
        self._accept("root", signed, data)

    def update_timestamp(self, data: bytes) -> None:
        """Also with the one that was kept, first: what it says may not be undone. One of the version that is believed
        already changes nothing."""
        if "snapshot" in self._signed:
            raise RuntimeError("the timestamp comes before the snapshot")
        self._check_expiry("root")
        signed, body, signatures = _parse("timestamp", data)
        meta = _check_meta(signed, "timestamp")
        if set(meta) != {"snapshot.json"}:
            _malformed("timestamp: it is about snapshot.json alone")
        self._verify(self._signed["root"], "timestamp", body, signatures)
        if "timestamp" in self._signed:
            if signed["version"] < self.version("timestamp"):
                raise TufError(Distrust.ROLLED_BACK, "timestamp: older than the one that was believed")
            if signed["version"] == self.version("timestamp"):
                self._check_expiry("timestamp")
                return
            if meta["snapshot.json"]["version"] < self._named("snapshot")["version"]:
                raise TufError(Distrust.ROLLED_BACK, "timestamp: it names an older snapshot than the one before it")
        self._accept("timestamp", signed, data)
        self._check_expiry("timestamp")

    def update_snapshot(self, data: bytes, *, kept: bool = False) -> None:
        """`kept`: it was believed in an earlier life, so it need not be the one that the timestamp names now."""
        if "targets" in self._signed or "timestamp" not in self._signed:
            raise RuntimeError("the snapshot comes between timestamp and targets")
        self._check_expiry("timestamp")
        if not kept:
            _check_hashes(data, self._named("snapshot"), "snapshot")
        signed, body, signatures = _parse("snapshot", data)
        meta = _check_meta(signed, "snapshot")
        self._verify(self._signed["root"], "snapshot", body, signatures)
        if "snapshot" in self._signed:
            for name, before in self._signed["snapshot"]["meta"].items():
                if name not in meta or meta[name]["version"] < before["version"]:
                    raise TufError(Distrust.ROLLED_BACK, f"snapshot: {name} is older than it was, or gone")
        self._accept("snapshot", signed, data)
        self._check_snapshot()

    def update_targets(self, data: bytes) -> None:
        if "snapshot" not in self._signed:
            raise RuntimeError("targets come after the snapshot")
        self._check_snapshot()
        meta = self._named("targets")
        _check_hashes(data, meta, "targets")
        signed, body, signatures = _parse("targets", data)
        _check_targets(signed)
        self._verify(self._signed["root"], "targets", body, signatures)
        if signed["version"] != meta["version"]:
            raise TufError(Distrust.MISMATCH, "targets: not the version that the snapshot names")
        self._check_expiry("targets", signed)
        self._accept("targets", signed, data)

    def target(self, name: str) -> Target:
        """Once there are targets. Raises TufError."""
        found = self._signed["targets"]["targets"].get(name)
        if found is None:
            raise TufError(Distrust.NO_TARGET, f"targets: none named {name[:94]}")
        if "sha256" not in found["hashes"]:
            raise TufError(Distrust.NO_TARGET, f"targets: {name[:94]} has no SHA-256")
        return Target(name, found["length"], bytes.fromhex(found["hashes"]["sha256"]), found.get("custom") or {})

    # Inner

    def _accept(self, role: str, signed: dict[str, Any], data: bytes) -> None:
        self._signed[role] = signed
        self.believed[role] = data

    def _named(self, role: str) -> dict[str, Any]:
        """What the file before it says of this role's file."""
        before = "timestamp" if role == "snapshot" else "snapshot"
        meta: dict[str, Any] | None = self._signed[before]["meta"].get(f"{role}.json")
        if meta is None:
            raise TufError(Distrust.MISMATCH, f"{before}: it says nothing of {role}.json")
        return meta

    def _check_snapshot(self) -> None:
        self._check_expiry("snapshot")
        if self.version("snapshot") != self._named("snapshot")["version"]:
            raise TufError(Distrust.MISMATCH, "snapshot: not the version that the timestamp names")

    def _check_expiry(self, role: str, signed: dict[str, Any] | None = None) -> None:
        if self._wall_s is not None and self._wall_s >= _seconds((signed or self._signed[role])["expires"]):
            raise TufError(Distrust.EXPIRED, f"{role}: expired: the hub has to sign a newer one")

    def _verify(self, root: dict[str, Any], role: str, body: bytes, signatures: dict[str, str]) -> None:
        """Raise TufError unless enough keys of the role have signed. One key counts once, whatever it is called."""
        good: set[bytes] = set()
        for key_id in root["roles"][role]["keyids"]:
            key, signature = root["keys"].get(key_id), signatures.get(key_id)
            if key is None or signature is None or (key["keytype"], key["scheme"]) != ("ed25519", "ed25519"):
                continue
            public, sig = _unhex(key["keyval"].get("public")), _unhex(signature)
            if len(public) == 32 and len(sig) == 64 and self._crypto.ed25519_verify(public, body, sig):
                good.add(public)
        threshold = root["roles"][role]["threshold"]
        if len(good) < threshold:
            raise TufError(
                Distrust.UNSIGNED, f"{role}: {len(good)} good signatures by keys of its role, {threshold} are needed"
            )


def _parse(role: str, data: bytes) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    """(signed, the bytes that are signed, signatures by key id); the common head of `signed` is checked."""
    if len(data) > BYTES_MAX[role]:
        raise TufError(Distrust.TOO_LONG, f"{role}: {len(data)} bytes, at most {BYTES_MAX[role]}")
    try:
        whole = json.loads(data, object_pairs_hook=_object, parse_int=_integer, parse_float=_no, parse_constant=_no)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        _malformed(f"{role}: no JSON of the form that TUF has, or a name twice in one object")
    signed = whole.get("signed") if isinstance(whole, dict) else None
    listed = whole.get("signatures") if isinstance(whole, dict) else None
    if not isinstance(signed, dict) or not isinstance(listed, list) or len(listed) > KEYS_MAX:
        _malformed(f"{role}: `signed` and at most {KEYS_MAX} `signatures` expected")
    signatures: dict[str, str] = {}
    for each in listed:
        key_id, signature = (each.get("keyid"), each.get("sig")) if isinstance(each, dict) else (None, None)
        if not isinstance(key_id, str) or not isinstance(signature, str) or key_id in signatures:
            _malformed(f"{role}: each signature has a `keyid` of its own and a `sig`")
        signatures[key_id] = signature
    if signed.get("_type") != role:
        _malformed(f"{role}: it is another kind of file")
    if not isinstance(spec := signed.get("spec_version"), str) or not _SPEC.fullmatch(spec):
        _malformed(f"{role}: not of version 1 of the specification")
    if not _is_int(signed.get("version"), 1):
        _malformed(f"{role}: no version")
    if not isinstance(expires := signed.get("expires"), str) or _seconds(expires) < 0:
        _malformed(f"{role}: `expires` is no date")
    body = bytearray()
    try:
        _canonical(signed, body, 0)
    except UnicodeEncodeError:
        _malformed(f"{role}: text that is no Unicode")
    return signed, bytes(body), signatures


def _canonical(value: Any, into: bytearray, depth: int) -> None:
    """Canonical JSON (OLPC), which signatures are over: keys in order, nothing escaped but " and the backslash."""
    if depth > DEPTH_MAX:
        _malformed("nested too deep")
    if isinstance(value, str):
        into += b'"' + value.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
    elif value is None or isinstance(value, bool):
        into += {None: b"null", True: b"true", False: b"false"}[value]
    elif isinstance(value, int):
        into += str(value).encode()
    elif isinstance(value, list):
        into += b"["
        for number, item in enumerate(value):
            into += b"," if number else b""
            _canonical(item, into, depth + 1)
        into += b"]"
    else:
        into += b"{"
        for number, key in enumerate(sorted(value)):
            into += b"," if number else b""
            _canonical(key, into, depth + 1)
            into += b":"
            _canonical(value[key], into, depth + 1)
        into += b"}"


def _check_root(signed: dict[str, Any]) -> None:
    keys, roles = signed.get("keys"), signed.get("roles")
    if (
        not isinstance(keys, dict)
        or len(keys) > KEYS_MAX
        or not isinstance(roles, dict)
        or set(roles) != set(BYTES_MAX)
    ):
        _malformed("root: keys, and the four roles")
    if signed.get("consistent_snapshot") is not True:
        _malformed("root: consistent snapshots are what this device reads")
    for key in keys.values():
        if (
            not isinstance(key, dict)
            or not isinstance(key.get("keytype"), str)
            or not isinstance(key.get("scheme"), str)
        ):
            _malformed("root: a key without its type")
        if not isinstance(key.get("keyval"), dict):
            _malformed("root: a key without its value")
    for role in roles.values():
        ids = role.get("keyids") if isinstance(role, dict) else None
        if not isinstance(ids, list) or len(ids) > KEYS_MAX or not all(isinstance(each, str) for each in ids):
            _malformed("root: a role without its keys")
        if len(set(ids)) != len(ids) or not _is_int(role.get("threshold"), 1):
            _malformed("root: a role names a key twice, or has no threshold")


def _check_meta(signed: dict[str, Any], role: str) -> dict[str, Any]:
    meta = signed.get("meta")
    if not isinstance(meta, dict) or not 1 <= len(meta) <= NAMES_MAX:
        _malformed(f"{role}: `meta` expected")
    for name, about in meta.items():
        if not isinstance(about, dict) or not _is_int(about.get("version"), 1):
            _malformed(f"{role}: {name[:64]} has no version")
        if "length" in about and not _is_int(about["length"], 0):
            _malformed(f"{role}: {name[:64]} has a length that is none")
        if "hashes" in about and not _are_hashes(about["hashes"]):
            _malformed(f"{role}: {name[:64]} has hashes that are none")
    return meta


def _check_targets(signed: dict[str, Any]) -> None:
    if signed.get("delegations") not in (None, {"keys": {}, "roles": []}):
        raise TufError(Distrust.DELEGATED, "targets: delegations are not followed by devices")
    targets = signed.get("targets")
    if not isinstance(targets, dict) or len(targets) > NAMES_MAX:
        _malformed(f"targets: at most {NAMES_MAX} of them")
    for name, about in targets.items():
        if not isinstance(about, dict) or not _is_int(about.get("length"), 0) or not _are_hashes(about.get("hashes")):
            _malformed(f"targets: {name[:94]} has no length or no hashes")
        if not isinstance(about.get("custom"), dict | None):
            _malformed(f"targets: what {name[:94]} adds is no object")


def _check_hashes(data: bytes, meta: dict[str, Any], role: str) -> None:
    if "length" in meta and len(data) != meta["length"]:
        raise TufError(Distrust.MISMATCH, f"{role}: {len(data)} bytes, {meta['length']} expected")
    for name, expected in meta.get("hashes", {}).items():
        if _HASHES[name][0](data).hexdigest() != expected.lower():
            raise TufError(Distrust.MISMATCH, f"{role}: not the file that was signed")


def _are_hashes(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(name in _HASHES and len(_unhex(text)) == _HASHES[name][1] for name, text in value.items())


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _unhex(text: object) -> bytes:
    """Empty where it is no hex."""
    return bytes.fromhex(text) if isinstance(text, str) and _HEX.fullmatch(text) else b""


def _seconds(text: str) -> int:
    """Since 1970, of "2030-01-31T00:00:00Z"; -1 for what is no date."""
    found = _DATE.fullmatch(text)
    if found is None:
        return -1
    year, month, day, hour, minute, second = map(int, found.groups())
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (year >= 1970 and 1 <= month <= 12 and hour <= 23 and minute <= 59 and second <= 59):
        return -1
    if not 1 <= day <= _MONTHS[month - 1] + (leap and month == 2):
        return -1
    past = year - 1
    days = 365 * (year - 1970) + past // 4 - past // 100 + past // 400 - 477 + sum(_MONTHS[: month - 1])
    days += (leap and month > 2) + day - 1
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise ValueError("too large")
    return int(text)


def _no(text: str) -> NoReturn:
    raise ValueError("no fractions")


def _malformed(text: str) -> NoReturn:
    raise TufError(Distrust.MALFORMED, text)
