"""Settings of the relay: command line over file over default, each value checked by name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from edgeagent.proto.control import RELAY_HOSTS_MAX
from edgeagent.proto.errors import RemoteProtocolError
from edgeagent.proto.keys import clamp, from_base64, from_hex, has_small_order
from edgeagent.proto.names import is_host_name, is_host_port
from relay.core.limits import MEMBER_RATE, NETWORK_RATE, Rate, RelayLimits
from relay.state import StateUnusable, own_name, relay_key, saved_networks

CONFIG_BYTES_MAX = 65_536
KEY_FILE_BYTES_MAX = 4_096
RATE_CLASSES = range(1, 8)
JOIN_FILES_MAX = 16
BITS = 8


class ConfigError(ValueError):
    """A setting is wrong; the text names the setting and what it must be."""


class Address:
    """Where to listen; `host` empty: every address of both IP versions."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or '*'}:{self.port}"


class Sibling:
    """Another relay of the region."""

    __slots__ = ("address", "id", "key")

    def __init__(self, sibling: str, address: Address, key: bytes) -> None:
        self.id = sibling
        self.address = address
        self.key = key


def _label(text: str) -> str:
    if not is_host_name(text):
        raise ValueError("one DNS label: a-z, 0-9 and '-', at most 63 characters")
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a file")
    return text


def _no_or_path(text: str) -> str | None:
    return None if text in ("", "no") else _path(text)


def parse_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon and text.isascii() and text.isdecimal():
        host, port = "", text
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host == "*":
        host = ""
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535 or any(c.isspace() for c in host):
        raise ValueError("PORT, ADDRESS:PORT or [IPv6 ADDRESS]:PORT")
    return Address(host, int(port))


def _no_or_address(text: str) -> Address | None:
    return None if text in ("", "no") else parse_address(text)


def _no_or_port(text: str) -> int | None:
    return None if text in ("", "no", "0") else _integer(1, 65_535)(text)


def _public(text: str) -> str:
    if not is_host_port(text) and not is_host_port(f"{text}:443") and not is_host_port(f"[{text}]:443"):
        raise ValueError("a host name or an IP address, with `:port` if it is not the one of --listen")
    return text


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _network_key(text: str) -> bytes:
    """Hexadecimal, base64, or a file that holds either."""
    if os.path.exists(text):
        text = _read_text(text)
    try:
        return from_hex(text) if len(text) == 64 else from_base64(text)
    except RemoteProtocolError:
        raise ValueError("64 hexadecimal digits, 44 base64 characters, or a file that holds them") from None


def _sibling(text: str) -> Sibling:
    name, _, rest = text.partition("=")
    place, _, key = rest.partition("=")
    try:
        address = parse_address(place)
        ip_address(address.host)  # no name: looking one up would hold up every member
        sibling = Sibling(_label(name), address, from_base64(key))
        if has_small_order(sibling.key):
            raise ValueError("a key that is no secret's")
        return sibling
    except (ValueError, RemoteProtocolError):
        raise ValueError("ID=IP-ADDRESS:PORT=KEY, the key in base64 as `edgerelay keygen` prints it") from None


STATE_DIR = "/var/lib/edgerelay"

