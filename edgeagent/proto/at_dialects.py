"""What modems are asked by AT commands, and how their answers are read: 3GPP TS 27.007, and what makers add to it.

| dialect | asks also | of it comes |
|---|---|---|
| generic | +CPIN +CSQ +CESQ +CREG +CEREG +C5GREG +COPS +CGDCONT +CCLK | all but SINR and band |
| Quectel | +QNWINFO +QENG="servingcell" | band, RSRP, RSRQ, SINR of LTE and NR |
| SIMCom | +CPSI | band, RSRP, RSRQ, SINR |
| Huawei | ^SYSINFOEX ^HCSQ | technology, RSRP, RSRQ, SINR |
| u-blox | +UCGED | band, RSRP, RSRQ, SINR |

Nothing is set, but for u-blox's +UCGED=2, which chooses what +UCGED? says and is forgotten with its power.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.proto.at import Command, fields
from edgeagent.proto.modem import DENIED, HOME, OFF, ROAMING, SEARCHING, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    Answers = dict[str, list[str]]

GENERIC, QUECTEL, SIMCOM, HUAWEI, UBLOX = "generic", "quectel", "simcom", "huawei", "u-blox"
_MAKERS = {QUECTEL: QUECTEL, SIMCOM: SIMCOM, "simtech": SIMCOM, HUAWEI: HUAWEI, UBLOX: UBLOX}

WAKE = Command("AT")
MAKER, MODEL = Command("AT+CGMI", "+CGMI:", plain=True), Command("AT+CGMM", "+CGMM:", plain=True)
_COMMON = (
    Command("AT+CPIN?", "+CPIN:"),
    Command("AT+CSQ", "+CSQ:"),
    Command("AT+CESQ", "+CESQ:"),
    Command("AT+CREG?", "+CREG:"),
    Command("AT+CEREG?", "+CEREG:"),
    Command("AT+C5GREG?", "+C5GREG:"),
    Command("AT+COPS?", "+COPS:", timeout_s=15.0),  # the one that may go and look
    Command("AT+CGDCONT?", "+CGDCONT:"),
    Command("AT+CCLK?", "+CCLK:"),
)
_MORE = {
    GENERIC: (),
    QUECTEL: (Command("AT+QNWINFO", "+QNWINFO:"), Command('AT+QENG="servingcell"', "+QENG:")),
    SIMCOM: (Command("AT+CPSI?", "+CPSI:"),),
    HUAWEI: (Command("AT^SYSINFOEX", "^SYSINFOEX:"), Command("AT^HCSQ?", "^HCSQ:")),
    UBLOX: (Command("AT+UCGED=2"), Command("AT+UCGED?", "+UCGED:", "+RSRP:", "+RSRQ:", plain=True)),
}

_STATES = {0: OFF, 1: HOME, 2: SEARCHING, 3: DENIED, 5: ROAMING, 6: HOME, 7: ROAMING, 9: HOME, 10: ROAMING}
_ACCESS = {
    0: "GSM", 1: "GSM", 2: "UMTS", 3: "GSM", 4: "UMTS", 5: "UMTS", 6: "UMTS", 7: "LTE", 8: "GSM", 9: "NB-IoT",
    10: "LTE", 11: "NR", 12: "NR", 13: "LTE+NR",
}  # fmt: skip
_NAMES = (  # the first that is in a maker's word for a technology, in capitals
    ("NSA", "LTE+NR"), ("NR", "NR"), ("5G", "NR"), ("NB", "NB-IoT"), ("CAT-M", "LTE-M"), ("EMTC", "LTE-M"),
    ("LTE", "LTE"), ("WCDMA", "UMTS"), ("CDMA", "UMTS"), ("UMTS", "UMTS"), ("HS", "UMTS"), ("GSM", "GSM"),
    ("GPRS", "GSM"), ("EDGE", "GSM"),
)  # fmt: skip


def dialect_of(answers: Answers) -> str:
    """By what AT+CGMI said."""
    said = " ".join(answers.get(MAKER.text, ())).lower()
    return next((dialect for word, dialect in _MAKERS.items() if word in said), GENERIC)


def script(dialect: str, without: set[str]) -> list[Command]:
    """What is asked in one poll, but for the commands that this modem does not know."""
    return [WAKE] + [each for each in (*_COMMON, *_MORE[dialect]) if each.text not in without]


def read(answers: Answers) -> Reading:
    """Whatever can be made of them: what cannot be read is as if it had not been said. Never raises for any text."""
    reading = Reading()
    for command, parse in _PARSERS.items():
        lines = answers.get(command, [])
        try:
            parse(reading, lines)
        except (ValueError, IndexError, OverflowError):
            continue  # fewer fields, or others, than this dialect has
    return reading


def technology(word: str) -> str | None:
    """A maker's word in ours."""
    upper = word.upper()
    return next((name for part, name in _NAMES if part in upper), None)


