"""A run as a real one is told: three guests, a power cut, figures with limits, consoles with their times."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from hil import report_html, report_junit
from hil.report import VERSION

GUESTS = ("pump", "camera", "truck")
BOOTED_S = {"pump": 124.1, "camera": 120.3, "truck": 122.7}
STEPS = (
    ("guest arm64", 0.1, 0.4, "kept"),
    ("package arm64", 0.5, 33.1, "edgeagent_0.1.0_arm64.deb, 576088 bytes"),
    ("hub and relay", 33.6, 11.7, ""),
    ("edgeflash batch", 45.3, 14.7, "3 images, each with a token of its own"),
    ("boot and join", 60.0, 64.1, "pump, camera, truck"),
    ("pings through the mesh", 124.7, 26.1, "pump→camera 25 ms relay:vm; pump→truck 17 ms 203.0.113.3:39167"),
    ("power cut and rejoin", 152.8, 35.8, "pump reaches truck 35 s after the power came back, 167 ms relay:vm"),
    ("pings again", 188.6, 23.6, "pump→camera 21 ms 203.0.113.2:51820; pump→truck 14 ms relay:vm"),
)


def told(
    *,
    suite: str = "smoke",
    seed: int = 1,
    failed: str = "",
    retries: int = 0,
    memory_mib: float = 26.5,
    began: str = "2026-11-26T02:00:04Z",
) -> dict[str, Any]:
    """`failed`: what the step "boot and join" fails with, and the run with it."""
    random = Random(seed)
    steps: list[dict[str, Any]] = []
    for name, at_s, seconds, said in STEPS:
        step = {"name": name, "at_s": at_s, "seconds": seconds, "said": said, "outcome": "passed", "load": 2.1}
        steps.append(step)
        if failed and name == "boot and join":
            step |= {"outcome": "failed", "error": "guest-stuck", "said": failed}
            break
    events = {name: [_event(60.1, "power on", "on")] for name in GUESTS}
    for number in range(retries):
        why = "it has said nothing for 120 s and its processor rests"
        events["truck"] += [
            _event(70.0 + number, f"stuck: {why}", "bad"),
            _event(70.0 + number, f"booted again, {number + 1} of 2: {why}", "retry"),
            _event(70.1 + number, "power off", "off"),
            _event(70.2 + number, "power on", "on"),
        ]
    figures: list[dict[str, Any]] = []
    series: list[dict[str, Any]] = []
    if not failed:
        for name in GUESTS:
            events[name].append(_event(BOOTED_S[name], "online", "good"))
        events["truck"] += [
            _event(152.8, "power off", "off"),
            _event(153.9, "power on", "on"),
            _event(188.5, "reached again", "good"),
        ]
        for name in GUESTS:
            jitter = random.uniform(0.9, 1.1)
            figures.append(
                figure("power-on to online, first", BOOTED_S[name] * jitter - 60, "s", name, 124.0, limit=90)
            )
            figures.append(figure("agent, resident memory", memory_mib * jitter, "MiB", name, 150.0, limit=32))
        for a, b in (("pump", "camera"), ("pump", "truck"), ("camera", "truck")):
            figures.append(figure(f"round trip to {b}, first", random.uniform(12, 45), "ms", a, 150.0))
        throughput = random.uniform(5.6, 7.2)
        figures.append(
            figure("tunnel throughput, kernel engine", throughput, "Mbit/s", "pump", 150.0, limit=5, least=True)
        )
        figures.append(figure("power-on to reached, again", random.uniform(30, 42), "s", "truck", 188.0, limit=90))
    end_s = steps[-1]["at_s"] + steps[-1]["seconds"]
    for name in GUESTS:
        at = range(60, int(end_s), 3)
        points = [[second, round(310 + (second - 60) * 0.5 + random.uniform(-4, 4), 2)] for second in at]
        series.append({"what": "memory of its programs", "guest": name, "unit": "MiB", "points": points})
    beyond = any(not row["ok"] for row in figures)
    return {
        "version": VERSION,
        "id": f"{seed:032x}",
        "suite": suite,
        "rig": "bench-1",
        "verdict": "failed" if failed or beyond else "retried" if retries else "passed",
        "passed": not (failed or beyond),
        "retries": retries,
        "began": began,
        "seconds": end_s + 0.4,
        "host": {
            "name": "ci-2",
            "machine": "x86_64",
            "system": "Linux 6.1.0-28-amd64",
            "cpus": 2,
            "load": [2.1, 1.9, 1.2],
        },
        "versions": {"python": "3.11.7", "edgemesh": "0.1.0", "commit": "3f0c1de"},
        "steps": steps,
        "figures": figures,
        "series": series,
        "guests": [
            {
                "name": name,
                "about": {"machine": "arm64", "board": "qemu-arm64"},
                "events": events[name],
                "transcript": f"{name}/console.log",
            }
            for name in GUESTS
        ],
        "kept": [{"name": f"{name}/console.log", "path": f"{name}/console.log", "bytes": 900} for name in GUESTS]
        + [{"name": "pump.pcap", "path": "pump.pcap", "bytes": 184_320}],
    }


def figure(
    what: str, value: float, unit: str, guest: str, at_s: float, *, limit: float | None = None, least: bool = False
) -> dict[str, Any]:
    value = round(value, 3)
    row: dict[str, Any] = {"what": what, "guest": guest, "value": value, "unit": unit, "at_s": at_s, "ok": True}
    if limit is not None:
        row |= {"limit": limit, "least": least, "ok": value >= limit if least else value <= limit}
    return row


def write(folder: Path, told_: dict[str, Any]) -> None:
    """Consoles as the rig logs them, and what is made of it all."""
    for name in GUESTS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "console.log").write_text(console(name, boots=2 if name == "truck" else 1), encoding="utf-8")
    (folder / "pump.pcap").write_bytes(bytes(1_024))
    (folder / "junit.xml").write_bytes(report_junit.render(told_))
    (folder / "report.html").write_text(report_html.render(told_, folder), encoding="utf-8")


def console(name: str, boots: int = 1) -> str:
    lines = []
    for _ in range(boots):
        lines += [
            "    0.412  Booting Linux on physical CPU 0x0000000000 [0x410fd034]",
            "    1.204  Run /init as init process",
            f"    4.871  systemd[1]: Hostname set to <{name}>.",
            "    9.330  [  OK  ] Reached target network.target - Network.",
            "   12.018  [  OK  ] Started edgeagent.service - edgemesh agent.",
            f"   14.551  Debian GNU/Linux 12 {name} ttyAMA0",
            f"   15.020  {name} login: root (automatic login)",
        ]
    return "\n".join(lines) + "\n"


def _event(at_s: float, what: str, kind: str) -> dict[str, Any]:
    return {"at_s": at_s, "what": what, "kind": kind}
