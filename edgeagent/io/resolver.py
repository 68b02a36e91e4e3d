"""How a host's own resolver is told to ask us about the network's names: systemd-resolved, resolvconf, dnsmasq.

Each way is a pair: `take_…` does it, `undo_…` takes it back and may be done twice, or by another process after a crash.
What is changed follows from `Wanted` alone, so that it can be kept on disk before the first command runs.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from time import monotonic

COMMAND_TIMEOUT_S = 8.0  # a service manager may take a while to restart dnsmasq
OUTPUT_BYTES_MAX = 8_192
DNSMASQ_LINE_MAX = 900  # of the 1025 that dnsmasq reads
DNSMASQ_FILE = "/etc/dnsmasq.d/edgeagent.conf"
MARK = "# edgeagent"
UCI_SERVER, UCI_REBIND = "dhcp.@dnsmasq[0].server", "dhcp.@dnsmasq[0].rebind_domain"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_BUS = ("call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager")


class ResolverError(Exception):
    """This host's resolver could not be told; the text says which command failed, and how."""


class Wanted:
    """What is to be asked of us: names in `domains`, `search` behind names without dots; with `everything` all names.

    `server` is our IPv4 address in text, `port` where it answers.
    """

    __slots__ = ("domains", "everything", "interface", "port", "search", "server")

    def __init__(
        self, interface: str, server: str, port: int, domains: list[str], search: list[str], everything: bool
    ) -> None:
        self.interface = interface
        self.server = server
        self.port = port
        self.domains = domains
        self.search = search
        self.everything = everything

    def serves(self, name: str) -> bool:
        """Whether we are to be asked about a name."""
        return self.everything or any(f".{name}".endswith(f".{domain}") for domain in self.domains)

    def encode(self) -> dict[str, object]:
        return {
            "if": self.interface,
            "sv": self.server,
            "po": self.port,
            "do": self.domains,
            "se": self.search,
            "ev": self.everything,
        }

    @classmethod
    def decode(cls, fields: dict[str, object]) -> Wanted:
        """Raises KeyError, TypeError where something is missing."""
        return cls(fields["if"], fields["sv"], fields["po"], fields["do"], fields["se"], fields["ev"])  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wanted) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]


def run(*words: str, given: str = "") -> str:
    """What a command says, `given` being its standard input. Raises ResolverError. No `subprocess`: it would stay."""
    environ = {**os.environ, "PATH": _path(), "LC_ALL": "C"}
    program = find(words[0])
    if program is None:
        raise ResolverError(f"{words[0]}: not found")
    reader, writer = os.pipe()
    source, feed = os.pipe()
    try:
        os.write(feed, given.encode()[:OUTPUT_BYTES_MAX])  # a pipe holds more
        actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, writer, 2)]
        process = os.posix_spawn(program, list(words), environ, file_actions=actions)
    except OSError as error:
        os.close(reader)
        raise ResolverError(f"{words[0]}: {error.strerror}") from None
    finally:
        for fd in (writer, source, feed):
            os.close(fd)
    said, in_time = _read(reader, monotonic() + COMMAND_TIMEOUT_S)
    os.close(reader)
    if not in_time:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0 or not in_time:
        how = f"exit status {code}" if in_time else f"not within {COMMAND_TIMEOUT_S:.0f} s"
        raise ResolverError(f"{' '.join(words[:4])}: {how}: {said.strip()[-200:] or 'it said nothing'}")
    return said


def find(program: str) -> str | None:
    """Where a command is. (shutil.which brings along all compressors there are: 0.6 MiB.)"""
    if "/" in program:
        return program if os.access(program, os.X_OK) else None
    places = (f"{directory}/{program}" for directory in _path().split(":") if directory)
    return next((place for place in places if os.access(place, os.X_OK)), None)


def has(program: str) -> bool:
    return find(program) is not None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:{_PATH}"


def _read(fd: int, deadline: float) -> tuple[str, bool]:
    data, poll = b"", select.poll()
    poll.register(fd, select.POLLIN)
    while (left_s := deadline - monotonic()) > 0:
        if poll.poll(1_000 * left_s):
            more = os.read(fd, 4_096)
            if not more:
                return data.decode("utf-8", "replace"), True
            data = (data + more)[:OUTPUT_BYTES_MAX]
    return data.decode("utf-8", "replace"), False


# systemd-resolved: servers and domains of our link, which go with it (resolvectl(1), org.freedesktop.resolve1(5))


def take_resolved(wanted: Wanted) -> None:
    search = [domain for domain in wanted.search if wanted.serves(domain)]  # what is searched comes to us, too
    routed = [domain for domain in wanted.domains if domain not in search]
    domains = [*search, *(f"~{domain}" for domain in routed), *(["~."] if wanted.everything else [])]
    if has("resolvectl"):
        link = wanted.interface
        run("resolvectl", "dns", link, _with_port(wanted, ":"))
        run("resolvectl", "domain", link, *(domains or [""]))
        run("resolvectl", "default-route", link, "yes" if wanted.everything else "no")
        run("resolvectl", "dnssec", link, "no")  # nobody above signs for us
        run("resolvectl", "dnsovertls", link, "no")
        return
    if wanted.port != 53:
        raise ResolverError(f"port {wanted.port}: resolvectl is needed to say so. Install it, or free port 53")
    index = str(socket.if_nametoindex(wanted.interface))
    address = wanted.server.split(".")
    run("busctl", *_BUS, "SetLinkDNS", "ia(iay)", index, "1", str(int(socket.AF_INET)), "4", *address)
    words = [word for name in domains for word in (name.removeprefix("~"), "true" if name[0] == "~" else "false")]
    run("busctl", *_BUS, "SetLinkDomains", "ia(sb)", index, str(len(domains)), *words)
    run("busctl", *_BUS, "SetLinkDefaultRoute", "ib", index, "true" if wanted.everything else "false")
    run("busctl", *_BUS, "SetLinkDNSSEC", "is", index, "no")


