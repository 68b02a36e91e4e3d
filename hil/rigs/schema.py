"""What may stand in a rig file: resources, drivers, strategies with their keys, by labgrid's names where it has any.

What labgrid does not have is registered there by hil/labgrid_ext.py, with the same keys; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

NAT_KINDS = ("full", "address", "port", "symmetric", "blocked", "hairpin", "short")
NEEDED = object()  # in the place of a default: the key has to be there


class Key(NamedTuple):
    """`type` is one of str, int, float, bool, dict; `among` the values that are allowed, where not all are."""

    type: type
    text: str
    default: object = NEEDED
    among: tuple[str, ...] = ()


class Kind(NamedTuple):
    """`binds`: resources of which a driver needs exactly one. `gives`: protocols. `ours`: labgrid has it from us."""

    role: str
    text: str
    keys: Mapping[str, Key]
    binds: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    ours: bool = False


_DELAY = {"delay": Key(float, "seconds between off and on of a cycle", 2.0)}

KINDS: dict[str, Kind] = {
    "RawSerialPort": Kind(
        "resource",
        "a serial port of this host",
        {"port": Key(str, "its path; /dev/serial/by-id/… stays the same"), "speed": Key(int, "bits a second", 115200)},
    ),
    "NetworkSerialPort": Kind(
        "resource",
        "a serial port behind a network server (ser2net, a terminal server)",
        {
            "host": Key(str, "name or address"),
            "port": Key(int, "TCP port"),
            "speed": Key(int, "bits a second; by rfc2217 only", 115200),
            "protocol": Key(str, "rfc2217, or raw for nothing but bytes", "rfc2217", ("rfc2217", "raw")),
        },
    ),
    "NetworkService": Kind(
        "resource",
        "the device's ssh server",
        {
            "address": Key(str, "name or address"),
            "username": Key(str, "who logs in"),
            "port": Key(int, "TCP port", 22),
        },
    ),
    "USBPowerPort": Kind(
        "resource",
        "a port of a USB hub that can switch its power",
        {
            "match": Key(dict, "the hub: {sys_name: 1-1.4}, as uhubctl shows it"),
            "index": Key(int, "number of the port"),
        },
    ),
    "HTTPPowerPort": Kind(
        "resource",
        "an outlet of a power strip, or a PoE port of a switch, with an HTTP interface",
        {
            "url": Key(str, "of a change; {outlet} and {state} are filled in"),
            "outlet": Key(str, "what {outlet} is", ""),
            "method": Key(str, "of a change", "POST", ("GET", "POST", "PUT", "PATCH")),
            "body": Key(str, "of a change; {outlet} and {state} are filled in", ""),
            "content_type": Key(str, "of the body", "application/json"),
            "value_on": Key(str, "what {state} is for on", "on"),
            "value_off": Key(str, "what {state} is for off", "off"),
            "state_url": Key(str, "where a GET tells the state; empty: nobody can say", ""),
            "state_pattern": Key(str, "regular expression that the answer has in it when it is on", r"\b(on|true|1)\b"),
            "authorization_file": Key(
                str, "file with the value of the header Authorization, nobody else's to read", ""
            ),
            "ca_file": Key(str, "certificates that are trusted instead of the system's, PEM", ""),
            "timeout": Key(float, "seconds for an answer", 10.0),
        },
        ours=True,
    ),
    "SDMuxPort": Kind(
        "resource",
        "a USB-SD-Mux: a card that is either this host's or the device's",
        {
            "control": Key(str, "its control device: /dev/usb-sd-mux/id-…, as usbsdmux's udev rules name it"),
            "disk": Key(str, "the card as this host sees it; empty: as sysfs tells", ""),
        },
        ours=True,
    ),
    "CardFile": Kind(
        "resource",
        "a file that stands for a card: of a simulated board",
        {"path": Key(str, "the file"), "size_mb": Key(int, "MiB, when it is made", 512)},
        ours=True,
    ),
    "USBBootPort": Kind(
        "resource",
        "a Raspberry Pi compute module whose storage rpiboot shows as a USB disk",
        {
            "disk": Key(str, "the disk that appears: /dev/disk/by-id/…"),
            "folder": Key(str, "what rpiboot loads into it; empty: its own mass storage gadget", ""),
        },
        ours=True,
    ),
    "SwitchPort": Kind(
        "resource",
        "the device's network cable, as a unix socket into edgehil's own network",
        {
            "path": Key(str, "where the socket is to be"),
            "nat": Key(str, "of the router between it and the hub", "port", NAT_KINDS),
        },
        ours=True,
    ),
    "SerialDriver": Kind(
        "driver",
        "the console on a serial port",
        {"txdelay": Key(float, "seconds between characters that are typed: for boards without flow control", 0.0)},
        ("RawSerialPort", "NetworkSerialPort"),
        ("Console",),
    ),
    "HTTPPowerDriver": Kind("driver", "power by HTTP", _DELAY, ("HTTPPowerPort",), ("Power",), ours=True),
    "USBPowerDriver": Kind("driver", "power by uhubctl", _DELAY, ("USBPowerPort",), ("Power",)),
    "ExternalPowerDriver": Kind(
        "driver",
        "power by commands of yours",
        {
            "cmd_on": Key(str, "switches it on"),
            "cmd_off": Key(str, "switches it off"),
            "cmd_cycle": Key(str, "does both; empty: cmd_off, a while, cmd_on", ""),
            **_DELAY,
        },
        (),
        ("Power",),
    ),
    "SSHDriver": Kind(
        "driver",
        "commands by ssh, with a key: a password is never asked for",
        {"keyfile": Key(str, "private key; empty: ssh's own choice", "")},
        ("NetworkService",),
        ("Network",),
    ),
    "SDMuxDriver": Kind("driver", "the card in a USB-SD-Mux, by usbsdmux", {}, ("SDMuxPort",), ("Storage",), ours=True),
    "CardFileDriver": Kind("driver", "the file that stands for a card", {}, ("CardFile",), ("Storage",), ours=True),
    "USBBootDriver": Kind("driver", "storage by rpiboot", {}, ("USBBootPort",), ("Storage",), ours=True),
    "GuestDriver": Kind(
        "driver",
        "a machine that QEMU emulates, which is its own console, power, storage and network",
        {
            "machine": Key(str, "one of `edgehil list`"),
            "nat": Key(str, "of the router between it and the hub", "port", NAT_KINDS),
        },
        (),
        ("Power", "Console", "Storage"),
        ours=True,
    ),
    "UBootDriver": Kind(
        "driver",
        "U-Boot's prompt on the console",
        {
            "prompt": Key(str, "regular expression", "=> "),
            "autoboot": Key(str, "what stands before its count-down", "stop autoboot"),
            "interrupt": Key(str, "what is typed to stop it", "\n"),
            "boot_expression": Key(str, "regular expression of its first line", r"U-Boot 20\d+"),
            "bootstring": Key(str, "regular expression of the kernel's first line", r"Linux version \d"),
            "boot_command": Key(str, "what is typed to go on", "run bootcmd"),
            "login_timeout": Key(int, "seconds from power to prompt", 30),
            "boot_timeout": Key(int, "seconds from command to kernel", 30),
        },
        (),
        ("BootLoader",),
    ),
    "ShellDriver": Kind(
        "driver",
        "a root shell on the console",
        {
            "prompt": Key(str, "regular expression"),
            "login_prompt": Key(str, "regular expression"),
            "username": Key(str, "who logs in: root, or one who may do all"),
            "password": Key(str, "where one is asked for; quoted", ""),
            "login_timeout": Key(int, "seconds from kernel, or power, to prompt", 60),
        },
        (),
        ("Shell",),
    ),
    "BoardStrategy": Kind(
        "driver",
        "how the device comes from off to its agent (`edgehil list --strategy`)",
        {"agent_timeout": Key(int, "seconds from shell to an agent that is a member and has its hub", 180)},
        (),
        ("Strategy",),
        ours=True,
    ),
}

# `options:` of a target
TARGET_OPTIONS = {
    "board": Key(str, "its id in `edgeflash boards list`; guests know theirs", ""),
    "image": Key(str, "the image, or folder with a root file system, that is set up for it", ""),
    "init": Key(str, "init format, where edgeflash has to be told", ""),
    "agent": Key(str, "the agent's package or zipapp; empty: the image's own", ""),
}
# `options:` of a rig
RIG_OPTIONS = {
    "hub_url": Key(str, "the hub that devices join; empty: one of edgehil's own, in its own network", ""),
    "hub_token_file": Key(str, "file with an API token of that hub: devices:read, tokens:write", ""),
}


def table() -> list[tuple[str, str, str, str]]:
    """(kind, key, default, meaning) of everything, for people; a row with an empty key is about the kind."""
    rows = []
    for name, kind in KINDS.items():
        gives = f" → {', '.join(kind.gives)}" if kind.gives else ""
        rows.append((name, "", kind.role, kind.text + gives))
        for key, what in kind.keys.items():
            default = "needed" if what.default is NEEDED else repr(what.default) if what.default != "" else "—"
            rows.append((name, key, default, what.text))
    return rows
