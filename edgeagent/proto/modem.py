"""What is known of a modem: what it said last, how many bars that is, what it costs, and bytes that outlive it.

Signal by technology, as 3GPP TS 36.133 and 38.133 (RSRP, RSRQ, SINR) and 27.007 (RSSI) have it. Bars are our own: they
are for people, and for the words "weak signal" that the hub looks for.
"""

from __future__ import annotations

from typing import Any

BARS = 4
_RSRP_DBM = (-115, -105, -95, -85)  # from here on 1, 2, 3, 4 bars: LTE and NR
_RSSI_DBM = (-100, -90, -80, -70)  # GSM, UMTS
HYSTERESIS_DB = 3  # by which a threshold must be passed before there are more bars or fewer
WEAK_BARS = 1
STALE_S = 900.0  # what was said so long ago is not shown as now
ROAMING_ENDS_S = 600.0  # at a border a modem changes its mind: what costs more begins at once, and ends so late
# An interface that takes trains of segments counts 52 bytes of headers once for a train; and what waited in the buffers
# of sockets at the first look, when a busy device joins, was counted before it is booked.
LEDGER_SLACK, LEDGER_SLACK_BYTES = 1.05, 16_384
GONE_AFTER = 2  # polls without an answer
TEXT_BYTES_MAX = 48  # of a name that a modem or a network gave
TIME_SLACK_S = 86_400 * 365 * 15  # a modem without network time says 1980, 2070 or 2080

HOME, ROAMING, SEARCHING, DENIED, OFF = "home", "roaming", "searching", "denied", "off"
REGISTERED = (HOME, ROAMING)
# What one poll may say, and between which bounds it is believed
_RANGES = {"rsrp": (-160, -20), "rsrq": (-45, 20), "sinr": (-30, 45), "rssi": (-125, -20)}


class Reading:
    """What a modem said in one poll; None is what it did not say. dBm for `rsrp` and `rssi`, dB for `rsrq` and `sinr`.
    `registration` is one of HOME … OFF. `network_s` is its clock, seconds since 1970: a hint, which nobody signed."""

    __slots__ = (
        "apn", "band", "model", "network_s", "operator", "registration", "rsrp", "rsrq", "rssi", "sim", "sinr",
        "technology",
    )  # fmt: skip

    def __init__(self) -> None:
        self.technology: str | None = None  # GSM, UMTS, LTE, LTE-M, NB-IoT, NR, LTE+NR
        self.band: str | None = None  # B3, n78
        self.rsrp: int | None = None
        self.rsrq: int | None = None
        self.sinr: int | None = None
        self.rssi: int | None = None
        self.registration: str | None = None
        self.operator: str | None = None
        self.apn: str | None = None
        self.sim: str | None = None  # READY, or what it waits for
        self.model: str | None = None
        self.network_s: int | None = None

    def set_signal(self, **values: float | None) -> None:
        """What lies outside all that a modem can measure is dropped: it stands for "unknown" in some dialect."""
        for name, value in values.items():
            low, high = _RANGES[name]
            if value is not None and low <= value <= high:
                setattr(self, name, round(value))

    def set_text(self, **values: object) -> None:
        """Printable, short, and not what stands for nothing."""
        for name, value in values.items():
            text = "".join(char for char in str(value or "") if char.isprintable()).strip()
            text = text.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
            if text and text not in ("-", "--", "unknown"):
                setattr(self, name, text)


class Total:
    """A counter that goes on where the one that it follows begins anew, as when a modem re-enumerates."""

    __slots__ = ("_last", "bytes", "resets")

    def __init__(self) -> None:
        self._last: int | None = None
        self.bytes = 0
        self.resets = 0  # what was counted between the last look and each of them is missing

    def follow(self, counter: int) -> None:
        if self._last is not None and counter >= self._last:
            self.bytes += counter - self._last
        elif self._last is not None:
            self.bytes += counter
            self.resets += 1
        self._last = counter