# name → (what parses it, whether there may be several, default, meaning)
SETTINGS: dict[str, tuple[Callable[[str], Any], bool, str | None, str]] = {
    "join-file": (_path, True, None, "file with a token of `edgehub relays invite`; one for each network"),
    "state-dir": (_path, False, STATE_DIR, "keys, and what hubs said, so that it serves without them"),
    "public": (_public, True, None, "where devices reach --listen: HOST or HOST:PORT; default: its address"),
    "id": (_label, False, None, "name in the relay map, hubs may add a number; default: this host's name"),
    "region": (_label, False, None, "relays of one region forward to each other's members; default: the invitation's"),
    "listen": (parse_address, False, "443", "TLS: members, the page, probes"),
    "http": (_no_or_address, False, "no", "plain HTTP: the page, and probes for captive portals"),
    "metrics": (_no_or_address, False, "127.0.0.1:9478", "plain HTTP: metrics, for this host alone"),
    "udp": (parse_address, False, "3478", "UDP: members, and STUN"),
    "second-port": (_no_or_port, False, "3479", "second UDP port of STUN, for discovering how a NAT filters"),
    "cert": (_path, False, None, "TLS certificate with its chain, PEM; default: one that is made in --state-dir"),
    "key": (_path, False, None, "its private key, PEM"),
    "relay-key": (_path, False, None, "file with this relay's own key; default: one that is made in --state-dir"),
    "network-key": (_network_key, True, None, "public key of a network served without its hub: hex, base64 or a file"),
    "sibling": (_sibling, True, None, "another relay of the region: ID=IP-ADDRESS:PORT=KEY"),
    "metrics-token-file": (_no_or_path, False, "no", "file with a token that opens /metrics on the TLS port too"),
    "drain": (_integer(0, 600), False, "10", "seconds between the first SIGTERM and the end"),
    "total-mbit": (_integer(0, 1_000_000), False, "0", "Mbit/s that this relay's uplink bears (0: no limit of ours)"),
    "member-mbit": (_integer(1, 1_000_000), False, "100", "Mbit/s of one member"),
    "member-packets": (_integer(1, 100_000_000), False, "20000", "packets/s of one member"),
    "network-mbit": (_integer(1, 1_000_000), False, "1000", "Mbit/s of one network"),
    "network-packets": (_integer(1, 100_000_000), False, "200000", "packets/s of one network"),
}


class Settings:
    """What `serve` needs, parsed."""

    def __init__(self, values: Mapping[str, Any], limits: RelayLimits, classes: dict[int, Rate]) -> None:
        self.state_dir: str = values["state-dir"]
        self.join_files: list[str] = values["join-file"]
        self.public: list[str] = values["public"]
        self.network_keys: list[bytes] = values["network-key"]
        # With network keys alone there is no hub, and the state directory is not looked into
        with_hubs = bool(self.join_files or not self.network_keys)
        self.saved_networks = saved_networks(self.state_dir) if with_hubs else []
        self.id: str = values["id"] or own_name()
        self.region: str = values["region"] or ""
        self.listen: Address = values["listen"]
        self.http: Address | None = values["http"]
        self.metrics: Address | None = values["metrics"]
        self.udp: Address = values["udp"]
        self.second_port: int | None = values["second-port"]
        self.cert: str | None = values["cert"]
        self.key: str | None = values["key"]
        self.siblings: list[Sibling] = values["sibling"]
        self.drain_s: int = values["drain"]
        self.total_bytes_per_s: int | None = _bytes_per_s(values["total-mbit"]) or None
        self.network_rate = Rate(_bytes_per_s(values["network-mbit"]), values["network-packets"])
        self.member_rates = {0: Rate(_bytes_per_s(values["member-mbit"]), values["member-packets"]), **classes}
        self.limits = limits
        _check(self, values)
        self.private = read_private_key(values["relay-key"]) if values["relay-key"] else _own_key(self.state_dir)
        self.metrics_token: bytes | None = None
        if values["metrics-token-file"]:
            self.metrics_token = read_secret(values["metrics-token-file"], "metrics-token-file").encode()
            if len(self.metrics_token) < 16:
                raise ConfigError("metrics-token-file: a token of at least 16 characters expected")


def load(file: str | None, given: Mapping[str, list[str]]) -> Settings:
    """Settings from `file` (TOML) and what the command line gave. Raises ConfigError."""
    table = _read_table(file) if file else {}
    limits = _limits(table.pop("limits", {}))
    classes = _classes(table.pop("classes", {}))
    values: dict[str, Any] = {}
    for name, (parse, several, default, _) in SETTINGS.items():
        texts = given.get(name) or _texts(name, table.pop(name, None)) or ([] if default is None else [default])
        if len(texts) > 1 and not several:
            raise ConfigError(f"{name}: given more than once")
        try:
            parsed = [parse(text) for text in texts]
        except ValueError as error:
            raise ConfigError(f"{name}: {error} expected") from None
        values[name] = parsed if several else parsed[0] if parsed else None
    if table:
        raise ConfigError(f"{sorted(table)[0]}: no such setting; known are {', '.join(sorted(SETTINGS))}")
    return Settings(values, limits, classes)


