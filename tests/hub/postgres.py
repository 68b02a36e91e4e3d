"""A PostgreSQL server of the tests' own: in a directory, on a unix socket, without a care for power cuts."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

SERVER_USER = "nobody"  # it refuses to be root
ADMIN = "hub"
_numbers = itertools.count()


def binaries() -> Path:
    """Where `initdb` and `pg_ctl` are. Skips the test where there are none."""
    on_path = shutil.which("pg_ctl")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    return found[-1].parent


class PostgresServer:
    """Runs from the beginning; `database` makes one that is empty, or a copy of another."""

    def __init__(self) -> None:
        self._bin = binaries()
        # Of a run that has the rest in memory, a gigabyte in the end: a database a test.
        self.directory = Path(tempfile.mkdtemp(prefix="edgemesh-pg-", dir=os.environ.get("EDGEMESH_TEST_DISK")))
        if os.geteuid() == 0:
            shutil.chown(self.directory, SERVER_USER)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", ADMIN, "-E", "UTF8", "--no-sync", "--no-locale")
        options = f"-k {self.directory} -c listen_addresses= -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", str(self.directory / "log"), "-w", "start")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def url(self, name: str) -> str:
        return f"postgresql://{ADMIN}@/{name}?host={self.directory}"

    def database(self, template: str = "template0") -> str:
        """The name of a new one."""
        name = f"test{next(_numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", f"--reuid={SERVER_USER}", "--clear-groups", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", stdin=subprocess.DEVNULL)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