# 27.007


def _sim(reading: Reading, lines: list[str]) -> None:
    reading.set_text(sim=fields(lines[0])[0])


def _csq(reading: Reading, lines: list[str]) -> None:
    """8.5: 0 … 31 is -113 … -51 dBm, 99 unknown; 100 … 191 is TD-SCDMA's RSCP."""
    value = int(fields(lines[0])[0])
    if 0 <= value <= 31:
        reading.set_signal(rssi=-113 + 2 * value)


def _cesq(reading: Reading, lines: list[str]) -> None:
    """8.69: rxlev, ber, rscp, ecno, rsrq 0 … 34, rsrp 0 … 97; 255 unknown; of NR ss_rsrq, ss_rsrp 0 … 126, ss_sinr."""
    row = [int(text) for text in fields(lines[0])]
    if row[0] <= 63:
        reading.set_signal(rssi=-111 + row[0])
    _coded(reading, row[5], row[4])
    if len(row) >= 9 and row[7] <= 126:
        reading.set_signal(rsrp=-157 + row[7], rsrq=None if row[6] > 126 else -43.5 + row[6] / 2)
        reading.set_signal(sinr=None if row[8] > 127 else -23.5 + row[8] / 2)


def _coded(reading: Reading, rsrp: int, rsrq: int) -> None:
    """36.133, 9.1.4 and 9.1.7."""
    reading.set_signal(rsrp=-141 + rsrp if 0 <= rsrp <= 97 else None, rsrq=-20 + rsrq / 2 if 0 <= rsrq <= 34 else None)


def _registered(reading: Reading, lines: list[str]) -> None:
    """`n,stat[,area,cell,AcT]`; a URC that came between has no `n`. The best of the domains is what counts."""
    for line in lines:
        row = fields(line)
        if len(row) < 2 or '"' in line.partition(":")[2].split(",")[1]:
            continue
        state = _STATES.get(int(row[1]))
        if state is not None and reading.registration not in (HOME, ROAMING):
            reading.registration = state
        if state in (HOME, ROAMING) and len(row) >= 5 and row[4].isdecimal():
            reading.set_text(technology=_ACCESS.get(int(row[4])))


def _cops(reading: Reading, lines: list[str]) -> None:
    """`mode[,format,oper[,AcT]]`."""
    row = fields(lines[0])
    if len(row) >= 3:
        reading.set_text(operator=row[2])
    if len(row) >= 4:
        reading.set_text(technology=_ACCESS.get(int(row[3])))


def _cgdcont(reading: Reading, lines: list[str]) -> None:
    """`cid,type,APN,…`: the first that names one and is not for telephony."""
    names = [row[2] for row in map(fields, lines) if len(row) >= 3 and row[2]]
    reading.set_text(apn=next((name for name in names if name.lower() not in ("ims", "sos")), ""))


