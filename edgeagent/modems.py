"""The modems of this device: which driver asks each, how often, and what follows for the price of its uplink.

Loaded where there may be one. Nothing here waits: drivers are driven from the agent's loop, and what they meet (ports
that go away, programs that hang, bytes that mean nothing) costs a poll and a longer pause before the next.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from glob import glob
from typing import TYPE_CHECKING, Any, Protocol

from edgeagent.proto.modem import GONE_AFTER, Modem, is_likely

if TYPE_CHECKING:
    from selectors import BaseSelector

    from edgeagent.context import Context
    from edgeagent.proto.modem import Reading

log = logging.getLogger("edgeagent")
MODEMS_MAX = 4
DRIVERS_MAX = 4
WATCHED_S = 60.0  # between two polls while somebody looks, never less
POLL_S = 300.0  # else
WATCHED_FOR_S = 90.0  # after the last look
RETRY_MAX_S = 3_600.0  # doubled from POLL_S with each poll that got nothing
DIRECTORIES = ("/usr/bin", "/usr/sbin", "/bin", "/sbin")  # of programs, after those of PATH
LOOK_AFTER_S = 5.0  # after an interface came or went: the ports of a modem come one by one
FORGET_S = 86_400.0  # a modem that was not seen for so long


class Driver(Protocol):
    """One way to ask modems. `found` after a poll: (port, network interface or "", reading)."""

    name: str
    found: list[tuple[str, str, Reading]]
    why: str
    done: bool
    dropped: int

    def begin(self, now: float) -> None: ...
    def poll_timeout(self) -> float | None: ...
    def on_timeout(self, now: float) -> None: ...
    def close(self) -> None: ...


class _Asked:
    """A driver, and when it is asked next."""

    __slots__ = ("driver", "failures", "is_busy", "key", "next_at", "polled_at")

    def __init__(self, now: float, key: str, driver: Driver) -> None:
        self.key = key
        self.driver = driver
        self.failures = 0
        self.is_busy = False  # a poll was begun, and what came of it not yet taken
        self.polled_at = float("-inf")
        self.next_at = now


class Modems:
    """Drive it: `on_timeout` in each turn of the loop, and at `poll_timeout()`; `look` when interfaces have changed.

    `news` becomes True with what the hub is to be told of, and `price_changed` when an uplink became a modem's, or
    began or ceased to roam; their owner resets them.
    """

    def __init__(self, now: float, context: Context) -> None:
        self.all: dict[str, Modem] = {}  # by port
        self.news = self.price_changed = False
        self._context = context
        self._asked: list[_Asked] = []
        self._watched_at = float("-inf")
        self._prices: dict[str, bool] = {}  # whether it roams, by uplink
        self._look_at: float | None = None
        self._look(now)

    def look(self, now: float) -> None:
        """Soon, which drivers there are now."""
        if self._look_at is None:
            self._look_at = now + LOOK_AFTER_S

    def _look(self, now: float) -> None:
        self._look_at = None
        wanted = choose(self._context.settings.modem, board_modems(self._context.keystore.directory))
        for asked in [asked for asked in self._asked if asked.key not in wanted]:
            asked.driver.close()
            self._asked.remove(asked)
        for key in wanted[:DRIVERS_MAX]:
            known = next((asked for asked in self._asked if asked.key == key), None)
            if known is None:
                self._asked.append(_Asked(now, key, make(self._context.selector, key)))
            elif known.failures:  # what it waits for may have come back just now
                known.next_at = min(known.next_at, max(now, known.polled_at + WATCHED_S))

    def watched(self, now: float) -> None:
        """Somebody looks at this device."""
        self._watched_at = now
        for asked in self._asked:
            if not asked.failures:
                asked.next_at = min(asked.next_at, max(now, asked.polled_at + WATCHED_S))

    def poll_timeout(self) -> float | None:
        times = [asked.driver.poll_timeout() if asked.is_busy else asked.next_at for asked in self._asked]
        times.append(self._look_at)
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        if self._look_at is not None and self._look_at <= now:
            self._look(now)
        for asked in self._asked:
            driver = asked.driver
            if asked.is_busy:
                if not driver.done:
                    driver.on_timeout(now)
            elif asked.next_at <= now:
                asked.is_busy, asked.polled_at = True, now
                driver.begin(now)
            if asked.is_busy and driver.done:  # mostly by what came in, before this was called
                asked.is_busy = False
                self._took(now, asked)

    def close(self) -> None:
        for asked in self._asked:
            asked.driver.close()
        self._asked.clear()

    def of_uplink(self, uplink: str, now: float) -> Modem | None:
        """What is known of it now."""
        return next((modem for modem in self.all.values() if modem.uplink == uplink and modem.is_fresh(now)), None)

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For `edgeagent modem`."""
        for modem in self.all.values():
            self._count(now, modem)
        return [modem.row(now) for modem in self.all.values()]

    def describe(self, now: float) -> dict[str, Any]:
        return {
            "drivers": [
                {
                    "driver": asked.driver.name,
                    "asks": asked.key,
                    "failures": asked.failures,
                    "why": asked.driver.why if asked.failures else "",
                    "dropped": asked.driver.dropped,
                    "next_s": max(0, round(asked.next_at - now)),
                }
                for asked in self._asked
            ],
            "modems": self.rows(now),
        }

    def facts(self) -> dict[str, str]:
        """For the hub, which shows them beside the other facts of a device: one text of at most 128 bytes a modem."""
        found = list(self.all.values())
        return {"modem" if not at else f"modem_{at + 1}": modem.sentence() for at, modem in enumerate(found[:2])}

    def _took(self, now: float, asked: _Asked) -> None:
        driver = asked.driver
        asked.failures = 0 if driver.found else asked.failures + 1
        watched = now - self._watched_at < WATCHED_FOR_S
        wait_s = WATCHED_S if watched and driver.found else POLL_S
        asked.next_at = now + min(wait_s * (1 << min(asked.failures, 6)), RETRY_MAX_S)
        for port, uplink, reading in driver.found:
            self._take(now, driver.name, port, uplink, reading)
        if asked.failures:
            if asked.failures == 1 and driver.why:
                log.warning("modem: %s", driver.why)
            for modem in self.all.values():
                if modem.driver == driver.name and (modem.port == asked.key or asked.key == "mmcli"):
                    modem.fail(driver.why)
                    self.news |= modem.failures == GONE_AFTER
        for port in [port for port, modem in self.all.items() if now - (modem.answered_at or now) > FORGET_S]:
            del self.all[port]
        self._follow_prices(now)

    def _take(self, now: float, driver: str, port: str, uplink: str, reading: Reading) -> None:
        modem = self.all.get(port)
        if modem is None:
            if len(self.all) >= MODEMS_MAX:
                return
            modem = self.all[port] = Modem(driver, port, uplink)
            log.info("modem: %s by %s%s", port, driver, f", uplink {uplink}" if uplink else "")
            self.news = True
        before, was_weak = modem.reading, modem.is_weak
        modem.uplink = uplink or modem.uplink
        modem.take(now, reading)
        names = ("technology", "registration", "operator")
        self.news |= was_weak is not modem.is_weak or any(getattr(before, n) != getattr(reading, n) for n in names)
        self._count(now, modem)
        wall = self._context.wall
        if reading.network_s is not None and not wall.known and is_likely(reading.network_s, wall.at(now)):
            wall.hint(now, reading.network_s)

    def _count(self, now: float, modem: Modem) -> None:
        # Before the interface is asked: what is booked later than it was counted would look like more than there was
        self._context.accounts.look_at_connections(now)
        counted = counters(modem.uplink)
        if counted is None:
            return
        lines = [line.since_start for line in self._context.accounts.ledger.lines(now) if line.uplink == modem.uplink]
        agreed = modem.agrees
        modem.count(*counted, sum(received for _, received in lines), sum(sent for sent, _ in lines))
        if modem.agrees is False and agreed:
            log.warning("%s: the ledger has more than the interface counted", modem.uplink)

    def _follow_prices(self, now: float) -> None:
        prices = {modem.uplink: modem.is_roaming(now) for modem in self.all.values() if modem.uplink}
        if prices != self._prices:
            self._prices = prices
            self._context.accounts.set_modems(now, prices)
            self.price_changed = True


