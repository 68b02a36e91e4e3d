"""What `mmcli -J` (ModemManager) and `uqmi` (OpenWrt) say of a modem, as readings. Whatever JSON they write: what is
not of the expected shape is as if it had not been said."""

from __future__ import annotations

from typing import Any

from edgeagent.proto.at_dialects import technology
from edgeagent.proto.modem import DENIED, HOME, OFF, ROAMING, SEARCHING, Reading

MODEMS_MAX = 4

_MM_STATES = {
    "home": HOME, "home-sms-only": HOME, "home-csfb-not-preferred": HOME, "attached-rlos": HOME,
    "roaming": ROAMING, "roaming-sms-only": ROAMING, "roaming-csfb-not-preferred": ROAMING,
    "searching": SEARCHING, "denied": DENIED, "emergency-only": DENIED, "idle": OFF,
}  # fmt: skip
_QMI_STATES = {"not_registered": OFF, "searching": SEARCHING, "registering_denied": DENIED}
_QMI_TYPES = {"lte": "LTE", "5gnr": "NR", "wcdma": "UMTS", "gsm": "GSM", "td-scdma": "UMTS"}

# The first downlink EARFCN of each LTE band, and after the last (3GPP TS 36.101, table 5.7.3-1)
_EARFCN = (
    (0, 1), (600, 2), (1200, 3), (1950, 4), (2400, 5), (2650, 6), (2750, 7), (3450, 8), (3800, 9), (4150, 10),
    (4750, 11), (5010, 12), (5180, 13), (5280, 14), (5380, 0), (5730, 17), (5850, 18), (6000, 19), (6150, 20),
    (6450, 21), (6600, 22), (7500, 23), (7700, 24), (8040, 25), (8690, 26), (9040, 27), (9210, 28), (9660, 29),
    (9770, 30), (9870, 31), (9920, 32), (10360, 0), (36000, 33), (36200, 34), (36350, 35), (36950, 36), (37550, 37),
    (37750, 38), (38250, 39), (38650, 40), (39650, 41), (41590, 42), (43590, 43), (45590, 44), (46590, 0),
    (65536, 65), (66436, 66), (67336, 0),
)  # fmt: skip


def band_of(earfcn: float | None) -> str:
    """B3 for 1300; "" for none that is known."""
    found = 0
    for first, band in _EARFCN:
        if earfcn is not None and first <= earfcn:
            found = band
    return f"B{found}" if found else ""


# ModemManager


def modem_list(said: Any) -> list[str]:
    """Object paths, of `mmcli -L -J`."""
    found = said.get("modem-list") if isinstance(said, dict) else None
    paths = [path for path in found if _is_path(path)] if isinstance(found, list) else []
    return paths[:MODEMS_MAX]


def mm_ports(said: Any) -> tuple[str, str]:
    """The network interface, and the port that ModemManager itself uses, of `mmcli -m PATH -J`; "" for none."""
    generic = _table(said, "modem", "generic")
    ports = generic.get("ports")
    words = [port.split(" ") for port in ports if isinstance(port, str)] if isinstance(ports, list) else []
    networks = [port[0] for port in words if port[-1] == "(net)" and 0 < len(port[0]) <= 15]
    return (networks[0] if networks else ""), _word(generic.get("primary-port"))


def mm_bearer(said: Any) -> str:
    """The path of the first bearer of `mmcli -m PATH -J`; "" for none."""
    bearers = _table(said, "modem", "generic").get("bearers")
    return bearers[0] if isinstance(bearers, list) and bearers and _is_path(bearers[0]) else ""


