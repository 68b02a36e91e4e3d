"""`edgeagent doctor`: what of this device is right and what is not, what that means, and what to do about it."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeagent import probes, zipped
from edgeagent.engine.fast import library
from edgeagent.status import duration, flash, size, table
from edgeagent.surroundings import has_capability
from edgeagent.version import BUILD_TIME_S, VERSION

if TYPE_CHECKING:
    from edgeagent.config import Settings

OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
AGENT_KIB = 32 << 10  # 24 MiB that an agent takes, and some room
FREE_BYTES_MIN = 4 << 20  # of the disk: all state files, twice
CONNTRACK_FULL_PERCENT = 90
FLASH_WRITES_A_DAY = 20  # where the board asks for no less
_AS_ROOT = "Run it as root: sudo edgeagent doctor."


class Finding(NamedTuple):
    """One row. `found` is what there is; `meaning` is what depends on it; `todo` is empty where all is well."""

    check: str
    state: str
    found: str
    meaning: str
    todo: str = ""


def doctor(settings: Settings, *, as_json: bool) -> bool:
    """Look at everything and print it; True when nothing failed. Neither root nor a running agent is needed: what could
    not be looked at is said."""
    findings = [finding for check in CHECKS for finding in check(settings)]
    well = not any(finding.state == FAILED for finding in findings)
    if as_json:
        print(json.dumps({"ok": well, "checks": [finding._asdict() for finding in findings]}))
    else:
        print(show(findings))
    return well


def show(findings: list[Finding]) -> str:
    rows: list[tuple[str, ...]] = [("CHECK", "STATE", "FOUND")]
    rows += [(finding.check, finding.state, finding.found) for finding in findings]
    parts = [table(rows)]
    for finding in findings:
        if finding.state != OK:
            parts.append(f"{finding.check}: {finding.meaning}\n  {finding.todo}".rstrip())
    counts = [(state, sum(finding.state == state for finding in findings)) for state in (FAILED, WARNING, NOT_CHECKED)]
    parts.append(", ".join(f"{count} {state}" for state, count in counts if count) or "all well")
    return "\n\n".join(parts)


# What moves packets


def check_engine(settings: Settings) -> Iterator[Finding]:
    from edgeagent.doctor_engine import engine_rows

    yield from (Finding(*row) for row in engine_rows(settings))


def check_library(_settings: Settings) -> Iterator[Finding]:
    from edgeagent.engine.fast.build import BuildError, try_out

    meaning = "Without it Python moves the packets: everything works, more slowly and with more processor time."
    rebuild = f"Build it here: {sys.executable} -m edgeagent.engine.fast.build (Debian: apt-get install gcc libc6-dev)."
    if zipped.archive() is not None:  # without the C sources
        rebuild = "Install the package, or take the zipapp, that was built for this machine."
    name = "C library"
    path = library.path()
    if path is None:
        yield Finding(name, WARNING, f"none: {library.why_missing()}", meaning,
                      f"{rebuild} Or install a package of edgemesh that was built for this machine.")  # fmt: skip
        return
    again = f"Remove it, or put one for this machine in its place. {rebuild}"
    if (wrong := library.fault(path)) is not None:
        yield Finding(name, FAILED, f"{path}: {wrong}", meaning, again)
        return
    try:
        version = try_out(path)
    except BuildError as error:
        if "ctypes" in str(error):
            again = "This Python is without ctypes (OpenWrt: opkg install python3-ctypes)."
        yield Finding(name, FAILED, f"{path}: {error}", meaning, again)
        return
    if version != VERSION:
        yield Finding(name, FAILED, f"{path}: version {version}, and the agent is {VERSION}", meaning, again)
        return
    yield Finding(name, OK, f"version {version}, its self-test passes: {path}", meaning)


def check_crypto(_settings: Settings) -> Iterator[Finding]:
    from edgeagent import crypto

    meaning = "Nothing can be sealed or opened without one that passes its known-answer test."
    try:
        found = crypto.load().name
    except crypto.CryptoUnavailable as error:
        yield Finding("crypto", FAILED, str(error), meaning, "Do what it says there.")
        return
    if found == "pure":
        yield Finding("crypto", WARNING, "pure, its known-answer test passes",
                      "This provider is 50 times slower than libsodium and not in constant time.",
                      f"Install PyNaCl or libsodium and unset {crypto.PROVIDER_VARIABLE}.")  # fmt: skip
    else:
        yield Finding("crypto", OK, f"{found}, its known-answer test passes", meaning)


# What the kernel gives


def check_tun(_settings: Settings) -> Iterator[Finding]:
    meaning = "The mesh is a TUN interface: without one this device can join no network."
    load = (
        "Load the kernel module: modprobe tun (OpenWrt: opkg install kmod-tun; a container: --device /dev/net/tun "
        "--cap-add NET_ADMIN)."
    )
    offload_meaning = "The kernel hands over up to 64 KiB at once instead of one packet."
    allowed = has_capability(probes.CAP_NET_ADMIN)
    yield _rights(allowed)
    if not os.path.exists(probes.TUN_DEVICE):
        yield Finding("TUN", FAILED, f"no {probes.TUN_DEVICE}", meaning, load)
        return
    trial = probes.try_tun()
    if not trial.interface:
        if allowed:
            yield Finding("TUN", FAILED, f"no interface can be made: {trial.error}", meaning, load)
        else:
            yield Finding("TUN", NOT_CHECKED, f"{probes.TUN_DEVICE} is there; making an interface: {trial.error}",
                          meaning, _AS_ROOT)  # fmt: skip
        yield Finding("TUN offload", NOT_CHECKED, "needs an interface", offload_meaning, _AS_ROOT)
        return
    yield Finding("TUN", OK, "an interface can be made", meaning)
    if trial.tcp_offload and trial.udp_offload:
        yield Finding("TUN offload", OK, "TCP and UDP segments (TSO, USO)", offload_meaning)
    else:
        found = "TCP segments (TSO), no UDP segments (USO)" if trial.tcp_offload else "none"
        yield Finding("TUN offload", WARNING, found, "Packets pass one at a time where it is missing: more slowly.",
                      "TSO for TCP needs Linux 2.6.27, USO for UDP needs Linux 6.2.")  # fmt: skip


def _rights(allowed: bool | None) -> Finding:
    meaning = "Making the interface and giving it addresses and routes needs CAP_NET_ADMIN."
    if allowed:
        return Finding("rights", OK, "CAP_NET_ADMIN", meaning)
    if allowed is None or os.geteuid() != 0:
        found = f"no CAP_NET_ADMIN; this is uid {os.geteuid()}"
        return Finding("rights", NOT_CHECKED, found, f"{meaning} The agent may have it where this command has not.",
                       _AS_ROOT)  # fmt: skip
    return Finding("rights", FAILED, "root without CAP_NET_ADMIN", meaning,
                   "Give it to the container: --cap-add NET_ADMIN.")  # fmt: skip


def check_udp(_settings: Settings) -> Iterator[Finding]:
    meaning = "Many datagrams pass with one system call."
    try:
        segment, gro = probes.try_udp_offloads()
    except OSError as error:
        yield Finding("UDP offload", NOT_CHECKED, f"the loopback cannot be used: {error.strerror or error}", meaning,
                      "Bring it up: ip link set lo up.")  # fmt: skip
        return
    found = [name for name, works in (("UDP_SEGMENT", segment), ("UDP_GRO", gro)) if works]
    if segment and gro:
        yield Finding("UDP offload", OK, ", ".join(found), meaning)
    else:
        yield Finding("UDP offload", WARNING, ", ".join(found) or "none",
                      "Each datagram takes a system call of its own: more slowly.",
                      "UDP_SEGMENT needs Linux 4.18, UDP_GRO Linux 5.0.")  # fmt: skip


def check_filters(_settings: Settings) -> Iterator[Finding]:
    from edgeagent.uplinks import filters_strictly

    names = probes.default_route_interfaces()
    strict = [name for name in names if filters_strictly(name)]
    meaning = "With several uplinks, a strict filter by reverse path drops what comes in by another than the best."
    if len(names) > 1 and strict:
        settings = ", ".join(f"net.ipv4.conf.{name}.rp_filter" for name in strict)
        yield Finding("reverse path", WARNING, f"strict on {', '.join(strict)}", meaning, f"Set {settings} to 2.")
    else:
        found = f"{len(names)} uplink{'' if len(names) == 1 else 's'} with an IPv4 default route"
        yield Finding("reverse path", OK, found + (", strict" if strict else ""), meaning)
    count = probes.read_number("/proc/sys/net/netfilter/nf_conntrack_count")
    most = probes.read_number("/proc/sys/net/netfilter/nf_conntrack_max")
    if count is None or not most:
        return
    full = count * 100 >= most * CONNTRACK_FULL_PERCENT
    yield Finding("conntrack", WARNING if full else OK, f"{count} of {most} connections",
                  "Where the table is full the kernel drops what is new, handshakes among it.",
                  "Raise net.netfilter.nf_conntrack_max." if full else "")  # fmt: skip


# What the device has


def check_clock(_settings: Settings) -> Iterator[Finding]:
    behind = BUILD_TIME_S - time.time()
    meaning = "The agent goes by the hub's time and needs no clock; log lines and other programs do."
    if behind > 0:
        yield Finding("clock", WARNING, f"{duration(behind)} before this release was made", meaning,
                      "Set it, or run an NTP client.")  # fmt: skip
    else:
        yield Finding("clock", OK, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), meaning)


def check_random(_settings: Settings) -> Iterator[Finding]:
    meaning = "Keys are made of the kernel's random numbers; an agent waits until there are some."
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        yield Finding("random", WARNING, "not ready yet", meaning, "Load the driver of the board's generator (ls "
                      "/sys/class/misc/hw_random); elsewhere jitterentropy, or urngd on OpenWrt.")  # fmt: skip
    else:
        yield Finding("random", OK, "ready", meaning)


def check_board(settings: Settings) -> Iterator[Finding]:
    from edgeagent.board import find

    board = find(settings.state_dir)
    meaning = "Its slice has defaults for this board's memory; without one those for any board hold."
    found = f"{settings.board or board.id or 'unknown'}, by {'the setting board' if settings.board else board.by}"
    if board.problem:
        yield Finding("board", WARNING, board.problem, meaning,
                      "Make it anew: edgeflash boards show ID --slice > board.json; or remove it.")  # fmt: skip
    else:
        yield Finding("board", OK, found, meaning)


def check_translator(settings: Settings) -> Iterator[Finding]:
    """Of those alone that offer IPv4 prefixes under IPv6; a state folder that is not ours to read is check_state's."""
    path = os.path.join(settings.state_dir, "routes")
    if not os.access(path, os.R_OK):
        return
    from edgeagent.io.forwarding import find_program
    from edgeagent.io.keystore import Keystore, StateError, StateFile
    from edgeagent.proto.refusals import ControlError
    from edgeagent.proto.routewish import RouteWish

    try:
        data = Keystore(settings.state_dir).load(StateFile.ROUTES)
        wish = RouteWish() if data is None else RouteWish.decode(data)
    except (StateError, ControlError):
        return
    if not wish.translated:
        return
    program = find_program("tayga")
    meaning = "Hosts of a site get to IPv6 addresses of the network by a translator (docs/routes.md)."
    if program is None:
        yield Finding("4via6", FAILED, "tayga is not installed", f"{meaning} Without it their prefix is not offered.",
                      "Install the package tayga; its own service is not needed.")  # fmt: skip
    else:
        yield Finding("4via6", OK, program, meaning)