def undo_resolved(wanted: Wanted) -> None:
    """Where the link is gone, so is all of it."""
    try:
        index = socket.if_nametoindex(wanted.interface)
    except OSError:
        return
    if has("resolvectl"):
        run("resolvectl", "revert", wanted.interface)
    else:
        run("busctl", *_BUS, "RevertLink", "i", str(index))


# resolvconf and openresolv: they write /etc/resolv.conf, with the name servers of all interfaces in it


def resolvconf_name(interface: str) -> str:
    """Debian's interface-order has "tun*" before Ethernet."""
    return f"tun.{interface}"


def take_resolvconf(wanted: Wanted, search: list[str]) -> None:
    """`search` has the domains of other interfaces. There is no way to say for which names we are, so we pass all
    others on: openresolv leaves us alone in the list (-x), Debian's resolvconf puts us first and ignores the options.
    """
    _need_port_53(wanted)
    domains = [*wanted.search, *(domain for domain in search if domain not in wanted.search)]
    lines = [f"nameserver {wanted.server}", *([f"search {' '.join(domains)}"] if domains else [])]
    given = "\n".join(lines) + "\n"
    run("resolvconf", "-a", resolvconf_name(wanted.interface), "-m", "0", "-x", given=given)


def undo_resolvconf(wanted: Wanted) -> None:
    run("resolvconf", "-d", resolvconf_name(wanted.interface))


# dnsmasq by OpenWrt's uci: a server for our domains, whose answers may be private; it serves the LAN too


def take_uci(wanted: Wanted) -> None:
    present = _uci_list(UCI_SERVER)
    for entry in dnsmasq_servers(wanted):
        if entry not in present:
            run("uci", "add_list", f"{UCI_SERVER}={entry}")
    present = _uci_list(UCI_REBIND)
    for domain in _rebind(wanted):
        if domain not in present:
            run("uci", "add_list", f"{UCI_REBIND}={domain}")
    _uci_apply()


def undo_uci(wanted: Wanted) -> None:
    for entry in dnsmasq_servers(wanted):
        run("uci", "-q", "del_list", f"{UCI_SERVER}={entry}")
    for domain in _rebind(wanted):
        run("uci", "-q", "del_list", f"{UCI_REBIND}={domain}")
    _uci_apply()


def _uci_list(option: str) -> list[str]:
    try:
        return run("uci", "-q", "-d", "\n", "get", option).split("\n")
    except ResolverError:  # there is none yet
        return []


def _uci_apply() -> None:
    run("uci", "commit", "dhcp")
    run("/etc/init.d/dnsmasq", "reload")


# dnsmasq elsewhere: a file of our own in its directory


def take_dnsmasq(wanted: Wanted, path: str = DNSMASQ_FILE) -> None:
    lines = [f"{MARK}: made by edgeagent, and removed when it ends"]
    lines += [f"server={entry}" for entry in dnsmasq_servers(wanted)]
    lines += [f"rebind-domain-ok=/{domain}/" for domain in _rebind(wanted)]
    text = "\n".join(lines) + "\n"
    with suppress(OSError), open(path) as file:
        if file.read() == text:
            return
    try:
        with open(path + ".new", "w") as file:
            file.write(text)
        os.chmod(path + ".new", 0o644)
        os.rename(path + ".new", path)
    except OSError as error:
        raise ResolverError(f"{path}: {error.strerror}") from None
    _restart_dnsmasq()


def undo_dnsmasq(wanted: Wanted, path: str = DNSMASQ_FILE) -> None:
    """A file without our mark is not ours."""
    try:
        with open(path) as file:
            if not file.readline().startswith(MARK):
                return
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ResolverError(f"{path}: {error.strerror}") from None
    _restart_dnsmasq()


def _restart_dnsmasq() -> None:
    """At SIGHUP it does not read its configuration again (dnsmasq(8))."""
    for words in (
        ("systemctl", "try-restart", "dnsmasq"),
        ("rc-service", "--ifstarted", "dnsmasq", "restart"),
        ("/etc/init.d/dnsmasq", "restart"),
    ):
        if has(words[0]):
            run(*words)
            return
    raise ResolverError("dnsmasq: no service manager to restart it is found here. Restart it by hand")


def dnsmasq_servers(wanted: Wanted) -> list[str]:
    """`/domain/domain/…/server#port`, as few as its lines hold; without domains for everything else."""
    server = _with_port(wanted, "#")
    entries, line = [], ""
    for domain in wanted.domains:
        if line and len(line) + len(domain) + len(server) + 2 > DNSMASQ_LINE_MAX:
            entries.append(f"{line}/{server}")
            line = ""
        line += f"/{domain}"
    if line:
        entries.append(f"{line}/{server}")
    return [*entries, *([server] if wanted.everything else [])]


def _rebind(wanted: Wanted) -> list[str]:
    """Of those domains names lead to addresses."""
    return [domain for domain in wanted.domains if not domain.endswith(".arpa")]


def _with_port(wanted: Wanted, sign: str) -> str:
    return wanted.server if wanted.port == 53 else f"{wanted.server}{sign}{wanted.port}"


def _need_port_53(wanted: Wanted) -> None:
    if wanted.port != 53:
        raise ResolverError(
            f"port {wanted.port}: another program has port 53 of {wanted.server}, and resolv.conf knows no other. "
            "Have it listen elsewhere, or use --dns=dnsmasq or --dns=resolved"
        )
