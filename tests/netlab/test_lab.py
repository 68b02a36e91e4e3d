"""The lab keeps its promises: packets pass where they should, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netlab import Host, Lab, LabError, LabTimeout, rights, sweep, until
from tests.netlab.process import LOG_BYTES_MAX

ROOT = Path(__file__).parents[2]

# A lab with a daemon that left its process group and its parent: only the namespace still tells whose it is.
SUBJECT = """
import signal
from tests.netlab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
with Lab() as lab:
    lab.host("a", lab.net("10.0.0.0/24")).sh("setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
    print(lab.id, flush=True)
    input()
    raise ValueError("as asked")
"""


def two_sides(lab: Lab) -> tuple[Host, Host]:
    home = lab.net("192.168.1.0/24", "2001:db8:1::/64")
    away = lab.net("198.51.100.0/24", "2001:db8:2::/64")
    lab.router("router", home, away)
    return lab.host("a", home), lab.host("b", away)


def test_hosts_reach_each_other_through_a_router(lab: Lab) -> None:
    a, b = two_sides(lab)
    assert a.ping(b.address) is not None
    assert b.ping(a.address) is not None
    assert a.ping(b.address6) is not None
    assert a.ping("198.51.100.77") is None


def test_a_long_cable_takes_its_time_and_passes_everything(lab: Lab) -> None:
    net = lab.net("10.1.0.0/24", "2001:db8:1::/64", mtu=1400)
    a, b = lab.host("a"), lab.host("b", net)
    a.attach(net, delay_ms=20.0)
    for address in (b.address, b.address6):
        trip_ms = a.ping(address)
        assert trip_ms is not None and trip_ms >= 40.0
    a.run("ping", "-n", "-c1", "-M", "do", "-s", str(1400 - 28), b.address)
    b.start("iperf3", "-s", "-1", "--forceflush").expect("listening")
    a.sh(f"iperf3 -c {b.address} -n 4M")
    (cable,) = [process for process in lab.processes() if process.name.startswith("cable:")]
    assert cable.running
    lab.close()
    assert not cable.running


def test_a_router_is_needed_between_segments(lab: Lab) -> None:
    a = lab.host("a", lab.net("10.1.0.0/24"))
    b = lab.host("b", lab.net("10.2.0.0/24"))
    assert a.ping(b.address) is None


def test_each_host_has_a_run_directory_of_its_own(lab: Lab) -> None:
    net = lab.net("10.0.0.0/24")
    a, b = lab.host("a", net), lab.host("b", net)
    a.sh("mkdir /run/edgeagent; echo here >/run/edgeagent/agent.sock")
    assert (a.directory / "run/edgeagent/agent.sock").read_text() == "here\n"
    assert b.run("ls", "/run").stdout == ""
    assert not Path("/run/edgeagent/agent.sock").exists()


def test_two_labs_with_the_same_names_and_prefixes_do_not_meet(lab: Lab) -> None:
    a = lab.host("a", lab.net("10.0.0.0/24"))
    with Lab() as other:
        net = other.net("10.0.0.0/24")
        other.host("a", net)
        b = other.host("b", net)
        assert other.id != lab.id
        assert a.ping(b.address) is None


def test_run_reports_what_failed(lab: Lab) -> None:
    a = lab.host("a")
    with pytest.raises(LabError, match=r"a: sh -c 'echo oops; exit 3': exit code 3\noops"):
        a.run("sh", "-c", "echo oops; exit 3")
    with pytest.raises(LabTimeout, match="not within"):
        a.run("sleep", "60", timeout_s=0.2)
    assert a.run("cat", input="through").stdout == "through"
    assert sweep.processes_in([a.namespace]) == []


def test_a_program_is_watched_and_stopped(lab: Lab) -> None:
    a = lab.host("a")
    program = a.start("sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done", name="it")
    assert program.expect("rea(dy)")[1] == "dy"
    assert program.stop() == 7
    assert program.text().endswith("bye\n")
    with pytest.raises(LabError, match="it ended with 7 before 'more'"):
        program.expect("more")


def test_a_log_is_bounded_and_keeps_its_end(lab: Lab) -> None:
    a = lab.host("a")
    program = a.start("sh", "-c", f"head -c {3 * LOG_BYTES_MAX} /dev/zero | tr '\\0' '.'; echo; echo the end")
    assert program.wait() == 0
    program.expect("the end")
    assert LOG_BYTES_MAX // 2 < len(program.text()) <= 2 * LOG_BYTES_MAX
    assert program.tail(1) == "the end"


def test_bad_names_are_refused(lab: Lab) -> None:
    for name in ("", "A", "a/b", "../x", "a" * 40, "1a"):
        with pytest.raises(LabError, match="DNS label"):
            lab.host(name)
    lab.host("a")
    with pytest.raises(LabError, match="exists"):
        lab.host("a")


@pytest.mark.parametrize("way", ["exception", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_nothing_stays_however_a_lab_ends(way: str, subject: subprocess.Popen[str]) -> None:
    lab_id = started(subject)
    assert len(sweep.processes_in(sweep.namespaces_of(lab_id))) == 1
    if way == "exception":
        subject.communicate("\n", timeout=30)
    else:
        subject.send_signal(signal.Signals[way])
        subject.wait(30)
    until(lambda: not present(lab_id), 30, f"removal of {lab_id}")
    assert subject.returncode == {"exception": 1, "SIGINT": -2, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}[way]


def test_the_next_lab_clears_what_a_lab_and_its_warden_left(subject: subprocess.Popen[str]) -> None:
    lab_id = started(subject)
    warden = subprocess.run(["pgrep", "-f", f"sweep.py {lab_id}$"], capture_output=True, text=True, check=True)
    orphans = sweep.processes_in(sweep.namespaces_of(lab_id))
    os.kill(int(warden.stdout), signal.SIGKILL)
    subject.kill()
    subject.wait(30)
    assert lab_id in sweep.leftovers()
    with Lab():
        assert not present(lab_id)
        assert not any(sweep.is_alive(pid) for pid in orphans)


def test_a_living_lab_is_left_alone(lab: Lab, subject: subprocess.Popen[str]) -> None:
    lab_id = started(subject)
    assert lab_id not in sweep.leftovers()
    with Lab() as other:
        assert present(lab_id) and present(lab.id) and present(other.id)
    assert present(lab_id) and present(lab.id)
    assert not present(other.id)


@pytest.fixture
def subject() -> Iterator[subprocess.Popen[str]]:
    """A process with a lab, to be ended by the test."""
    if why := rights.missing():
        pytest.skip(why)
    command = [sys.executable, "-c", SUBJECT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as popen:
        yield popen
        popen.kill()


def started(subject: subprocess.Popen[str]) -> str:
    assert subject.stdout is not None
    return subject.stdout.readline().strip()


def present(lab_id: str) -> bool:
    return bool(sweep.namespaces_of(lab_id)) or sweep.directory_of(lab_id).exists()