def counters(interface: str) -> tuple[int, int] | None:
    """Bytes received and sent, as the kernel counts them (proc(5), net/dev); None for one that is not there."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/net/dev", "rb") as file:
        for line in file.read(65_536).split(b"\n"):
            name, colon, numbers = line.partition(b":")
            if colon and name.strip() == interface.encode():
                fields = numbers.split()
                return int(fields[0]), int(fields[8])
    return None


def choose(setting: str, board: list[dict[str, Any]], devices: str = "/dev/cdc-wdm*") -> list[str]:
    """What is asked: "mmcli", or paths of devices with "=interface" where that was said. ModemManager owns all ports
    where it runs, so then nothing else is touched that nobody named."""
    if setting == "off":
        return []
    if setting != "auto":
        return setting.split(",")
    if find_program("mmcli") and is_running("ModemManager"):
        return ["mmcli"]
    found = []
    for each in board:
        port, control = each.get("port"), each.get("control")
        if each.get("driver") == "at" and _is_device(port):
            found.append(str(port))
        elif each.get("driver") == "uqmi" and _is_device(control) and find_program("uqmi"):
            found.append(str(control))
        elif each.get("driver") == "uqmi" and _is_device(port):  # the program is not there, but its port for AT is
            found.append(str(port))
    if not found and find_program("uqmi"):
        found = sorted(glob(devices))
    return found[:DRIVERS_MAX]


def make(selector: BaseSelector, key: str) -> Driver:
    path, _, uplink = key.partition("=")
    if path != "mmcli" and not os.path.basename(path).startswith("cdc-wdm"):
        from edgeagent.io.modem_at import AtDriver

        return AtDriver(selector, path, uplink)
    from edgeagent.io.modem_programs import MmcliDriver, UqmiDriver  # 0.3 MiB, JSON among it

    if path == "mmcli":
        return MmcliDriver(selector, find_program("mmcli") or "/usr/bin/mmcli")
    return UqmiDriver(selector, find_program("uqmi") or "/sbin/uqmi", path, uplink)


def find_program(name: str) -> str:
    """Its path; "" where it is not installed."""
    for directory in (*os.environ.get("PATH", "").split(":"), *DIRECTORIES):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK):
            return path
    return ""


def is_running(name: str, root: str = "/proc") -> bool:
    """By the names of all processes."""
    for path in glob(f"{root}/[0-9]*/comm"):
        with suppress(OSError), open(path, "rb") as file:
            if file.read(16).rstrip(b"\n") == name.encode()[:15]:
                return True
    return False


def board_modems(state: str) -> list[dict[str, Any]]:
    """What the board's slice says of them; none where there is none, or it is damaged."""
    from edgeagent.board import find

    found = find(state).told.get("modems")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _is_device(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/dev/") and ".." not in path and len(path) < 100


def show(told: dict[str, Any]) -> str:
    """`edgeagent modem`."""
    from edgeagent.status import duration, size

    lines: list[str] = []
    for modem in told["modems"]:
        where = " ".join(filter(None, (modem["technology"], modem["band"]))) or "no network"
        bars = "" if modem["bars"] is None else f"{'▂▄▆█'[: modem['bars']]:·<4} "
        signal = [
            f"{label} {modem[key]} {unit}"
            for label, key, unit in (
                ("RSRP", "rsrp_dbm", "dBm"),
                ("RSRQ", "rsrq_db", "dB"),
                ("SINR", "sinr_db", "dB"),
                ("RSSI", "rssi_dbm", "dBm"),
            )
            if modem[key] is not None
        ]
        age = "never" if modem["age_s"] is None else f"{duration(modem['age_s'])} ago"
        lines += [
            f"{modem['uplink'] or modem['port']}: {modem['model'] or 'modem'} by {modem['driver']} at {modem['port']}",
            f"  network   {where}, {modem['registration'] or 'state unknown'}, {modem['operator'] or 'no operator'}",
            f"  signal    {bars}{', '.join(signal) or 'unknown'}",
            f"  APN       {modem['apn'] or 'unknown'}",
            f"  bytes     {size(modem['received'])} received, {size(modem['sent'])} sent since it was found, "
            f"of it by the agent {size(modem['agent_received'])} and {size(modem['agent_sent'])}",
            f"  asked     {age}{', ' + modem['why'] if modem['why'] else ''}",
        ]
    for driver in told["drivers"]:
        if driver["failures"]:
            why = driver["why"] or "no modem"
            lines.append(f"{driver['driver']} ({driver['asks']}): {why}. Asked again in {duration(driver['next_s'])}.")
    return "\n".join(lines) or (
        "No modem is known. ModemManager is asked where it runs, uqmi where there is a /dev/cdc-wdm*; an AT port has\n"
        "to be named: --modem /dev/ttyUSB2 (docs/cellular.md)."
    )