class Modem:
    """Drive it: `take` each reading, `fail` where there was none, `count` what its interface counted."""

    __slots__ = (
        "_roamed_at", "answered_at", "bars", "driver", "failures", "own_received", "own_sent", "port", "reading",
        "received", "sent", "uplink", "why",
    )  # fmt: skip

    def __init__(self, driver: str, port: str, uplink: str) -> None:
        self.driver = driver
        self.port = port
        self.uplink = uplink  # the network interface, "" while that is not known
        self.reading = Reading()
        self.answered_at: float | None = None
        self.bars: int | None = None  # 0 to BARS
        self.failures = 0  # in a row
        self.why = ""  # the last one
        self.received, self.sent = Total(), Total()  # by all programs
        self.own_received, self.own_sent = Total(), Total()  # by the agent, as its ledger has it
        self._roamed_at: float | None = None

    def take(self, now: float, reading: Reading) -> None:
        self.reading = reading
        self.answered_at = now
        self.failures, self.why = 0, ""
        self.bars = bars(reading, self.bars)
        if reading.registration == ROAMING:
            self._roamed_at = now

    def fail(self, why: str) -> None:
        self.failures += 1
        self.why = why[:120]

    def count(self, received: int, sent: int, own_received: int, own_sent: int) -> None:
        """What its interface counted, and what the agent booked to it; of all of them what comes from now on counts."""
        for total, counter in ((self.received, received), (self.sent, sent)):
            total.follow(counter)
        self.own_received.follow(own_received)
        self.own_sent.follow(own_sent)

    @property
    def agrees(self) -> bool | None:
        """Whether what the agent booked is within what its interface counted, as it has to be; None where that is not
        known, because the counters began anew."""
        if self.received.resets or self.sent.resets:
            return None
        pairs = ((self.own_received, self.received), (self.own_sent, self.sent))
        return all(own.bytes <= all_of_it.bytes * LEDGER_SLACK + LEDGER_SLACK_BYTES for own, all_of_it in pairs)

    def is_roaming(self, now: float) -> bool:
        """For what it costs: also for a while after it last did."""
        return self._roamed_at is not None and now - self._roamed_at < ROAMING_ENDS_S

    def is_fresh(self, now: float) -> bool:
        return self.answered_at is not None and now - self.answered_at < STALE_S

    @property
    def is_weak(self) -> bool:
        return self.bars is not None and self.bars <= WEAK_BARS

    @property
    def signal_dbm(self) -> int | None:
        return self.reading.rsrp if self.reading.rsrp is not None else self.reading.rssi

    def row(self, now: float) -> dict[str, Any]:
        """For people and programs on this device."""
        reading = self.reading
        return {
            "uplink": self.uplink,
            "driver": self.driver,
            "port": self.port,
            "model": reading.model,
            "technology": reading.technology,
            "band": reading.band,
            "registration": reading.registration,
            "roaming": reading.registration == ROAMING,
            "operator": reading.operator,
            "apn": reading.apn,
            "sim": reading.sim,
            "bars": self.bars,
            "rsrp_dbm": reading.rsrp,
            "rsrq_db": reading.rsrq,
            "sinr_db": reading.sinr,
            "rssi_dbm": reading.rssi,
            "network_time": reading.network_s,
            "received": self.received.bytes,
            "sent": self.sent.bytes,
            "agent_received": self.own_received.bytes,
            "agent_sent": self.own_sent.bytes,
            "ledger_agrees": self.agrees,
            "age_s": None if self.answered_at is None else round(now - self.answered_at),
            "fresh": self.is_fresh(now),
            "failures": self.failures,
            "why": self.why,
        }

    def sentence(self) -> str:
        """For the hub, which keeps it among the facts of the device: at most 128 bytes."""
        reading = self.reading
        where = " ".join(filter(None, (reading.technology, reading.band)))
        signal = "" if self.signal_dbm is None else f"{self.signal_dbm} dBm{', weak signal' if self.is_weak else ''}"
        parts = (where, signal, reading.registration, reading.operator)
        said = "no answer" if self.failures >= GONE_AFTER else ", ".join(filter(None, parts)) or "says nothing"
        text = f"{self.uplink or self.port}: {said}"
        return text.encode()[:128].decode("utf-8", "ignore")


def bars(reading: Reading, before: int | None) -> int | None:
    """By RSRP, else by RSSI; None where neither is known, or there is no network. `before` is what this said last."""
    if reading.registration in (DENIED, OFF) or (reading.registration == SEARCHING and reading.rsrp is None):
        return None
    value, steps = reading.rsrp, _RSRP_DBM
    if value is None:
        value, steps = reading.rssi, _RSSI_DBM
    if value is None:
        return None
    found = sum(value >= step for step in steps)
    if before is not None and found > before:
        found = max(before, sum(value >= step + HYSTERESIS_DB for step in steps))
    elif before is not None and found < before:
        found = min(before, sum(value >= step - HYSTERESIS_DB for step in steps))
    return found


def is_likely(network_s: float, floor_s: float) -> bool:
    """Whether a modem's clock may be right: not before what is certain, and not so late that it was never set."""
    return floor_s < network_s < floor_s + TIME_SLACK_S
