"""Drivers: power by HTTP, uhubctl and commands, serial ports, cards, ssh. Other people's programs are stood in for by
scripts that write down how they were called."""

from __future__ import annotations

import os
import pty
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.errors import (
    CommandFailed,
    DeadPort,
    GuestStuck,
    HilError,
    MissingProgram,
    NotReached,
    PowerFailed,
    StorageFailed,
)
from hil.rigs import storage
from hil.rigs.external import program
from hil.rigs.network import SSH
from hil.rigs.power import ExternalPower, HTTPPower, USBPower
from hil.rigs.rigfile import Item
from hil.rigs.schema import KINDS
from hil.rigs.serialport import SerialLink, open_console, url_of
from hil.rigs.storage import CardFile, SDMux, USBBoot, side_of
from hil.sim.pdu import Pdu

SECRET = "Bearer swordfish-and-more"


class Outlet:
    def __init__(self) -> None:
        self.is_on = False

    def on(self) -> None:
        self.is_on = True

    def off(self) -> None:
        self.is_on = False


@pytest.fixture
def outlet() -> Outlet:
    return Outlet()


@pytest.fixture
def pdu(outlet: Outlet) -> Iterator[Pdu]:
    made = Pdu({"pump": outlet}, SECRET)
    yield made
    made.close()


def http(folder: Path, url: str, **more: Any) -> HTTPPower:
    secret = folder / "authorization"
    if not secret.exists():
        secret.touch(mode=0o600)
        secret.write_text(SECRET + "\n")
    values = {name: key.default for name, key in KINDS["HTTPPowerPort"].keys.items()}
    values |= {"url": f"{url}/outlet/{{outlet}}/{{state}}", "outlet": "pump", "authorization_file": "authorization"}
    return HTTPPower("pump", values | more, 0.0, folder)


def test_power_by_http_is_switched_and_its_state_asked_for(tmp_path: Path, pdu: Pdu, outlet: Outlet) -> None:
    power = http(tmp_path, pdu.url, state_url=pdu.url + "/outlet/{outlet}", state_pattern='"on": true')
    assert power.state() is False
    power.on()
    assert power.state() is True
    power.cycle()
    assert power.state() is True
    power.off()
    assert not outlet.is_on and power.state() is False
    assert http(tmp_path, pdu.url).state() is None


def test_what_goes_wrong_with_http_is_named_without_the_secret(tmp_path: Path, pdu: Pdu) -> None:
    with pytest.raises(PowerFailed, match=r"POST http://127\.0\.0\.1:\d+/outlet/barn/on: answered 404"):
        http(tmp_path, pdu.url, outlet="barn").on()
    (tmp_path / "authorization").write_text("Bearer wrong-secret")
    with pytest.raises(PowerFailed, match="answered 401") as failed:
        http(tmp_path, pdu.url).on()
    assert "wrong-secret" not in str(failed.value)
    (tmp_path / "authorization").chmod(0o644)
    with pytest.raises(PowerFailed, match=r"others may read it. chmod 600"):
        http(tmp_path, pdu.url).on()
    (tmp_path / "authorization").unlink()
    power = http(tmp_path, pdu.url)
    (tmp_path / "authorization").unlink()
    with pytest.raises(PowerFailed, match=r"authorization_file .*No such file"):
        power.on()
    with pytest.raises(PowerFailed, match="a password in a URL ends up in logs"):
        http(tmp_path, "http://admin:swordfish@127.0.0.1")
    with pytest.raises(PowerFailed, match="want http:// or https://, not ftp"):
        http(tmp_path, "ftp://127.0.0.1")
    with pytest.raises(PowerFailed, match=r"ca_file none\.pem"):
        http(tmp_path, "https://127.0.0.1", ca_file="none.pem")
    pdu.close()
    with pytest.raises(PowerFailed, match=r"Connection refused. Is the power strip on"):
        http(tmp_path, pdu.url).on()


def test_a_redirect_would_take_the_secret_along_and_is_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked: list[bytes] = []

        def answer() -> None:
            link, _ = server.accept()
            with link:
                said = b""
                while b"\r\n\r\n{" not in said:
                    said += link.recv(65536)
                asked.append(said)
                link.sendall(b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/x\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PowerFailed, match="answered 302"):
            http(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}", body='{"on": {state}, "port": {}}').on()
        thread.join()
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert b"Authorization: Bearer swordfish-and-more" in head and body == b'{"on": on, "port": {}}'


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH; a program in it writes its words to NAME.log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def script(folder: Path, name: str, then: str = "") -> Path:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$*" >>"{folder}/{name}.log"\n{then}\n')
    path.chmod(0o755)
    return folder / f"{name}.log"


