"""The hub's state directory: which file is what, who may open it, and that one hub runs at a time."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub.core.model import HubError

DEFAULT = Path("/var/lib/edgehub")
VARIABLE = "EDGEHUB_STATE"


class State:
    """Paths in one state directory."""

    __slots__ = ("directory",)

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    @property
    def database(self) -> Path:
        """Everything worth keeping, secrets too: 0600."""
        return self.directory / "hub.db"

    @property
    def server(self) -> Path:
        """The URL of the database, where it is on a server; secrets may be in it: 0600."""
        return self.directory / "database.url"

    @property
    def broker(self) -> Path:
        """Made anew at each start, but for the broker's sessions."""
        return self.directory / "broker"

    @property
    def external(self) -> Path:
        """What the operator of an external broker copies there."""
        return self.directory / "external"

    @property
    def poke(self) -> Path:
        return self.directory / "hub.poke"

    @property
    def live(self) -> Path:
        """Sockets of those who want to hear of changes: see `hub.io.live`."""
        return self.directory / "live"

    @property
    def updates(self) -> Path:
        """The repository of updates: `metadata/` and `targets/`, which devices fetch, and `keys/`, 0700."""
        return self.directory / "updates"

    @property
    def lock(self) -> Path:
        return self.directory / "serve.lock"

    @property
    def status(self) -> Path:
        """What the running hub says of itself; JSON."""
        return self.directory / "status.json"

    def make(self) -> None:
        """The directory. Root's can be passed through, because the broker below runs as somebody else."""
        try:
            self.directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HubError(
                f"{self.directory}: cannot be made ({error.strerror}). "
                "Run as its owner, or choose another by --state-dir"
            ) from error

    def database_url(self) -> str:
        """ "" when the database is a file here."""
        try:
            return self.server.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def save_server(self, url: str) -> None:
        with self.new_file(self.server) as new:
            with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                file.write(url + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(new, self.server)

    @contextmanager
    def new_file(self, beside: Path) -> Iterator[Path]:
        """A name for a file that is not finished; whatever is left there is removed."""
        new = beside.with_name(f"{beside.name}.{secrets.token_hex(4)}.new")
        try:
            yield new
        finally:
            for suffix in ("", "-wal", "-shm"):
                new.with_name(new.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the lock of the one hub that runs here. Raises HubError when another has it."""
        descriptor = os.open(self.lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HubError(f"{self.directory}: a hub is running here already. Stop it first") from None
            yield
        finally:
            os.close(descriptor)

    def is_running(self) -> bool:
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_status(self, status: dict[str, Any]) -> None:
        new = self.status.with_suffix(".new")
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(status, file)
        new.replace(self.status)

    def read_status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = json.loads(self.status.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return status
