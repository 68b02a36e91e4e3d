"""What is made of a modem's words without any port: lines, conversations, dialects, JSON of programs, bars, totals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import at_dialects as dialects
from edgeagent.proto import modem_programs as programs
from edgeagent.proto.at import LINE_BYTES_MAX, TALK_BYTES_MAX, Command, LineAssembler, Talk, fields
from edgeagent.proto.modem import (
    BARS,
    HOME,
    ROAMING,
    ROAMING_ENDS_S,
    SEARCHING,
    STALE_S,
    Modem,
    Reading,
    Total,
    is_likely,
)
from edgeagent.proto.walltime import WallFloor
from tests.agent.modem_sim import COMMON, DIALECTS

ALL_COMMANDS = sorted({*COMMON, *(command for dialect in DIALECTS.values() for command in dialect)})


def reading(**values: Any) -> Reading:
    made = Reading()
    for name, value in values.items():
        setattr(made, name, value)
    return made


# Lines


@given(
    st.lists(st.text('abcXYZ+:," 0123', min_size=1, max_size=40).map(str.strip).filter(bool), max_size=12), st.data()
)
def test_lines_are_the_same_however_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    stream = b"".join(f"\r\n{line}\r\n".encode() for line in lines)
    assembler, found = LineAssembler(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += assembler.feed(stream[:size])
        stream = stream[size:]
    assert found == lines


def test_a_line_that_is_too_long_is_dropped_alone() -> None:
    assembler = LineAssembler()
    found = assembler.feed(b"OK\r\n" + b"x" * (LINE_BYTES_MAX + 1) + b"\r\nOK\r\n")
    assert (found, assembler.overlong) == (["OK", "OK"], 1)


@given(st.lists(st.binary(max_size=2_000), max_size=30))
def test_an_assembler_keeps_no_more_than_a_line(chunks: list[bytes]) -> None:
    assembler = LineAssembler()
    for chunk in chunks:
        for line in assembler.feed(chunk):
            assert 0 < len(line) <= LINE_BYTES_MAX and line.isprintable()
        assert len(assembler._line) <= LINE_BYTES_MAX


# Conversations


def test_a_late_answer_never_counts_for_another_command() -> None:
    talk = Talk(0.0, [dialects.WAKE, Command("AT+CSQ", "+CSQ:"), Command("AT+CESQ", "+CESQ:")])
    talk.handle_data(0.0, b"OK\r\n")
    talk.handle_timeout(5.0)
    talk.handle_data(5.1, b"+CSQ: 20,99\r\n+CESQ: 99,99,255,255,20,46\r\nOK\r\n")
    assert talk.done and talk.failures == {"AT+CSQ": "time-out"}
    assert talk.answers["AT+CESQ"] == ["+CESQ: 99,99,255,255,20,46"]
    assert talk.news == 1


@pytest.mark.parametrize("error", ["ERROR", "+CME ERROR: 10", "+CME ERROR: SIM not inserted", "+CMS ERROR: 500"])
def test_an_error_ends_its_command_alone(error: str) -> None:
    talk = Talk(0.0, [dialects.WAKE, Command("AT+CPIN?", "+CPIN:"), Command("AT+CSQ", "+CSQ:")])
    talk.handle_data(0.0, f"OK\r\n{error}\r\n+CSQ: 9,99\r\nOK\r\n".encode())
    assert talk.done and not talk.fault
    assert talk.failures == {"AT+CPIN?": error} and talk.answers["AT+CSQ"] == ["+CSQ: 9,99"]


@given(
    st.lists(
        st.binary(max_size=600) | st.sampled_from([b"OK\r\n", b"ERROR\r", b"AT+CSQ\r\n", b"+CSQ: 1,"]), max_size=80
    )
)
def test_whatever_comes_a_conversation_ends(chunks: list[bytes]) -> None:
    talk, now = Talk(0.0, dialects.script(dialects.QUECTEL, set())), 0.0
    for chunk in chunks:
        talk.handle_data(now, chunk)
        talk.drain()
        now += 0.1
    for _ in range(40):
        if talk.done:
            break
        at = talk.poll_timeout()
        assert at is not None
        now = max(now, at)
        talk.handle_timeout(now)
    assert talk.done and talk._bytes <= TALK_BYTES_MAX + 600
    dialects.read(talk.answers)


# Dialects


NOISE = st.text(max_size=80) | st.text('0123456789,-.:"+^ ABLTENR', max_size=120)


def in_range(found: Reading) -> bool:
    ranges = {"rsrp": (-160, -20), "rsrq": (-45, 20), "sinr": (-30, 45), "rssi": (-125, -20)}
    values = [(getattr(found, name), low, high) for name, (low, high) in ranges.items()]
    texts = [getattr(found, name) for name in ("technology", "band", "operator", "apn", "model", "sim")]
    return all(value is None or low <= value <= high for value, low, high in values) and all(
        text is None or (text.isprintable() and len(text.encode()) <= 48) for text in texts
    )


@given(st.dictionaries(st.sampled_from(ALL_COMMANDS), st.lists(NOISE, max_size=4), max_size=8))
def test_any_lines_are_read(answers: dict[str, list[str]]) -> None:
    assert in_range(dialects.read(answers))


@given(st.sampled_from(sorted(DIALECTS)), st.data())
def test_an_answer_that_is_damaged_anywhere_is_read(dialect: str, data: st.DataObject) -> None:
    answers = {command: list(lines) for command, lines in {**COMMON, **DIALECTS[dialect]}.items()}
    command = data.draw(st.sampled_from(sorted(command for command, lines in answers.items() if lines)))
    row = fields(answers[command][0])
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(
        st.text(max_size=8) | st.sampled_from(["", "-", "nan", "1e999"])
    )
    answers[command][0] = f"{answers[command][0].partition(':')[0]}:{','.join(row)}"
    assert in_range(dialects.read(answers))


@pytest.mark.parametrize(
    ("command", "line", "found"),
    [
        ("AT+CSQ", "+CSQ: 99,99", {"rssi": None}),
        ("AT+CSQ", "+CSQ: 31,99", {"rssi": -51}),
        ("AT+CESQ", "+CESQ: 99,99,255,255,255,255", {"rsrp": None, "rsrq": None}),
        ("AT+CESQ", "+CESQ: 99,99,255,255,34,97", {"rsrp": -44, "rsrq": -3}),
        ("AT+CESQ", "+CESQ: 99,99,255,255,255,255,70,60,80", {"rsrp": -97, "rsrq": -8, "sinr": 16}),
        ("AT+CREG?", "+CREG: 0,5", {"registration": ROAMING}),
        ("AT+CREG?", "+CREG: 2,2", {"registration": SEARCHING}),
        ("AT+CREG?", '+CREG: 1,"1A2B","01C2D3E4",7', {"registration": None}),  # a URC
        ("AT+CEREG?", '+CEREG: 2,1,"1A2B","01C2D3E4",9', {"registration": HOME, "technology": "NB-IoT"}),
        ("AT+COPS?", "+COPS: 0", {"operator": None}),
        ("AT+COPS?", '+COPS: 0,2,"26201",2', {"operator": "26201", "technology": "UMTS"}),
        ("AT+CCLK?", '+CCLK: "80/01/06,00:00:12+00"', {"network_s": None}),
        ("AT+CCLK?", '+CCLK: "26/11/26,15:04:05-08"', {"network_s": 1_795_705_445 + 7_200}),
        ("AT+CPSI?", "+CPSI: NO SERVICE,Online", {"technology": None}),
        (
            "AT+CPSI?",
            "+CPSI: LTE CAT-M1,Online,240-07,0x2AFE,34564631,149,EUTRAN-BAND20,6400,3,3,-12,-81,-52,10",
            {"technology": "LTE-M", "band": "B20", "rsrp": -81, "rsrq": -12, "sinr": 10},
        ),
        (
            'AT+QENG="servingcell"',
            '+QENG: "servingcell","NOCONN","NR5G-SA","TDD",262,01,123456789,452,4E,627264,78,12,-90,-11,12',
            {"technology": "NR", "band": "n78", "rsrp": -90, "rsrq": -11, "sinr": 12},
        ),
        (
            'AT+QENG="servingcell"',
            '+QENG: "servingcell","SEARCH","LTE","FDD",-,-,-,-,-,-,-,-,-,-,-,-,-',
            {"technology": "LTE", "band": None, "rsrp": None},
        ),
        ("AT^HCSQ?", '^HCSQ: "NOSERVICE"', {"technology": None, "rsrp": None}),
        ("AT^HCSQ?", '^HCSQ: "WCDMA",43,36,51', {"technology": "UMTS", "rssi": -78, "rsrp": None}),
        ("AT^HCSQ?", '^HCSQ: "LTE",255,255,255,255', {"rssi": None, "rsrp": None, "sinr": None}),
        ("AT+UCGED?", '+RSRP: 162,5110,"-099.00",', {"rsrp": -99}),
    ],
)
def test_what_the_standards_and_makers_say(command: str, line: str, found: dict[str, Any]) -> None:
    got = dialects.read({command: [line]})
    assert {name: getattr(got, name) for name in found} == found


# Programs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["modem", "generic", "3gpp", "signal", "lte", "5g", "rsrp", "snr", "type", "ports", "bearers"]
            )
            | st.text(max_size=6),
            inner,
            max_size=6,
        )
    ),
    max_leaves=24,
)


@given(JSON, JSON, JSON, JSON)
def test_any_json_is_read(a: Any, b: Any, c: Any, d: Any) -> None:
    assert in_range(programs.mm_reading(a, b, c, d))
    assert in_range(programs.qmi_reading(a, b, c, d))
    programs.mm_ports(a), programs.mm_bearer(a), programs.mm_wants_setup(a), programs.modem_list(a)


@pytest.mark.parametrize("path", ["", "-h", "/etc/passwd", "/org/freedesktop/ModemManager1/Modem/0;reboot", 7, None])
def test_nothing_but_an_object_path_gets_into_an_argument_list(path: Any) -> None:
    assert programs.modem_list({"modem-list": [path]}) == []
    assert programs.mm_bearer({"modem": {"generic": {"bearers": [path]}}}) == ""


@pytest.mark.parametrize(
    ("earfcn", "band"), [(0, "B1"), (1300, "B3"), (6300, "B20"), (37900, "B38"), (5400, ""), (9e5, "")]
)
def test_the_band_of_a_channel(earfcn: float, band: str) -> None:
    assert programs.band_of(earfcn) == band


# What is known


def test_bars_do_not_flicker() -> None:
    modem = Modem("AT", "/dev/ttyUSB2", "wwan0")
    seen = []
    for rsrp in (-96, -94, -96, -94, -91, -94, -96, -97, -99, -120):
        modem.take(0.0, reading(rsrp=rsrp, registration=HOME))
        seen.append(modem.bars)
    assert seen == [2, 2, 2, 2, 3, 3, 3, 3, 2, 0]
    assert modem.is_weak


@given(st.integers(-160, -20), st.none() | st.integers(0, BARS))
def test_bars_are_within_one_step_of_the_plain_ones(rsrp: int, before: int | None) -> None:
    modem = Modem("AT", "p", "")
    modem.bars = before
    modem.take(0.0, reading(rsrp=rsrp))
    plain = sum(rsrp >= step for step in (-115, -105, -95, -85))
    assert modem.bars is not None and abs(modem.bars - plain) <= 1


def test_without_a_network_there_are_no_bars() -> None:
    modem = Modem("AT", "p", "")
    modem.take(0.0, reading(rssi=-70, registration=SEARCHING))
    assert modem.bars is None and not modem.is_weak


def test_roaming_costs_at_once_and_for_a_while_after() -> None:
    modem = Modem("AT", "p", "wwan0")
    assert not modem.is_roaming(0.0)
    modem.take(10.0, reading(registration=ROAMING))
    modem.take(70.0, reading(registration=HOME))
    assert modem.is_roaming(70.0) and not modem.is_roaming(10.0 + ROAMING_ENDS_S)


def test_what_is_old_is_not_now() -> None:
    modem = Modem("AT", "p", "wwan0")
    assert not modem.is_fresh(0.0)
    modem.take(0.0, reading(rsrp=-90))
    assert modem.is_fresh(STALE_S - 1) and not modem.is_fresh(STALE_S)


@given(st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_total_outlives_its_counter(lives: list[list[int]]) -> None:
    """In each life the counter goes up by what is given, from 0; a life that begins below where the last one ended is
    seen as one."""
    total, expected, last = Total(), 0, None
    for steps in lives:
        counter = 0
        for step in steps:
            counter += step
            expected += 0 if last is None else counter - last if counter >= last else counter
            total.follow(counter)
            last = counter
    assert total.bytes == expected


def test_a_sentence_for_the_hub_is_short_and_names_a_weak_signal() -> None:
    modem = Modem("AT", "/dev/ttyUSB2", "wwan0")
    modem.take(0.0, reading(technology="LTE", band="B20", rsrp=-118, registration=ROAMING, operator="Ä" * 24))
    assert modem.sentence().startswith("wwan0: LTE B20, -118 dBm, weak signal, roaming, ÄÄ")
    assert len(modem.sentence().encode()) <= 128


# Its clock


def test_a_modems_clock_raises_nothing_but_a_guess() -> None:
    wall = WallFloor(100.0, 1_700_000_000.0)
    wall.hint(100.0, 1_800_000_000.0)
    assert wall.at(110.0) == 1_700_000_010.0 and wall.likely(110.0) == 1_800_000_010.0 and not wall.known
    wall.hint(110.0, 1_600_000_000.0)
    assert wall.likely(110.0) == wall.at(110.0)
    wall.hint(110.0, 1_900_000_000.0)
    wall.raise_to(110.0, 1_750_000_000.0)  # the hub has told the time
    assert wall.likely(110.0) == wall.at(110.0) == 1_750_000_000.0


@pytest.mark.parametrize(("said", "likely"), [(1_800_000_000, True), (1_600_000_000, False), (3_400_000_000, False)])
def test_a_clock_that_was_never_set_is_none(said: float, likely: bool) -> None:
    assert is_likely(said, 1_700_000_000.0) is likely


def test_json_of_a_real_modem() -> None:
    """As ModemManager 1.20 writes it."""
    modem = json.loads(
        '{"modem":{"3gpp":{"imei":"867000000000000","operator-code":"26201","operator-name":"Testnet Home",'
        '"registration-state":"roaming"},"dbus-path":"/org/freedesktop/ModemManager1/Modem/0","generic":{'
        '"access-technologies":["lte","5gnr"],"bearers":["/org/freedesktop/ModemManager1/Bearer/1"],'
        '"manufacturer":"QUALCOMM INCORPORATED","model":"QUECTEL Mobile Broadband Module",'
        '"ports":["cdc-wdm0 (qmi)","ttyUSB0 (ignored)","wwan0 (net)"],"primary-port":"cdc-wdm0",'
        '"signal-quality":{"recent":"yes","value":"67"},"state":"connected","unlock-required":"sim-pin2"}}}'
    )
    signal = json.loads(
        '{"modem":{"signal":{"5g":{"error-rate":"--","rsrp":"-110.00","rsrq":"-12.00","snr":"4.00"},"gsm":{"rssi":"--"},'
        '"lte":{"error-rate":"--","rsrp":"-100.00","rsrq":"-9.00","rssi":"-71.00","snr":"19.00"},'
        '"refresh":{"rate":"60"},"umts":{"rssi":"--"}}}}'
    )
    cells = {
        "modem": {
            "generic": {"cell-info": ["cell type: lte, serving: yes, operator id: 26201, earfcn: 6300, rsrp: -100"]}
        }
    }
    bearer = {"bearer": {"properties": {"apn": "internet.test"}, "status": {"interface": "wwan0"}}}
    found = programs.mm_reading(modem, signal, cells, bearer)
    assert programs.mm_ports(modem) == ("wwan0", "cdc-wdm0") and programs.mm_bearer(modem).endswith("/Bearer/1")
    assert not programs.mm_wants_setup(signal)
    expected = {
        "technology": "LTE+NR", "band": "B20", "rsrp": -100, "rsrq": -9, "sinr": 19, "rssi": -71,
        "registration": ROAMING,
        "operator": "Testnet Home", "apn": "internet.test", "sim": "READY",
    }  # fmt: skip
    assert {name: getattr(found, name) for name in expected} == expected