def check_slots(settings: Settings) -> Iterator[Finding]:
    from edgeagent.doctor_slots import image_rows, slot_rows, watchdog_rows

    for row in (*slot_rows(settings), *watchdog_rows(settings), *image_rows()):
        yield Finding(*row)


def check_state(settings: Settings) -> Iterator[Finding]:
    folder, name = settings.state_dir, "state folder"
    meaning = "Keys and what was learned are kept there; without it the agent does not start."
    try:
        about = os.stat(folder)
    except FileNotFoundError:
        yield _missing_state(folder, meaning)
        return
    except OSError as error:
        state = NOT_CHECKED if os.geteuid() else FAILED
        yield Finding(name, state, f"{folder}: {error.strerror}", meaning, _AS_ROOT if os.geteuid() else "Look at it.")
        return
    disk = os.statvfs(folder)
    mode = stat.S_IMODE(about.st_mode)
    if not stat.S_ISDIR(about.st_mode):
        yield Finding(name, FAILED, f"{folder}: it is no folder", meaning, "Move it away, or set state-dir.")
    elif about.st_uid != os.geteuid() and os.geteuid() != 0:
        yield Finding(name, NOT_CHECKED, f"{folder}: belongs to uid {about.st_uid}", meaning, _AS_ROOT)
    elif about.st_uid != os.geteuid():
        yield Finding(name, FAILED, f"{folder}: belongs to uid {about.st_uid}", meaning, f"chown -R root {folder}")
    elif disk.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK):
        yield Finding(name, FAILED, f"{folder}: not writable", meaning, "Mount it for writing, or set state-dir.")
    elif disk.f_bavail * disk.f_frsize < FREE_BYTES_MIN:
        yield Finding(name, FAILED, f"{folder}: {size(disk.f_bavail * disk.f_frsize)} left on its disk", meaning,
                      f"Make room: {size(FREE_BYTES_MIN)} at least.")  # fmt: skip
    elif mode & 0o077:
        yield Finding(name, WARNING, f"{folder}: mode {mode:04o}", "Others than its owner may look for keys there.",
                      f"chmod 700 {folder}; the agent does it when it starts.")  # fmt: skip
    else:
        yield Finding(name, OK, f"{folder}, mode {mode:04o}, {size(disk.f_bavail * disk.f_frsize)} left", meaning)
    if about.st_uid == os.geteuid() and stat.S_ISDIR(about.st_mode):
        yield from _state_files(folder)


