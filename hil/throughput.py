"""The throughput suite: what goes through the tunnel between a guest and this machine, by each engine of the agent.

iperf3, TCP, both ways. Emulated processors are slow and share this machine's, so beside the rate there is what a MiB
costs in seconds of QEMU's processor time, which is the same under load.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hil.desk import Desk
from hil.errors import CommandFailed, NotReached
from hil.machines import Machine
from hil.programs import until
from hil.report import Report
from hil.rig import Device, Rig
from hil.smoke import raise_fleet

ENGINES = ("kernel", "fast", "pure")
LENGTH_S = 6
PORT = 5201
READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 180.0
START_TIMEOUT_S = 600.0  # what the slowest takes on a busy machine; an idle one a tenth of it
POLL_S = 1.0
WAYS = (("to this machine", ""), ("from this machine", "-R"))


def throughput(machines: Sequence[Machine], store: Path, out: Path, say: Callable[[str], None]) -> Report:
    """A guest for each of `machines`, one after the other. The report is in `out` however it ends."""
    report = Report("throughput", say)
    try:
        with Rig(out) as rig:
            devices = raise_fleet(report, rig, machines, store, out, desk=True)
            assert rig.desk is not None
            for device in devices:
                with report.step(f"{device.name}, by itself") as step:
                    told = device.ask("status")["engine"]
                    step["said"] = f"{told['name']}: {told['why']}"
                for engine in ENGINES:
                    with report.step(f"{device.name}, engine {engine}") as step:
                        choose(device, engine, rig.desk)
                        step["said"] = "; ".join(_measure(report, device, engine, rig.desk))
    finally:
        report.write(out)
    return report


def choose(device: Device, engine: str, desk: Desk) -> None:
    """Start the guest's agent anew with an engine, `fast` with the AEAD that is its best there, as in all starts but a
    device's first. Raises NotReached where it does not come back, CommandFailed where it runs another."""
    shell = device.guest.console.shell
    shell(f"echo EDGEAGENT_ENGINE={engine} >/etc/default/edgeagent; systemctl stop edgeagent", ANSWER_TIMEOUT_S)
    if engine == "fast":
        shell("edgeagent crypto --measure", ANSWER_TIMEOUT_S)
    shell("systemctl start edgeagent", START_TIMEOUT_S)

    def answers() -> bool:
        try:
            device.ping(desk.name, 1)
        except CommandFailed:
            return False
        return True

    until(answers, READY_TIMEOUT_S, lambda: NotReached(f"{device.name}: no answer with engine {engine}"), POLL_S)
    told = device.ask("status")["engine"]
    if told["name"] != engine:
        raise CommandFailed(f"{device.name}: asked for engine {engine}, it runs {told['name']}: {told['why']}")


def _measure(report: Report, device: Device, engine: str, desk: Desk) -> list[str]:
    said = []
    shell = device.guest.console.shell
    for way, option in WAYS:
        server = desk.start("iperf3", "iperf3", "--server", "--one-off", "--bind", desk.address, "--port", str(PORT))
        try:
            time.sleep(0.5)  # it listens
            began, spent_s = time.monotonic(), device.guest.processor_s()
            words = f"iperf3 --client {desk.address} --port {PORT} --time {LENGTH_S} --json {option}"
            told = json.loads(shell(words, ANSWER_TIMEOUT_S))
            spent_s = device.guest.processor_s() - spent_s
            took = time.monotonic() - began
        except ValueError as error:
            raise CommandFailed(f"{device.name}: iperf3 --json said no JSON: {error}") from None
        finally:
            server.stop()
        received = told["end"]["sum_received"]
        rate, mib = received["bits_per_second"] / 1e6, received["bytes"] / (1 << 20)
        report.figure(f"tunnel {way}, {engine}", rate, "Mbit/s", device.name)
        sent = told["end"]["sum_sent"]
        report.figure(f"the same, segments sent again, {engine}", sent.get("retransmits", 0), "", device.name)
        report.figure(
            f"the same, processor time of QEMU for a MiB, {engine}", spent_s / max(mib, 0.001), "s", device.name
        )
        said.append(f"{way} {rate:.2f} Mbit/s, {mib:.1f} MiB, {spent_s:.1f} s of processor in {took:.0f} s")
    return said
