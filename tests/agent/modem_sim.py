"""A modem on a pseudo terminal: dialects, echo, lines cut anywhere, news in between, errors, garbage, hangs, and ports
that go away.

    python -m tests.agent.modem_sim quectel --link /tmp/modem   until it is ended
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
import tty
from collections.abc import Callable
from random import Random

COMMON = {
    "AT": [],
    "AT+CPIN?": ["+CPIN: READY"],
    "AT+CSQ": ["+CSQ: 20,99"],
    "AT+CESQ": ["+CESQ: 99,99,255,255,20,46"],
    "AT+CREG?": ["+CREG: 0,1"],
    "AT+CEREG?": ['+CEREG: 2,1,"1A2B","01C2D3E4",7'],
    "AT+COPS?": ['+COPS: 0,0,"Testnet Home",7'],
    "AT+CGDCONT?": ['+CGDCONT: 1,"IPV4V6","internet.test","0.0.0.0",0,0', '+CGDCONT: 2,"IPV4V6","ims"'],
    "AT+CCLK?": ['+CCLK: "26/11/26,15:04:05+04"'],
}
DIALECTS: dict[str, dict[str, list[str]]] = {
    "quectel": {
        "AT+CGMI": ["Quectel"],
        "AT+CGMM": ["EC25"],
        "AT+QNWINFO": ['+QNWINFO: "FDD LTE","26201","LTE BAND 3",1300'],
        'AT+QENG="servingcell"': [
            '+QENG: "servingcell","NOCONN","LTE","FDD",262,01,1C2D3E4,123,1300,3,5,5,1A2B,-97,-11,-66,12,-'
        ],
    },
    "quectel-5g": {
        "AT+CGMI": ["Quectel"],
        "AT+CGMM": ["RM520N-GL"],
        "AT+QNWINFO": [
            '+QNWINFO: "FDD LTE","26201","LTE BAND 7",3050',
            '+QNWINFO: "TDD NR5G","26201","NR5G BAND 78",630000',
        ],
        'AT+QENG="servingcell"': [
            '+QENG: "servingcell","NOCONN"',
            '+QENG: "LTE","FDD",262,01,1C2D3E4,123,3050,7,5,5,1A2B,-88,-9,-60,18,10,-,-',
            '+QENG: "NR5G-NSA",262,01,452,-90,12,-11,630000,78,12,1',
        ],
    },
    "simcom": {
        "AT+CGMI": ["SIMCOM INCORPORATED"],
        "AT+CGMM": ["SIMCOM_SIM7600E"],
        "AT+CPSI?": ["+CPSI: LTE,Online,262-01,0x1A2B,29507556,123,EUTRAN-BAND20,6300,5,5,-112,-1042,-730,14"],
    },
    "huawei": {
        "AT+CGMI": ["huawei"],
        "AT+CGMM": ["ME909s-120"],
        "AT^SYSINFOEX": ['^SYSINFOEX: 2,3,1,1,,6,"LTE",101,"LTE"'],
        "AT^HCSQ?": ['^HCSQ: "LTE",45,34,106,19'],
    },
    "u-blox": {
        "AT+CGMI": ["u-blox"],
        "AT+CGMM": ["SARA-R510S"],
        "AT+UCGED=2": [],
        "AT+UCGED?": ["+UCGED: 2", "6,4,262,01", "6300,20,50,50,e8fe,1a2d001,1,d60814d1,8001,01,28,31,13.75,3,1,10"],
    },
    "generic": {"AT+CGMI": ["Example"], "AT+CGMM": ["M2M-1"]},
}
NEWS = ("RING", "+CREG: 1", '+CEREG: 1,"1A2B","01C2D3E4",7', "^RSSI: 20", "+QIND: SMS DONE", '+CMTI: "ME",3', "RDY")


class ModemSim:
    """`port` is its path, a link that stays the same when the modem comes back. `answers` may be changed at any time;
    a command with None as its answer hangs, one that is missing is an ERROR. `asked` is what came."""

    def __init__(
        self,
        link: str,
        dialect: str = "quectel",
        *,
        echo: bool = True,
        split: bool = True,
        news: bool = True,
        seed: int = 1,
    ) -> None:
        self.port = link
        self.answers: dict[str, list[str] | None] = {**COMMON, **DIALECTS[dialect]}
        self.errors: dict[str, str] = {"AT+C5GREG?": "+CME ERROR: 100"}
        self.asked: list[str] = []
        self.garbage: Callable[[Random], bytes] | None = None
        self.written = 0
        self._echo, self._split, self._news = echo, split, news
        self._random = Random(seed)
        self._fds = (-1, -1)
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def __enter__(self) -> ModemSim:
        self.plug()
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()

    def plug(self) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        self._fds = (master, slave)
        os.set_blocking(master, False)
        if os.path.lexists(self.port):
            os.unlink(self.port)
        os.symlink(os.ttyname(slave), self.port)
        self._ending.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        if self._thread is None:
            return
        self._ending.set()
        self._thread.join(5.0)
        self._thread = None
        os.unlink(self.port)
        for fd in self._fds:
            os.close(fd)

    def _run(self) -> None:
        master, pending = self._fds[0], b""
        while not self._ending.is_set():
            if self.garbage is not None:
                self._write(self.garbage(self._random))
            readable, _, _ = select.select([master], [], [], 0.002 if self.garbage is not None else 0.02)
            if not readable:
                continue
            try:
                pending += os.read(master, 4_096)
            except OSError:
                continue
            *commands, pending = pending.split(b"\r")
            for command in commands:
                self._answer(command.decode("ascii", "replace").strip())

    def _answer(self, command: str) -> None:
        self.asked.append(command)
        if self._echo:
            self._write(command.encode() + b"\r\r\n")
        lines = self.answers.get(command, [])
        if command in self.answers and lines is None:
            return
        if self._news and self._random.random() < 0.5:
            self._write(f"\r\n{self._random.choice(NEWS)}\r\n".encode())
        if command not in self.answers:
            self._write(f"\r\n{self.errors.get(command, 'ERROR')}\r\n".encode())
            return
        for line in lines or ():
            self._write(f"\r\n{line}\r\n".encode())
            if self._news and self._random.random() < 0.3:
                self._write(f"\r\n{self._random.choice(NEWS)}\r\n".encode())
        self._write(b"\r\nOK\r\n")

    def _write(self, data: bytes) -> None:
        while data and not self._ending.is_set():
            size = self._random.randrange(1, 8) if self._split and self.garbage is None else len(data)
            try:
                count = os.write(self._fds[0], data[:size])
            except BlockingIOError:
                if self.garbage is not None:
                    return
                time.sleep(0.005)
                continue
            except OSError:
                return
            self.written += count
            data = data[count:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialect", choices=sorted(DIALECTS))
    parser.add_argument("--link", required=True)
    parser.add_argument("--garbage", action="store_true", help="bytes without an end, instead of answers")
    options = parser.parse_args()
    sim = ModemSim(options.link, options.dialect)
    if options.garbage:
        sim.garbage = lambda random: random.randbytes(4_096)
    with sim:
        print(sim.port, flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
    return 0


if __name__ == "__main__":
    sys.exit(main())