def _check(settings: Settings, values: Mapping[str, Any]) -> None:
    """What goes together, and what is needed without a hub. Raises ConfigError."""
    if not settings.network_keys and not settings.join_files and not settings.saved_networks:
        raise ConfigError(
            "join-file: missing. `edgehub relays invite --region REGION` prints what goes into the file; "
            "a relay without a hub needs network-key, id and region"
        )
    if len(settings.join_files) > JOIN_FILES_MAX:
        raise ConfigError(f"join-file: {len(settings.join_files)} given, at most {JOIN_FILES_MAX}")
    for name in ("id", "region") if settings.network_keys else ():
        if not values[name]:
            raise ConfigError(f"{name}: missing. Give it as --{name} or as {name} = … in the configuration file")
    if (settings.cert is None) != (settings.key is None):
        raise ConfigError("cert and key: one without the other. Give both, or neither and one is made")
    if len(settings.public) > RELAY_HOSTS_MAX:
        raise ConfigError(f"public: {len(settings.public)} given, at most {RELAY_HOSTS_MAX}")
    has_hubs = settings.join_files or settings.saved_networks
    if has_hubs and not settings.public and settings.listen.host in ("", "0.0.0.0", "::"):
        raise ConfigError("public: missing. Say where devices reach this relay, as in --public relay.example.org")


def _own_key(directory: str) -> bytes:
    try:
        return relay_key(directory)
    except StateUnusable as error:
        raise ConfigError(str(error)) from None


def read_private_key(path: str) -> bytes:
    """The relay's X25519 key, clamped. Raises ConfigError, also when others than the owner can read the file."""
    try:
        return clamp(from_base64(read_secret(path, "relay-key"), "relay-key"))
    except RemoteProtocolError as error:
        raise ConfigError(f"{error}. `edgerelay keygen FILE` makes one") from None


def read_secret(path: str, name: str) -> str:
    """The text of a small file that only its owner can read. Raises ConfigError."""
    try:
        mode = os.stat(path).st_mode
        if mode & 0o077:
            raise ConfigError(f"{name}: {path} can be read by others: chmod 600 it")
        return _read_text(path)
    except OSError as error:
        raise ConfigError(f"{name}: {path}: {error.strerror}") from None


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(KEY_FILE_BYTES_MAX).strip()


def _read_table(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: more than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _texts(name: str, value: Any) -> list[str]:
    """A setting of the file as the command line would have it."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (str, int) for item in items):
        raise ConfigError(f"{name}: text or a whole number expected")
    return [str(item) for item in items]


def _limits(table: Any) -> RelayLimits:
    if not isinstance(table, dict) or not all(type(value) is int for value in table.values()):
        raise ConfigError("limits: a table of whole numbers expected")
    try:
        return RelayLimits(**{name.replace("-", "_"): value for name, value in table.items()})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _classes(table: Any) -> dict[int, Rate]:
    """[classes.N] with mbit and packets: the rates of passes of class N."""
    classes: dict[int, Rate] = {}
    if not isinstance(table, dict):
        raise ConfigError("classes: a table expected")
    for name, rate in table.items():
        if name not in {str(number) for number in RATE_CLASSES}:
            raise ConfigError(f"classes.{name}: a class from {RATE_CLASSES[0]} to {RATE_CLASSES[-1]} expected")
        if not isinstance(rate, dict) or not set(rate) <= {"mbit", "packets"}:
            raise ConfigError(f"classes.{name}: mbit and packets expected")
        mbit, packets = rate.get("mbit", 100), rate.get("packets", MEMBER_RATE.packets_per_s)
        if type(mbit) is not int or type(packets) is not int or mbit < 1 or packets < 1:
            raise ConfigError(f"classes.{name}: whole numbers of at least 1 expected")
        classes[int(name)] = Rate(_bytes_per_s(mbit), packets)
    return classes


def _bytes_per_s(mbit: int) -> int:
    return mbit * 1_000_000 // BITS


assert _bytes_per_s(100) == MEMBER_RATE.bytes_per_s and _bytes_per_s(1_000) == NETWORK_RATE.bytes_per_s