def _missing_state(folder: str, meaning: str) -> Finding:
    above = os.path.dirname(folder)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    if os.statvfs(above).f_flag & os.ST_RDONLY:
        return Finding("state folder", FAILED, f"{folder}: not there, and {above} cannot be written to", meaning,
                       "Mount it for writing, or set state-dir.")  # fmt: skip
    if not os.access(above, os.W_OK):
        return Finding("state folder", NOT_CHECKED, f"{folder}: not there; {above} is not ours to write to", meaning,
                       _AS_ROOT)  # fmt: skip
    return Finding("state folder", OK, f"{folder}: not there yet, made by edgeagent up", meaning)


def _state_files(folder: str) -> Iterator[Finding]:
    from edgeagent.io.keystore import Keystore, StateError, StateFile

    keystore = Keystore(folder)
    for file in StateFile:
        try:
            keystore.load(file)
        except StateError as error:
            vital = file in (StateFile.IDENTITY, StateFile.ADMISSION)
            if vital:
                yield Finding("state file", FAILED, str(error), "The agent does not start with it.",
                              "What to do is in docs/agent.md under Recovery.")  # fmt: skip
            else:
                yield Finding("state file", WARNING, str(error), "The agent goes on without what was in it.",
                              "Nothing: it is written anew.")  # fmt: skip
    crash = os.path.join(folder, "crash")
    if os.path.exists(crash):
        yield Finding("last run", WARNING, f"it died: {crash}", "The last background agent ended by an error.",
                      "That file says where. It is written over by the next crash.")  # fmt: skip