def test_usb_power_is_uhubctl(scripts: Path) -> None:
    log = script(scripts, "uhubctl", 'echo "Current status for hub 1-1.4"; echo "  Port 2: 0000 off"')
    power = USBPower("pump", {"sys_name": "1-1.4"}, 2, 0.0)
    power.cycle()
    assert power.state() is False
    assert log.read_text().splitlines() == ["-l 1-1.4 -p 2 -a off -r 5", "-l 1-1.4 -p 2 -a on", "-l 1-1.4 -p 2"]
    script(scripts, "uhubctl", "echo 'No compatible devices detected!'; exit 1")
    with pytest.raises(PowerFailed, match=r"No compatible devices.*Does the hub switch power \(-l 1-1\.4 -p 2\)"):
        power.on()
    with pytest.raises(PowerFailed, match=r"want \{sys_name: '1-1\.4'\}"):
        USBPower("pump", {"ID_PATH": "x"}, 2, 0.0)


def test_a_program_that_is_not_here_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgram, match="uhubctl is not here: apt-get install uhubctl"):
        USBPower("pump", {"sys_name": "1"}, 2, 0.0).on()
    with pytest.raises(MissingProgram, match="usbsdmux is not here: apt-get install usbsdmux"):
        program("usbsdmux")
    with pytest.raises(MissingProgram, match="rpiboot is not here: apt-get install rpiboot"):
        program("rpiboot")
    with pytest.raises(MissingProgram, match="ssh is not here: apt-get install openssh-client"):
        SSH("pump", {"address": "a", "username": "root", "port": 22}, None).run("true")


def test_power_by_commands_shows_none_of_their_words(scripts: Path) -> None:
    log = script(scripts, "relay", '[ "$1" != off ]')
    values = {
        "cmd_on": "relay on 'port 4' --key hush",
        "cmd_off": "relay off --key hush",
        "cmd_cycle": "",
        "delay": 0.0,
    }
    power = ExternalPower("pump", values)
    power.on()
    assert log.read_text() == "on port 4 --key hush\n" and power.state() is None
    with pytest.raises(PowerFailed, match=r"cmd_off \(relay\) ended with 1") as failed:
        power.cycle()
    assert "hush" not in str(failed.value)
    ExternalPower("pump", values | {"cmd_cycle": "relay cycle"}).cycle()
    assert log.read_text().endswith("cycle\n")
    with pytest.raises(PowerFailed, match="cmd_on: No closing quotation"):
        ExternalPower("pump", values | {"cmd_on": "relay '"}).on()


def port_of(**values: Any) -> Item:
    kind = "NetworkSerialPort" if "host" in values else "RawSerialPort"
    return Item(kind, 1, {"speed": 115200, **values})


def test_a_serial_port_says_hears_and_stays_silent(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    console = open_console("pump", port_of(port=os.ttyname(slave)), tmp_path / "pump/console.log")
    os.write(master, b"U-Boot 2025.01\r\nHit any key")
    console.expect("any key", 60.0)
    console.send("\n")
    assert os.read(master, 10) == b"\n"
    with pytest.raises(GuestStuck, match=r"no '=> ' within 0.1 s; it said last:\nU-Boot"):
        console.expect("=> ", 0.1)
    os.write(master, b"old ")
    console.expect("old ", 60.0)
    console.skip()
    with pytest.raises(GuestStuck):
        console.expect("U-Boot", 0.05)
    # A second program at the port would take half of what it says.
    with pytest.raises(DeadPort, match="Does another program have it"):
        SerialLink(os.ttyname(slave), 115200)
    console.close()
    assert "U-Boot 2025.01" in (tmp_path / "pump/console.log").read_text()
    os.close(master)
    os.close(slave)


def test_a_port_that_is_dead_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeadPort, match=r"/dev/ttyNONE: .*Is it plugged in"):
        open_console("pump", port_of(port="/dev/ttyNONE"), tmp_path / "log")
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    gone = port_of(host="127.0.0.1", port=number, protocol="raw")
    with pytest.raises(DeadPort, match=rf"socket://127\.0\.0\.1:{number}: .*Is the terminal server up"):
        open_console("pump", gone, tmp_path / "log")
    assert url_of(port_of(host="fd00::1", port=4002, protocol="rfc2217")) == "rfc2217://[fd00::1]:4002"
    master, slave = pty.openpty()
    tty.setraw(slave)
    console = open_console("pump", port_of(port=os.ttyname(slave)), tmp_path / "log2")
    with pytest.raises(GuestStuck, match="nothing at all: is it powered, and are the console's cable and speed right"):
        console.expect("login", 0.05)
    console.close()
    os.close(master)
    os.close(slave)


