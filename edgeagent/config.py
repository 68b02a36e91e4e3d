"""Settings of the agent: command line over environment over file over default, each value checked by name."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFIG_FILE = "/etc/edgeagent.conf"
CONFIG_BYTES_MAX = 65_536
INTERFACES_MAX = 8  # in a list of them
DNS_MODES = ("auto", "off", "server", "resolved", "resolvconf", "dnsmasq", "file")
LOCK_KEYS_MAX = 8
MODEMS_MAX = 4
CEILING_RANGE_MIB = (20, 65_536)  # an agent does not start with less

_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PROXY = re.compile(
    r"(?:[!-9;-~]{1,128}:[!-~]{0,128}@)?"  # user, password
    r"(?:([A-Za-z0-9.-]{1,253})|\[([0-9A-Fa-f:.]{2,45})\]):([1-9][0-9]{0,4})"
)
_MODEM = re.compile(r"mmcli|/dev/[A-Za-z0-9_:-][A-Za-z0-9_:/.-]{0,80}(?:=[A-Za-z0-9_.-]{1,15})?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class ConfigError(ValueError):
    """A setting is wrong; the text names the setting, where it comes from, and what it must be."""


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text or len(text) > 255:
        raise ValueError("an absolute path of at most 255 characters")
    return text


def _socket_path(text: str) -> str:
    if len(_path(text).encode()) > 107:  # sun_path, unix(7)
        raise ValueError("an absolute path of at most 107 bytes")
    return text


def _interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise ValueError("an interface name: 1 to 15 letters, digits, '_', '.' or '-'")
    return text


def _interfaces(text: str) -> str:
    names = [name.strip() for name in text.split(",")] if text else []
    if len(names) > INTERFACES_MAX or len(set(names)) != len(names):
        raise ValueError(f"at most {INTERFACES_MAX} interface names, each once, with ',' between them")
    return ",".join(_interface(name) for name in names)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _hostname(text: str) -> str:
    if not _HOST_LABEL.fullmatch(text):
        raise ValueError("one DNS label: a-z, 0-9 and '-', at most 63 characters, no '-' at the ends")
    return text


def _log_level(text: str) -> str:
    if text not in ("debug", "info", "warning", "error"):
        raise ValueError("debug, info, warning or error")
    return text


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _proxy(text: str) -> str:
    if text:
        match = _PROXY.fullmatch(text)
        if match is None or int(match[3]) > 65535 or not _is_host(match[1], match[2]):
            raise ValueError("HOST:PORT or USER:PASSWORD@HOST:PORT")
    return text


def _is_host(name: str | None, ipv6: str | None) -> bool:
    if name is not None:
        return all(_HOST_LABEL.fullmatch(label) for label in name.lower().split("."))
    from socket import AF_INET6, inet_pton

    try:
        inet_pton(AF_INET6, ipv6 or "")
    except OSError:
        return False
    return True


def _metered(text: str) -> str:
    if text != "auto":
        from edgeagent.proto.budget import read_metered

        read_metered(text)
    return text


def _budget(text: str) -> str:
    if text:
        from edgeagent.proto.budget import read_budgets

        read_budgets(text)
    return text


def _modem(text: str) -> str:
    if text in ("auto", "off"):
        return text
    modems = [each.strip() for each in text.split(",")]
    if len(modems) > MODEMS_MAX or len(set(modems)) != len(modems) or not all(map(_MODEM.fullmatch, modems)):
        raise ValueError(f"auto, off, or at most {MODEMS_MAX} of mmcli, /dev/ttyUSB2, /dev/cdc-wdm0=wwan0, ',' between")
    return ",".join(modems)


def _memory(text: str) -> str:
    if text not in ("small", "normal", "large"):  # proto/limits.py has the table, and `status` no need of it
        raise ValueError("small, normal or large")
    return text


def _dns(text: str) -> str:
    if text not in DNS_MODES:
        raise ValueError(", ".join(DNS_MODES[:-1]) + f" or {DNS_MODES[-1]}")
    return text


def _limits(text: str) -> str:
    if text:
        from edgeagent.proto.limits import read_limits

        read_limits(text)
    return text


def _ceiling(text: str) -> str:
    low, high = CEILING_RANGE_MIB
    if text in ("auto", "off") or (text.isascii() and text.isdecimal() and len(text) < 9 and low <= int(text) <= high):
        return text
    raise ValueError(f"auto, off, or a whole number of MiB from {low} to {high}")


def _engine(text: str) -> str:
    if text not in ("auto", "fast", "pure", "kernel"):
        raise ValueError("auto, fast, pure or kernel")
    return text


def _verbs(text: str) -> str:
    if text in ("all", "none"):
        return text
    from edgeagent.proto.commands import VERBS

    verbs = [verb.strip() for verb in text.split(",")]
    if not set(verbs) <= set(VERBS):
        raise ValueError(f"all, none, or some of {', '.join(VERBS)} with ',' between them")
    return ",".join(verbs)


def _board(text: str) -> str:
    from edgeagent.board import is_id

    if not is_id(text):
        raise ValueError("a board's id, as in rpi-4b")
    return text


def _watchdog(text: str) -> str:
    device, _, seconds = text.partition(",")
    is_device = re.fullmatch("/dev/watchdog[0-9]{0,2}", device) is not None
    if text in ("auto", "off") or (is_device and (not seconds or re.fullmatch("[1-9][0-9]{0,3}", seconds))):
        return text
    raise ValueError("auto, off, or /dev/watchdog and a number, with ',' and seconds where they matter")


def _lock(text: str) -> str:
    from base64 import b64decode

    keys = [key.strip() for key in text.split(",")] if text else []
    for key in keys:
        try:
            fits = len(key) == 44 and len(b64decode(key, validate=True)) == 32
        except ValueError:
            fits = False
        if not fits or len(keys) > LOCK_KEYS_MAX:
            raise ValueError(f"lock keys as `edgehub lock status` prints them, at most {LOCK_KEYS_MAX}, ',' between")
    return ",".join(keys)


# name -> (environment variable, default, parser, help)
SETTINGS: dict[str, tuple[str, str, Callable[[str], str | int], str]] = {
    "state-dir": ("EDGEAGENT_STATE", "/var/lib/edgeagent", _path, "directory for keys and cache"),
    "socket": ("EDGEAGENT_SOCKET", "/run/edgeagent/agent.sock", _socket_path, "unix socket of the local API"),
    "interface": ("EDGEAGENT_INTERFACE", "edge0", _interface, "name of the network interface to make"),
    "port": ("EDGEAGENT_PORT", "51820", _integer(0, 65535), "UDP port of the tunnel; 0 lets the kernel choose"),
    "mtu": ("EDGEAGENT_MTU", "1280", _integer(1280, 9000), "largest packet inside the tunnel, bytes"),
    "uplinks": (
        "EDGEAGENT_UPLINKS",
        "",
        _interfaces,
        "interfaces to reach others by, the best first, as in eth0,wwan0; empty: all that have a default route",
    ),
    "port-mapping": (
        "EDGEAGENT_PORT_MAPPING",
        "on",
        _on_off,
        "on: ask routers to open the UDP port (PCP, NAT-PMP, UPnP); off",
    ),
    "hostname": ("EDGEAGENT_HOSTNAME", "", _hostname, "host name to ask the hub for"),
    "proxy": ("EDGEAGENT_PROXY", "", _proxy, "HTTP proxy to the broker and to relays: [USER:PASSWORD@]HOST:PORT"),
    "metered": (
        "EDGEAGENT_METERED",
        "auto",
        _metered,
        "interfaces whose bytes cost money: names, comma separated, * for any characters; auto: modems; none",
    ),
    "budget": (
        "EDGEAGENT_BUDGET",
        "",
        _budget,
        "what metered interfaces may take: wwan0=2MB/day,60MB/month (kB, MB, GB, KiB, MiB, GiB)",
    ),
    "modem": (
        "EDGEAGENT_MODEM",
        "auto",
        _modem,
        "who is asked about modems: auto: ModemManager or uqmi, where there are any; off; mmcli; or devices, as in "
        "/dev/ttyUSB2 (AT commands) or /dev/cdc-wdm0=wwan0 (uqmi), ',' between",
    ),
    "memory-profile": (
        "EDGEAGENT_MEMORY_PROFILE",
        "normal",
        _memory,
        "how large tables, queues and rings may become: small, normal or large, for devices of 32, 64 and 128 MiB",
    ),
    "engine": (
        "EDGEAGENT_ENGINE",
        "auto",
        _engine,
        "what moves the packets: auto: the kernel's WireGuard where its conditions hold (docs/agent.md), else the C "
        "library where it is there, else Python; kernel, fast or pure: that one, or none",
    ),
    "limits": (
        "EDGEAGENT_LIMITS",
        "",
        _limits,
        "single ones of these: peers=32,flows=1024; on the command line --limit NAME=VALUE, for each",
    ),
    "memory-ceiling": (
        "EDGEAGENT_MEMORY_CEILING",
        "auto",
        _ceiling,
        "MiB that the agent stays below, dropping what needs more; auto: 30, 40 or 64 by `memory-profile`; off",
    ),
    "dns": (
        "EDGEAGENT_DNS",
        "auto",
        _dns,
        "how this host's programs get the network's names: auto: by whatever resolves names here; resolved, "
        "resolvconf, dnsmasq, file (/etc/resolv.conf); server: answer at 100.100.100.100 and change nothing; off",
    ),
    "trial": (
        "EDGEAGENT_TRIAL",
        "600",
        _integer(20, 86_400),
        "seconds in which a version that an update brought must show that it is sound; else the one before it returns",
    ),
    "watchdog": (
        "EDGEAGENT_WATCHDOG",
        "auto",
        _watchdog,
        "the board's watchdog, which starts it anew when the agent hangs: auto: the one that the board's description "
        "names; off; /dev/watchdog or /dev/watchdog,SECONDS",
    ),
    "allow-commands": (
        "EDGEAGENT_ALLOW_COMMANDS",
        "all",
        _verbs,
        "what the hub may tell this device to do: all, none, or verbs as in collect-logs,netcheck",
    ),
    "scripts": (
        "EDGEAGENT_SCRIPTS",
        "/etc/edgeagent/scripts",
        _path,
        "directory of programs that the hub may run here, root's alone; none are run where it is not there",
    ),
    "lock": (
        "EDGEAGENT_LOCK",
        "",
        _lock,
        "keys of the network's lock, comma separated: no others are trusted; empty: the first that the hub names",
    ),
    "board": ("EDGEAGENT_BOARD", "", _board, "id of the board that this is; empty: by its slice, or as it is detected"),
    "log-level": ("EDGEAGENT_LOG", "info", _log_level, "debug, info, warning or error"),
}


_SECRET = ("proxy",)  # may hold a password: never shown, never in an argument list
_FLAGS = {"limits": "limit"}  # on the command line one at a time


class Settings:
    """All settings, checked. `port_fixed` is True when the user named the port: then another one will not do. `named`:
    the names of those that are not left at their defaults; `by_hub`: of those that the hub has put over them."""

    __slots__ = (
        "allow_commands",
        "board",
        "budget",
        "by_hub",
        "dns",
        "engine",
        "hostname",
        "interface",
        "limits",
        "lock",
        "log_level",
        "memory_ceiling",
        "memory_profile",
        "metered",
        "modem",
        "mtu",
        "named",
        "port",
        "port_fixed",
        "port_mapping",
        "proxy",
        "scripts",
        "socket",
        "state_dir",
        "trial",
        "uplinks",
        "watchdog",
    )

    state_dir: str
    socket: str
    interface: str
    port: int
    mtu: int
    hostname: str
    metered: str
    modem: str
    budget: str
    dns: str
    engine: str
    memory_profile: str
    limits: str
    memory_ceiling: str
    allow_commands: str
    scripts: str
    lock: str
    trial: int
    watchdog: str
    log_level: str
    proxy: str
    uplinks: str
    board: str
    port_fixed: bool
    port_mapping: bool

    def __init__(self, named: tuple[str, ...] = (), **values: str | int) -> None:
        self.named = named
        self.by_hub: tuple[str, ...] = ()
        for name, value in values.items():
            setattr(self, name, value)


def load(given: Mapping[str, str | None], environ: Mapping[str, str] = os.environ, file: str | None = None) -> Settings:
    """Settings from `given` (setting name -> text, None = not given), the environment, the file and the defaults.

    `file` None means CONFIG_FILE, which need not exist; a file that was named must.
    """
    from_file = read_file(file or CONFIG_FILE, must_exist=file is not None)
    values: dict[str, str | int] = {"port_fixed": False}
    named: list[str] = []
    for name, (variable, default, parse, _) in SETTINGS.items():
        if (text := given.get(name)) is not None:
            origin = f"--{_FLAGS.get(name, name)}"
        elif text := environ.get(variable, ""):
            origin = variable
        elif name in from_file:
            text, origin = from_file[name]
        else:
            text, origin = default, "default"
        if name == "hostname" and not text:
            text = to_label(os.uname().nodename)
        try:
            values[name.replace("-", "_")] = parse(text)
        except ValueError as error:
            shown = "" if name in _SECRET else f" {text[:80]!r}:"
            raise ConfigError(f"{origin}:{shown} want {error}") from None
        if origin != "default":
            named.append(name)
    values["port_fixed"] = "port" in named
    return Settings(tuple(named), **values)


def read_file(path: str, *, must_exist: bool) -> dict[str, tuple[str, str]]:
    """name -> (value, "file:line") of a file of `name = value` lines; `#` begins a comment line."""
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"{path}: no such file") from None
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: longer than {CONFIG_BYTES_MAX} bytes")
    found: dict[str, tuple[str, str]] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.decode("utf-8", "replace").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise ConfigError(f"{path}:{number}: want name = value")
        if name not in SETTINGS:
            raise ConfigError(f"{path}:{number}: {name[:40]!r}: no such setting; known are {', '.join(SETTINGS)}")
        if name in found:
            raise ConfigError(f"{path}:{number}: {name}: given twice")
        found[name] = (value, f"{path}:{number}")
    return found


def to_label(name: str) -> str:
    """The first part of a name made into a DNS label, other characters becoming '-'; "device" when nothing is left."""
    label = re.sub(r"[^a-z0-9]+", "-", name.split(".")[0].lower()).strip("-")[:63].strip("-")
    return label or "device"