def _cclk(reading: Reading, lines: list[str]) -> None:
    """`"yy/MM/dd,hh:mm:ss±zz"`, zz quarters of an hour; a modem without network time says 1970 or 1980."""
    date, clock = fields(lines[0])[0].split(",")
    year, month, day = (int(text) for text in date.split("/"))
    zone = max(clock.find("+"), clock.find("-"))
    quarters = int(clock[zone:]) if zone > 0 else 0
    hour, minute, second = (int(text) for text in (clock[:zone] if zone > 0 else clock).split(":"))
    if not (0 <= year < 70 and 1 <= month <= 12 and 1 <= day <= 31 and abs(quarters) <= 56):
        return
    days = _days(2000 + year, month, day)
    reading.network_s = days * 86_400 + hour * 3_600 + minute * 60 + second - quarters * 900


def _days(year: int, month: int, day: int) -> int:
    """Since 1970, in the Gregorian calendar."""
    if month <= 2:
        year, month = year - 1, month + 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469


# Makers


def _qnwinfo(reading: Reading, lines: list[str]) -> None:
    """`"FDD LTE","26201","LTE BAND 3",1300`, a line for each carrier, LTE's first: it carries the control."""
    for line in lines:
        row = fields(line)
        found = technology(row[0])
        if found is None:  # No Service
            continue
        if found == "NR" and reading.technology == "LTE" and len(lines) > 1:
            found = "LTE+NR"
        reading.set_text(technology=found)
        if len(row) >= 3 and reading.band is None:
            reading.set_text(band=_band(row[2], found))


def _qeng(reading: Reading, lines: list[str]) -> None:
    """`"servingcell",state,"LTE",duplex,mcc,mnc,cell,pcid,earfcn,band,ulbw,dlbw,tac,rsrp,rsrq,rssi,sinr,…`; NR alone
    `…,"NR5G-SA",duplex,mcc,mnc,cell,pcid,tac,arfcn,band,bw,rsrp,rsrq,sinr`; both in lines of their own, then
    `"NR5G-NSA",mcc,mnc,pcid,rsrp,sinr,rsrq,arfcn,band`. "-" is what is not known."""
    for line in lines:
        row = fields(line)
        if row[0] == "servingcell":
            row = row[2:]
        if not row:
            continue
        numbers = [_number(text) for text in row]
        kind = row[0].upper()
        if kind in ("LTE", "CAT-M", "CAT-NB", "EMTC", "NBIOT") and len(row) >= 15:
            reading.set_text(technology=technology(kind), band=_band(row[7], "LTE"))
            reading.set_signal(rsrp=numbers[11], rsrq=numbers[12], rssi=numbers[13], sinr=numbers[14])
        elif kind == "NR5G-SA" and len(row) >= 13:
            reading.set_text(technology="NR", band=_band(row[8], "NR"))
            reading.set_signal(rsrp=numbers[10], rsrq=numbers[11], sinr=numbers[12])
        elif kind == "NR5G-NSA" and len(row) >= 4 and numbers[4 if len(row) > 4 else 3] is not None:
            reading.set_text(technology="LTE+NR")


def _cpsi(reading: Reading, lines: list[str]) -> None:
    """`LTE,Online,mcc-mnc,tac,cell,pci,EUTRAN-BAND3,earfcn,dlbw,ulbw,rsrq,rsrp,rssi,snr`. The 7000 and 7600 series put
    RSRQ and RSRP in either order, and in dB or tenths; RSRP is always the lower one, and below -44 dBm (36.133). Where
    it is tenths, snr is the coded one: dB = 2 * snr - 20."""
    row = fields(lines[0])
    if "Online" not in row[1]:
        return
    found = technology(row[0])
    reading.set_text(technology=found)
    if found in ("LTE", "LTE-M", "NB-IoT") and len(row) >= 14:
        reading.set_text(band=_band(row[6], "LTE"))
        low, high = sorted((float(row[10]), float(row[11])))
        snr, rssi = _number(row[13]), _number(row[12])
        if low < -160:
            low, high = low / 10, high / 10
            rssi = None if rssi is None else rssi / 10
            snr = None if snr is None else 2 * snr - 20
        reading.set_signal(rsrp=low, rsrq=high, rssi=rssi, sinr=snr)


