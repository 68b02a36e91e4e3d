"""TAYGA, the stateless translator between IPv4 and IPv6 (RFC 6145, RFC 6052), for sites of 4via6: what it is told, with
which rights it runs, and what one of before left.

It knows two addresses of ours a side: its own, for its ICMP errors, and the one source of all that goes through it. The
kernel puts that in place of the devices' before, and the router's own in its place behind, so that the translator needs
no pool, and keeps no state.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from time import monotonic, sleep

from edgeagent.proto import via
from edgeagent.proto.ip import ip_to_text
from edgeagent.proto.prefixes import Prefix, to_text

# Of 198.18.0.0/15, which is for benchmarks (RFC 2544) and no site's: neither the network's 100.64.0.0/10, nor private,
# nor 192.0.0.0/29, which translators of modems have (464XLAT, RFC 7335), nor 198.18.0.0/16, which proxies make up.
# They are in no packet that leaves the router.
_POOL = bytes((198, 19, 84, 0))
_AGENTS_MAX = 64  # of one machine, told apart by the number at the end of their interfaces' names
_NAME_MAX = 15  # of an interface, IFNAMSIZ
FOLDER = "tayga"
_FILE = "tayga.conf"
_KILL_AFTER_S = 1.0  # from SIGTERM
_PROC = "/proc"


class Ends:
    """The translator's interface, beside that of the tunnel, and its addresses: `own` and `source`, (IPv4, IPv6)."""

    __slots__ = ("interface", "own", "source")

    def __init__(self, tunnel: str) -> None:
        suffix = "-via"
        self.interface = tunnel[: _NAME_MAX - len(suffix)] + suffix
        digits = re.search("[0-9]{1,9}$", tunnel)
        first = 4 * (int(digits[0]) % _AGENTS_MAX if digits else 0)
        self.own, self.source = (_pair(first + 1), _pair(first + 2))


def _pair(number: int) -> tuple[bytes, bytes]:
    """IPv6 addresses are of site 0, which is nobody's."""
    v4 = _POOL[:3] + bytes((number,))
    return v4, via.embed(0, (v4, 32))[0]


def configuration(ends: Ends, network: Prefix, folder: str) -> str:
    """tayga.conf(5); `network` is the /96 before the site's IPv4 addresses. Where packets of the site may be fragments
    (no DF), they leave as fragments of 1,280 B at most: `strict-frag-hdr` is off, as it is by itself, for a header of a
    fragment that is none helps nobody behind us."""
    return "".join(
        f"{line}\n"
        for line in (
            f"tun-device {ends.interface}",
            f"ipv4-addr {ip_to_text(ends.own[0])}",
            f"ipv6-addr {ip_to_text(ends.own[1])}",
            f"prefix {to_text(network)}",
            f"map {ip_to_text(ends.source[0])} {ip_to_text(ends.source[1])}",
            "strict-frag-hdr off",
            f"data-dir {folder}",
        )
    )


def write(folder: str, text: str) -> str:
    """Keep the configuration, where it is another. Returns its path. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    path = os.path.join(folder, _FILE)
    with suppress(FileNotFoundError), open(path) as file:
        if file.read(4_096) == text:
            return path
    with open(path, "w") as file:
        file.write(text)
    return path


def remove(folder: str) -> None:
    for gone, path in ((os.unlink, os.path.join(folder, _FILE)), (os.rmdir, folder)):
        with suppress(OSError):
            gone(path)


def words(program: str, path: str, *, drop: bool) -> list[str]:
    """The command. With `drop` it gives up all rights once it has its interface, and sees nothing but its own folder;
    that takes CAP_SETUID, CAP_SETGID and CAP_SYS_CHROOT, and somebody to be."""
    command = [program, "--nodetach", "--config", path]
    if drop:
        import grp
        import pwd

        with suppress(KeyError):
            nobody = pwd.getpwnam("nobody")
            command += ["--user", nobody.pw_name, "--group", grp.getgrgid(nobody.pw_gid).gr_name, "--chroot"]
    return command


def end_leftovers(folder: str) -> int:
    """End translators that an agent which was killed had begun with the configuration in this folder; how many. The
    folder is there before they are, and until they are ended."""
    if not os.path.exists(folder):
        return 0
    path = os.path.join(folder, _FILE).encode()
    found = [int(entry) for entry in os.listdir(_PROC) if entry.isdecimal() and _runs(int(entry), path)]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = monotonic() + _KILL_AFTER_S
    while any(_runs(pid, path) for pid in found) and monotonic() < deadline:
        sleep(0.02)
    for pid in [pid for pid in found if _runs(pid, path)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    remove(folder)
    return len(found)


def _runs(pid: int, path: bytes) -> bool:
    """Whether a process is a translator under this configuration."""
    try:
        with open(f"{_PROC}/{pid}/cmdline", "rb") as file:
            line = file.read(4_096).split(b"\0")
    except OSError:
        return False
    return os.path.basename(line[0]) == b"tayga" and path in line[1:]