def check_memory(_settings: Settings) -> Iterator[Finding]:
    meaning = f"An agent takes 24 MiB whatever the fleet's size; {AGENT_KIB >> 10} MiB leave it room."
    memory = probes.memory_kib()
    if memory is None:
        yield Finding("memory", NOT_CHECKED, "/proc/meminfo cannot be read", meaning, "Mount /proc.")
        return
    total, available = memory
    limit = probes.memory_limit_kib()
    found = f"{size(available * 1024)} of {size(total * 1024)} to be had"
    if limit is not None and limit < total:
        found += f", limit of the control group {size(limit * 1024)}"
    if limit is not None and limit < AGENT_KIB:
        yield Finding("memory", FAILED, found, meaning, "Raise the control group's limit, here of this command's.")
    elif available < AGENT_KIB:
        yield Finding("memory", WARNING, found, f"{meaning} A running agent has what it needs already.",
                      "Stop something, or add zram.")  # fmt: skip
    else:
        yield Finding("memory", OK, found, meaning)


def check_agent(settings: Settings) -> Iterator[Finding]:
    from edgeagent.io.localclient import LocalError, connect

    meaning = "What else it knows: edgeagent status."
    try:
        client = connect(settings.socket, 5.0)
        if client is None:
            yield Finding("agent", OK, "not running", meaning)
            return
        version = client.ask({"do": "version"})["version"]
        again = connect(settings.socket, 5.0) if version == VERSION else None  # one connection, one question
        told = {} if again is None else again.ask({"do": "status"})
        agent, engine = told.get("agent"), told.get("engine")
    except PermissionError:
        yield Finding("agent", NOT_CHECKED, f"{settings.socket}: not permitted", meaning, _AS_ROOT)
    except (OSError, LocalError, KeyError, TypeError) as error:
        yield Finding("agent", FAILED, f"{settings.socket}: {error}", "An agent listens and does not answer.",
                      "edgeagent down, then edgeagent up; its log says more: edgeagent status --log.")  # fmt: skip
    else:
        from edgeagent.doctor_slots import slot_version

        if version in (VERSION, slot_version(settings)):
            yield Finding("agent", OK, f"running, version {version}", meaning)
        else:
            yield Finding("agent", WARNING, f"running, version {version}; installed is {VERSION}",
                          "The running agent is of another release than what is installed.",
                          "Start it anew: edgeagent down, then edgeagent up.")  # fmt: skip
        if engine is not None:
            yield Finding("engine in use", OK, f"{engine['name']}: {engine['why']}", meaning)
        if agent is not None:
            yield _wear(settings, agent)


def _wear(settings: Settings, agent: dict[str, Any]) -> Finding:
    from edgeagent.board import find

    told = find(settings.state_dir).told.get("flash")
    budget = told.get("writes_a_day") if isinstance(told, dict) else None
    budget = budget if type(budget) is int else FLASH_WRITES_A_DAY
    meaning = f"An idle agent writes {budget} times a day at most; joining, commands and routes come on top."
    found = flash(agent["flash"])
    if agent["flash"]["day"]["writes"] > 2 * budget:
        return Finding("flash", WARNING, found, meaning, "edgeagent status --log says what changes so often.")
    return Finding("flash", OK, found, meaning)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_engine,
    check_library,
    check_crypto,
    check_tun,
    check_udp,
    check_filters,
    check_clock,
    check_random,
    check_board,
    check_slots,
    check_state,
    check_translator,
    check_memory,
    check_agent,
)
