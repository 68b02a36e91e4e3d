"""What is pure in the benches: the search for a rate, medians of ratios, parsing, the chart."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console

from tests.netlab import LabError
from tools.bench import __main__ as command
from tools.bench import blast, chart, peers, procfs
from tools.bench.blast import Probe, highest
from tools.bench.datapath import GAUGES, figures
from tools.bench.figures import Figure, Note, Row, show, write
from tools.bench.peers import Contender
from tools.bench.rounds import Rounds, percentile
from tools.bench.tunnel import LOST_MS, parse_iperf, parse_ping

FAST, PURE, HEAD, OLD = (
    Contender(key, name, ("true",), {}, "1")
    for key, name in (
        ("fast", "edge-wireguard fast"),
        ("pure", "edge-wireguard pure"),
        ("go", "HEAD"),
        ("debian", "2022"),
    )
)


def carrier(limit_pps: float, senders_pps: float = math.inf, collapses: bool = False) -> tuple[list[float], object]:
    """A tunnel that carries `limit_pps`; above that it loses the rest, or half when it `collapses`."""
    asked: list[float] = []

    def probe(pps: float) -> Probe:
        asked.append(pps)
        sent = min(pps, senders_pps)
        through = sent if sent <= limit_pps else limit_pps / 2 if collapses else limit_pps
        return Probe(pps, round(sent), round(through), 1.0)

    return asked, probe


@pytest.mark.parametrize("limit_pps", [3_000, 20_000, 59_000, 60_001, 100_000, 900_000])
@pytest.mark.parametrize("collapses", [False, True])
def test_the_search_ends_close_below_the_limit(limit_pps: int, collapses: bool) -> None:
    asked, probe = carrier(limit_pps, collapses=collapses)
    best = highest(probe, 60_000)  # type: ignore[arg-type]
    assert best is not None
    assert best.passes
    assert limit_pps / 1.12 <= best.pps <= limit_pps * 1.001
    assert len(asked) <= blast.PROBES_MAX


def test_the_search_ends_when_the_sender_is_the_limit() -> None:
    asked, probe = carrier(math.inf, senders_pps=150_000)
    best = highest(probe, 60_000)  # type: ignore[arg-type]
    assert best is not None
    assert best.pps == 150_000
    assert len(asked) <= 6


def test_one_stall_is_not_the_limit() -> None:
    asked, carried = carrier(200_000)

    def probe(pps: float) -> Probe:
        found: Probe = carried(pps)  # type: ignore[operator]
        return found._replace(received=found.sent // 2) if len(asked) == 2 else found

    best = highest(probe, 60_000)
    assert best is not None
    assert best.pps > 170_000


def test_nothing_passes_where_nothing_arrives() -> None:
    asked, probe = carrier(0)
    assert highest(probe, 60_000) is None  # type: ignore[arg-type]
    assert len(asked) == blast.PROBES_MAX


def test_one_per_cent_is_too_much() -> None:
    assert Probe(1_000, 1_000, 991, 1.0).passes
    assert not Probe(1_000, 1_000, 990, 1.0).passes
    assert not Probe(1_000, 0, 0, 1.0).passes


def test_ratios_are_of_one_round_each() -> None:
    results = Rounds()
    for number, (mine, its) in enumerate(((10.0, 5.0), (30.0, 10.0), (4.0, 4.0))):
        results.add(number, "a", {"tcp": mine})
        results.add(number, "b", {"tcp": its})
    assert results.median("tcp", "a") == 10.0
    assert results.median("tcp", "b") == 5.0
    assert results.ratio("tcp", "a", "b") == 2.0
    results.add(3, "a", {"tcp": 1_000.0})
    results.add(4, "a", {"tcp": None})
    results.add(5, "a", {"tcp": math.inf})
    results.add(5, "b", {"tcp": 0.0})
    assert results.values("tcp", "a") == [10.0, 30.0, 4.0, 1_000.0]
    assert results.ratio("tcp", "a", "b") == 2.0, "a round in which only one took part says nothing"
    assert results.ratio("udp", "a", "b") is None
    assert results.median("udp", "a") is None


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1.0, 100.0, 198.0, 200.0]
    assert percentile([7.0], 99) == 7.0


def test_an_echo_that_never_came_is_a_long_one() -> None:
    text = (
        "64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.5 ms\n64 bytes from 10.0.0.1: icmp_seq=3 ttl=64 time=12 ms\n"
    )
    assert parse_ping(text, 3) == [0.5, 12.0, LOST_MS]


def test_iperf_says_what_was_received() -> None:
    text = json.dumps({"end": {"sum_received": {"bits_per_second": 2.5e9, "bytes": 1_000}}})
    assert parse_iperf(text) == (2_500.0, 1_000)
    for bad in ('{"error": "unable to connect"}', "", '{"end": {"sum_received": {"bits_per_second": 0, "bytes": 0}}}'):
        with pytest.raises(LabError, match="iperf3 measured nothing"):
            parse_iperf(bad)


def test_the_version_of_a_go_program() -> None:
    line = "\tmod\tgolang.zx2c4.com/wireguard\tv0.0.0-20260522210424-ecfc5a8d5446\th1:x=\n"
    assert peers.go_version(line) == "ecfc5a8 of 2026-05-22"
    assert peers.go_version(line.replace("v0.0.0-20260522210424-ecfc5a8d5446", "v1.2.3")) == "v1.2.3"
    assert peers.go_version("\tmod\texample.org/other\tv1.0.0\n") == "unknown"


def test_a_peer_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WIREGUARD_GO", raising=False)
    found, missing = peers.find(("go", "debian", "boringtun"))
    assert found == []
    assert [(absent.key, bool(absent.why)) for absent in missing] == [(k, True) for k in ("go", "debian", "boringtun")]
    monkeypatch.setenv("WIREGUARD_GO", "/nowhere/wireguard-go")
    assert peers.find(("go",))[1][0].why == "WIREGUARD_GO=/nowhere/wireguard-go is no program"


def test_cpu_and_memory_are_read_of_a_process() -> None:
    pid = os.getpid()
    began = procfs.cpu_s(pid)
    while procfs.cpu_s(pid) < began + 0.02:
        pass
    procfs.forget_peak(pid)
    assert 1 < procfs.rss_mib(pid) < 10_000
    assert procfs.peak_rss_mib(pid) > 1


def test_what_a_process_has_mapped_is_read() -> None:
    # Of a child: here another test may have loaded the library.
    program = [sys.executable, "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            assert child.stdout.readline() == "up\n"
            lines = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
            libc = next(name for line in lines if "libc" in (name := Path(line).name))
            assert procfs.has_mapped(child.pid, libc)
            assert not procfs.has_mapped(child.pid, peers.FAST_LIBRARY)
        finally:
            child.stdin.write("\n")


def measured(contenders: list[Contender]) -> list[Figure]:
    results = Rounds()
    for number in range(3):
        for index, contender in enumerate(contenders):
            results.add(number, contender.key, {gauge.key: (index + 1.0) * (number + 1) for gauge in GAUGES})
    return list(figures(results, contenders))


def test_figures_have_the_best_of_ours_beside_the_newest_peer() -> None:
    listed = measured([FAST, PURE, HEAD, OLD])
    assert len(listed) == len(GAUGES)
    assert listed[0].name == "TCP, 1 stream: fast"
    assert listed[0].peer == {"name": "HEAD", "value": 6.0}
    assert listed[0].ratio == pytest.approx(1 / 3)
    assert [other["name"] for other in listed[0].others] == ["edge-wireguard pure", "2022"]
    assert [other["ratio"] for other in listed[0].others] == pytest.approx([2 / 3, 4 / 3])
    alone = measured([PURE])[0]
    assert (alone.peer, alone.no_peer, alone.ratio) == (None, "nobody else took part", None)
    assert measured([FAST, PURE])[0].peer == {"name": "edge-wireguard pure", "value": 4.0}


def test_the_chart_is_well_formed_and_the_same_from_a_file(tmp_path: Path) -> None:
    listed = measured([FAST, PURE, HEAD._replace(name="a <peer> & more"), OLD])
    results: dict[str, list[Row]] = {"datapath": [*listed, Note("on", "a [machine]")]}
    write(tmp_path / "figures.json", results)
    svg = chart.draw(results["datapath"])
    assert chart.draw(*chart.read(tmp_path / "figures.json")) == svg
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert "The data path, as a ratio to a <peer> & more (the dashed line)" in texts
    assert [gauge.title for gauge in GAUGES if gauge.title not in texts] == []
    assert texts.count("×1.33") == len(GAUGES)
    height, width = float(root.attrib["height"]), float(root.attrib["width"])
    for box in root.iter(f"{space}rect"):
        assert float(box.get("x", 0)) + float(box.attrib["width"]) <= width
        assert float(box.get("y", 0)) + float(box.attrib["height"]) <= height
    assert ET.fromstring(chart.draw([])) is not None


def test_the_table_shows_ratios_and_notes() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    show(console, {"datapath": [measured([FAST, HEAD])[0], Note("on", "a [machine]")]})
    text = console.export_text()
    assert "TCP, 1 stream: fast" in text
    assert "HEAD: ×0.5 of it" in text
    assert "a [machine]" in text


@pytest.mark.parametrize("words", [["--only", "fast,gone"], ["--rounds", "0"], ["--seconds", "x"], ["gone"]])
def test_wrong_options_are_usage_errors(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert words[-1].rpartition(",")[2] in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_the_blaster_counts_what_it_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blast, "BUILT", tmp_path)
    program = str(blast.program())
    assert subprocess.run([program], capture_output=True, check=False).returncode == 2
    with subprocess.Popen(
        [program, "recv", "127.0.0.1", str(blast.PORT), "60"], stdout=subprocess.PIPE, text=True
    ) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        send = [program, "send", "127.0.0.1", str(blast.PORT), "64", "2000", "0.2", "7"]
        sent, took_s = blast.parse_sent(subprocess.run(send, capture_output=True, text=True, check=True).stdout)
        assert receiver.stdout.readline() == f"run 7 received {sent}\n"
        receiver.kill()
    assert 0 < sent <= 401
    assert took_s >= 0.2
