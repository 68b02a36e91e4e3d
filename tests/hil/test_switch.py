"""The network's sockets, with two connections that are what QEMU's would be; and programs that are ended."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.utils import rdpcap

from hil.errors import CommandFailed, GuestStuck, MissingProgram
from hil.net.frames import Frames, encode
from hil.net.link import Fault
from hil.net.switch import Switch
from hil.programs import Program, run, until

FRAME = bytes(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="192.168.1.77"))


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Switch]:
    made = Switch(tmp_path, pcap=True)
    yield made
    made.close()


def plug(switch: Switch, name: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(5.0)
    link.connect(str(switch.path(name)))
    return link


def first(link: socket.socket) -> bytes:
    frames = Frames()
    while True:
        if found := frames.feed(link.recv(65536)):
            return found[0]


def test_frames_go_from_port_to_port_and_a_guest_that_starts_anew_has_its_port_again(
    switch: Switch, tmp_path: Path
) -> None:
    home = switch.home()
    options = switch.plug("a", home)
    assert options == f"stream,server=off,addr.type=unix,addr.path={switch.path('a')}"
    switch.plug("b", home)
    a, b = plug(switch, "a"), plug(switch, "b")
    a.sendall(encode(FRAME))
    assert first(b) == FRAME
    b.close()
    b = plug(switch, "b")
    a.sendall(encode(FRAME)[:10])
    a.sendall(encode(FRAME)[10:] + encode(FRAME))
    assert first(b) == FRAME
    switch.set_fault("b", Fault(down=True))
    counts = switch.counts()["b"]
    a.sendall(encode(FRAME))
    until(lambda: switch.counts()["b"]["down_dropped"] > counts["down_dropped"], 5.0, lambda: GuestStuck("no drop"))
    a.sendall(b"\xff" * 64)  # no stream of frames
    assert a.recv(10) == b""
    a.close()
    again = plug(switch, "a")
    switch.set_fault("b", Fault(delay_s=0.01))
    again.sendall(encode(FRAME))
    assert first(b) == FRAME
    again.close()
    b.close()
    assert [bytes(packet) for packet in rdpcap(str(tmp_path / "a.pcap"))][:2] == [FRAME, FRAME]


def test_nothing_is_left_of_a_switch(tmp_path: Path) -> None:
    switch = Switch(tmp_path)
    switch.plug("a", switch.home("symmetric"))
    switch.close()
    assert list(tmp_path.glob("*.port")) == []


def test_a_program_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    script = "sleep 60 & echo $!; trap '' TERM; wait; sleep 60"
    program = Program("sh", ["sh", "-c", script], tmp_path / "log")
    child = until(lambda: program.tail().strip(), 5.0, lambda: GuestStuck("said nothing"))
    program.kill()
    assert program.code == -9
    until(lambda: not Path(f"/proc/{child}/cwd").exists(), 5.0, lambda: GuestStuck("its child lives"))
    program.stop()


def test_commands_that_fail_say_how() -> None:
    assert run([sys.executable, "-c", "print(1)"], 10.0) == "1\n"
    with pytest.raises(CommandFailed, match=r"ended with 3: why"):
        run(["sh", "-c", "echo why >&2; exit 3"], 10.0)
    with pytest.raises(CommandFailed, match="not done within"):
        run(["sleep", "10"], 0.1)
    with pytest.raises(MissingProgram, match="no-such-program is not here"):
        run(["no-such-program"], 1.0)


def test_the_command_line_teaches_and_refuses() -> None:
    words = [sys.executable, "-m", "hil"]
    done = subprocess.run([*words, "list"], capture_output=True, text=True, check=True)
    assert "qemu-arm64" in done.stdout
    done = subprocess.run([*words, "smoke", "--guests", "vax,arm64"], capture_output=True, text=True)
    assert done.returncode == 1 and "'vax': no such machine; known are arm64" in done.stderr
    done = subprocess.run([*words, "smoke", "--guests", "arm64," * 4 + "arm64"], capture_output=True, text=True)
    assert done.returncode == 1 and "at most 4" in done.stderr
