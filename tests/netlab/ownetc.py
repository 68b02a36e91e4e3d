"""An /etc of its own for a lab host, so that what is done to the resolver there is done to nobody else's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.netlab.host import Host
from tests.netlab.process import Process

_FILES = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group", "nsswitch.conf", "host.conf", "alternatives")
_BIND = 'mount --bind "$0" /etc && exec "$@"'


class OwnEtc:
    """`words` before a command make it see this /etc. `bin` comes first in its PATH: for stand-ins of programs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.path = host.directory / "etc"
        self.path.mkdir()
        for name in _FILES:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, self.path / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, self.path / name)
        (self.path / "hosts").write_text("127.0.0.1 localhost\n")
        self.resolv_conf = self.path / "resolv.conf"
        self.bin = host.directory / "bin"
        self.bin.mkdir()
        self.words = ["unshare", "--mount", "sh", "-ec", f'PATH="{self.bin}:$PATH"; {_BIND}', str(self.path)]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.host.run(*self.words, *command, check=check)

    def start(self, *command: str, name: str) -> Process:
        return self.host.start(*self.words, *command, name=name)

    def stand_in(self, program: str, script: str = "") -> Path:
        """A program that writes its arguments, a line each time, to the file returned, then does `script`."""
        log = self.host.directory / f"{program}.log"
        path = self.bin / program
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{log}\n{script}\n')
        path.chmod(0o755)
        return log