def _hcsq(reading: Reading, lines: list[str]) -> None:
    """`"LTE",rssi,rsrp,sinr,rsrq` and `"NR",rsrp,sinr,rsrq`, coded; 255 unknown."""
    row = fields(lines[0])
    found = technology(row[0])
    reading.set_text(technology=found)
    codes = [None if code is None or not 0 <= code < 255 else code for code in map(_number, row[1:])]
    rssi = codes[0] if found != "NR" else None
    reading.set_signal(rssi=None if rssi is None else -121 + rssi)
    if found == "NR":
        codes = [None, *codes]
    if found in ("LTE", "NR", "LTE+NR"):
        rsrp, sinr, rsrq = codes[1:4]
        reading.set_signal(
            rsrp=None if rsrp is None else -141 + rsrp,
            sinr=None if sinr is None else -20.2 + sinr / 5,
            rsrq=None if rsrq is None else -20 + rsrq / 2,
        )


def _sysinfoex(reading: Reading, lines: list[str]) -> None:
    """`srv_status,srv_domain,roam_status,sim_state,reserved,sysmode,name,submode,name`; service is there where
    srv_status is 2, and roaming where roam_status is 1."""
    row = fields(lines[0])
    if int(row[0]) == 2:
        reading.registration = ROAMING if row[2] == "1" else HOME
        reading.set_text(technology=technology(row[6]))


def _ucged(reading: Reading, lines: list[str]) -> None:
    """Mode 2: `rat,svc,mcc,mnc` and `earfcn,band,ulbw,dlbw,tac,cell,pcid,tmsi,mmegi,mmec,rsrp,rsrq,sinr,…`, coded but
    for SINR; a modem that knows only mode 5 says `+RSRP: pcid,earfcn,"-099.00"` and the same of RSRQ."""
    for line in lines:
        if line.startswith(("+RSRP:", "+RSRQ:")):
            value = float(fields(line)[2])
            reading.set_signal(**{line[1:5].lower(): value})
        elif not line.startswith("+"):
            row = fields(f":{line}")
            if len(row) >= 13:
                reading.set_text(band=_band(row[1], "LTE"))
                _coded(reading, int(row[10]), int(row[11]))
                reading.set_signal(sinr=_number(row[12]))


def _band(text: str, kind: str) -> str:
    """ "LTE BAND 3", "EUTRAN-BAND3", "NR5G BAND 78", "3" as B3 and n78; "" for none."""
    number = ""
    for char in reversed(text):
        if not char.isdecimal():
            break
        number = char + number
    if not number or len(number) > 3:
        return ""
    return f"{'n' if kind == 'NR' or text.upper().startswith(('NR', 'N')) else 'B'}{int(number)}"


def _number(text: str) -> float | None:
    """None for "-", and for what is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e6 else None  # also not for infinity, and not for nan


# In the order in which they count: makers know better than the standard, so they come after it.
_PARSERS: dict[str, Callable[[Reading, list[str]], None]] = {
    "AT+CPIN?": _sim,
    "AT+CSQ": _csq,
    "AT+CESQ": _cesq,
    "AT+CREG?": _registered,
    "AT+CEREG?": _registered,
    "AT+C5GREG?": _registered,
    "AT+COPS?": _cops,
    "AT+CGDCONT?": _cgdcont,
    "AT+CCLK?": _cclk,
    "AT^SYSINFOEX": _sysinfoex,
    "AT+QNWINFO": _qnwinfo,
    'AT+QENG="servingcell"': _qeng,
    "AT+CPSI?": _cpsi,
    "AT^HCSQ?": _hcsq,
    "AT+UCGED?": _ucged,
}