@pytest.mark.filterwarnings("ignore:set.*is deprecated:DeprecationWarning")  # of pyserial 3.5
@pytest.mark.parametrize("protocol", ["raw", "rfc2217"])
def test_serial_ports_behind_a_network(tmp_path: Path, protocol: str) -> None:
    import serial
    from serial import rfc2217

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.settimeout(60.0)

                class Wire:
                    """What a port manager writes to."""

                    def write(self, data: bytes) -> None:
                        link.sendall(data)

                if protocol == "rfc2217":  # it speaks first
                    telnet = rfc2217.PortManager(serial.serial_for_url("loop://", timeout=0), Wire())
                typed = b""
                while chunk := link.recv(1024):
                    typed += chunk if protocol == "raw" else b"".join(telnet.filter(chunk))
                    for line, answer in ((b"\n", b"login: "), (b"root\n", b"# ")):
                        if typed == line:
                            typed = b""
                            link.sendall(answer if protocol == "raw" else b"".join(telnet.escape(answer)))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = port_of(host="127.0.0.1", port=server.getsockname()[1], protocol=protocol)
        console = open_console(
            "pump", port, tmp_path / "console.log", txdelay_s=0.001 if protocol == "rfc2217" else 0.0
        )
        console.send("\n")
        console.expect("login: ", 60.0)
        console.send("root\n")
        console.expect("# ", 60.0)
        console.close()
        thread.join(60.0)


def test_a_file_for_a_card_is_written_by_edgeflash_and_is_the_devices_again(tmp_path: Path) -> None:
    image = tmp_path / "made.img"
    image.write_bytes(os.urandom(1 << 20))
    card = CardFile("pump", tmp_path / "pump.card", 4)
    said = card.write(image)
    assert (tmp_path / "pump.card").read_bytes()[: 1 << 20] == image.read_bytes()
    assert "1048576 bytes" in said and side_of(card.path) == storage.DUT
    with pytest.raises(StorageFailed, match="there is no image"):
        card.write(tmp_path / "none.img")
    assert side_of(card.path) == storage.HOST  # it is out of the device, as a real one would be
    with pytest.raises(StorageFailed, match=r"pump: edgeflash .*ended with 1: .*Take a larger card"):
        big = tmp_path / "big.img"
        big.write_bytes(bytes(5 << 20))
        card.write(big)


def test_a_mux_is_the_devices_again_though_no_card_came(
    tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "APPEAR_TIMEOUT_S", 0.1)
    log = script(scripts, "usbsdmux")
    control, image = tmp_path / "id-1234", tmp_path / "made.img"
    control.touch()
    image.touch()
    mux = SDMux("pump", {"control": str(control), "disk": str(tmp_path / "disk")})
    with pytest.raises(StorageFailed, match=r"pump: no disk appeared for .*disk within 0\.1 s. Is a card in it"):
        mux.write(image)
    assert log.read_text().splitlines() == [f"{control} host", f"{control} dut"]
    with pytest.raises(StorageFailed, match="no disk appeared"):
        SDMux("pump", {"control": str(control), "disk": ""}).write(image)
    control.unlink()
    with pytest.raises(StorageFailed, match="Is the mux plugged in"):
        mux.write(image)


def test_a_compute_module_is_off_again_whatever_rpiboot_says(
    tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch, outlet: Outlet
) -> None:
    monkeypatch.setattr(storage, "APPEAR_TIMEOUT_S", 0.1)
    log = script(scripts, "rpiboot", '[ -n "$1" ]')
    with pytest.raises(HilError, match="rpiboot"):
        USBBoot("pump", {"disk": str(tmp_path / "d"), "folder": ""}, outlet.on, outlet.off).write(tmp_path / "x")
    assert not outlet.is_on
    with pytest.raises(StorageFailed, match="no disk appeared"):
        USBBoot("pump", {"disk": str(tmp_path / "d"), "folder": "gadget"}, outlet.on, outlet.off).write(tmp_path / "x")
    assert log.read_text().splitlines() == ["", "-d gadget"] and not outlet.is_on


def test_ssh_asks_for_nothing_and_tells_its_own_failure_from_the_commands(scripts: Path, tmp_path: Path) -> None:
    log = script(scripts, "ssh", 'for last; do :; done; case $last in gone) exit 255;; *) exec sh -c "$last";; esac')
    network = SSH("pump", {"address": "pump.lan", "username": "root", "port": 2222}, tmp_path / "key")
    assert network.run("echo well") == "well\n"
    words = log.read_text()
    assert (
        "BatchMode=yes" in words
        and f"-i {tmp_path}/key" in words
        and words.endswith("-p 2222 -l root -- pump.lan echo well\n")
    )
    with pytest.raises(NotReached, match="pump: by ssh"):
        network.run("gone")
    with pytest.raises(CommandFailed, match=r"'exit 3'.*ended with 3"):
        network.run("exit 3")