def mm_reading(modem: Any, signal: Any, cells: Any, bearer: Any) -> Reading:
    """Of `mmcli -m PATH -J`, `--signal-get`, `--get-cell-info` and `mmcli -b BEARER -J`; None for what there is not."""
    reading = Reading()
    generic, network = _table(modem, "modem", "generic"), _table(modem, "modem", "3gpp")
    reading.set_text(
        model=f"{_word(generic.get('manufacturer'))} {_word(generic.get('model'))}",
        operator=_word(network.get("operator-name")) or _word(network.get("operator-code")),
        apn=_word(_table(bearer, "bearer", "properties").get("apn")),
        sim="READY" if generic.get("unlock-required") in ("--", "none", "sim-pin2", "sim-puk2") else "locked",
    )
    reading.registration = _MM_STATES.get(_word(network.get("registration-state")))
    spoken = generic.get("access-technologies")
    names = [technology(_word(each)) for each in spoken] if isinstance(spoken, list) else []
    reading.set_text(technology="LTE+NR" if {"LTE", "NR"} <= set(names) else next(iter(names), None))
    signals = _table(signal, "modem", "signal")
    for name in ("gsm", "umts", "5g", "lte"):  # with both LTE carries the control, so it counts
        of = _table(signals, name)
        reading.set_signal(
            rssi=_number(of.get("rssi")),
            rsrp=_number(of.get("rsrp")),
            rsrq=_number(of.get("rsrq")),
            sinr=_number(of.get("snr")),
        )
    lines = _table(cells, "modem", "generic").get("cell-info")
    for line in lines if isinstance(lines, list) else ():
        cell = dict(pair.partition(": ")[::2] for pair in line.split(", ")) if isinstance(line, str) else {}
        if cell.get("serving") == "yes" and "earfcn" in cell:
            reading.set_text(band=band_of(_number(cell["earfcn"])))
    return reading


def mm_wants_setup(signal: Any) -> bool:
    """Whether ModemManager does not yet ask the modem for its signal."""
    rate = _number(_table(signal, "modem", "signal", "refresh").get("rate"))
    return rate is not None and rate == 0


# uqmi


def qmi_reading(signal: Any, serving: Any, cell: Any, profile: Any) -> Reading:
    """Of `--get-signal-info`, `--get-serving-system`, `--get-cell-location-info` and `--get-profile-settings`."""
    reading = Reading()
    signals = signal if isinstance(signal, list) else [signal]
    kinds = []
    for of in reversed([each for each in signals if isinstance(each, dict)]):  # with both LTE is the first, and counts
        kinds.append(_QMI_TYPES.get(_word(of.get("type"))))
        reading.set_signal(
            rssi=_number(of.get("rssi", of.get("signal"))),
            rsrp=_number(of.get("rsrp")),
            rsrq=_number(of.get("rsrq")),
            sinr=_number(of.get("snr")),
        )
    reading.set_text(technology="LTE+NR" if {"LTE", "NR"} <= set(kinds) else next(iter(kinds), None))
    system = _table(serving)
    state = _word(system.get("registration"))
    if state == "registered":
        reading.registration = ROAMING if system.get("roaming") is True else HOME
        reading.set_text(operator=_word(system.get("plmn_description")) or _plmn(system))
    else:
        reading.registration = _QMI_STATES.get(state)
    earfcn = _number(_table(cell, "intrafrequency_lte_info").get("channel"))
    reading.set_text(band=band_of(earfcn), apn=_word(_table(profile).get("apn")))
    return reading


def _plmn(system: dict[str, Any]) -> str:
    mcc, mnc = system.get("plmn_mcc"), system.get("plmn_mnc")
    return f"{mcc:03d}{mnc:02d}" if isinstance(mcc, int) and isinstance(mnc, int) else ""


# JSON of others


def _table(said: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        said = said.get(key) if isinstance(said, dict) else None
    return said if isinstance(said, dict) else {}


def _word(value: Any) -> str:
    """`--` is how mmcli writes nothing."""
    return value if isinstance(value, str) and value != "--" and len(value) < 256 else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if not isinstance(value, str) or len(value) < 32 else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 1e6 else None


def _is_path(path: Any) -> bool:
    """An object path as D-Bus has it: nothing else gets into an argument list."""
    allowed = "/_"
    return (
        isinstance(path, str)
        and path.startswith("/org/freedesktop/ModemManager1/")
        and len(path) < 100
        and all((char.isascii() and char.isalnum()) or char in allowed for char in path)
    )
