"""Consoles on serial ports, by pyserial: of this host, by RFC 2217, or as bare bytes over TCP."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from hil.console import Console
from hil.errors import DeadPort, HilError
from hil.rigs.rigfile import Item

READ_S = 0.2  # how long a close waits for the reader
WRITE_S = 10.0
CONNECT_S = 10.0


class SerialLink:
    """A port that is open. What pyserial raises is an OSError already."""

    def __init__(self, url: str, speed: int, txdelay_s: float = 0.0) -> None:
        """Raises DeadPort."""
        try:
            import serial
        except ImportError:
            raise HilError("serial ports are spoken to with pyserial: pip install 'edgemesh[hil]'") from None
        self._ended = threading.Event()
        self._delay_s = txdelay_s
        # Two programs at one port each get half of what it says. Neither is known of ports behind a network.
        local = {} if "://" in url else {"exclusive": True, "write_timeout": WRITE_S}
        try:
            self._port = serial.serial_for_url(url, speed, timeout=READ_S, **local)
        except (OSError, ValueError) as error:
            raise DeadPort(f"{url}: {error}. {_hint(url)}") from None

    def recv(self, size: int, /) -> bytes:
        while not self._ended.is_set():
            waiting = self._port.in_waiting  # 0 where it cannot be told
            if data := self._port.read(min(size, max(1, waiting))):
                return bytes(data)
        return b""

    def sendall(self, data: bytes, /) -> None:
        if not self._delay_s:
            self._port.write(data)
            return
        for at in range(len(data)):
            self._port.write(data[at : at + 1])
            time.sleep(self._delay_s)

    def shutdown(self, how: int, /) -> None:
        self._ended.set()

    def close(self) -> None:
        self._ended.set()
        self._port.close()


def url_of(resource: Item) -> str:
    """As pyserial wants it."""
    if resource.kind == "RawSerialPort":
        return str(resource.values["port"])
    scheme = "rfc2217" if resource.values["protocol"] == "rfc2217" else "socket"
    host = resource.values["host"]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{resource.values['port']}"


def open_console(name: str, resource: Item, log: Path, txdelay_s: float = 0.0) -> Console:
    """Raises DeadPort."""
    log.parent.mkdir(parents=True, exist_ok=True)
    link = SerialLink(url_of(resource), resource.values["speed"], txdelay_s)
    return Console(name, link, log, lambda: True)


def _hint(url: str) -> str:
    if "://" in url:
        return "Is the terminal server up, and nobody else connected?"
    path = Path(url)
    if not path.exists():
        return "Is it plugged in? Those that are: ls /dev/serial/by-id"
    return "Does another program have it, and may this user open it (group dialout)?"
