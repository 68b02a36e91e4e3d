"""Mosquitto as the hub's child: its files, its start, its adoption by a hub that was killed, its restart when it dies.

The broker outlives a hub that dies: devices stay connected, and what they say waits in the hub's session. A new hub
knows the broker by its command line, which names a configuration file that is named by its own content.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import logging
import os
import pwd
import resource
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hub.core.model import HubError

STOP_TIMEOUT_S = 10.0  # it saves its sessions when it stops
RESTART_FIRST_S, RESTART_LAST_S = 1.0, 30.0
STEADY_S = 60.0  # a broker that ran this long has not failed at its start
LOG_BYTES_MAX = 1 << 20
LOG_BYTES_KEPT = 64 << 10
CONNECTIONS_MAX = 100_000
FIRST_FREE_PORT = 1024  # from here on anybody may listen
_SPARE_FILES = 64

_INSTALL = "Install Mosquitto 2.0 or newer with its dynamic security plugin (Debian, OpenWrt: package mosquitto)"
_PROGRAM_PLACES = ("/usr/sbin", "/usr/local/sbin")  # not on the path of everybody
_PLUGIN_PLACES = (
    "/usr/lib/*/mosquitto_dynamic_security.so",
    "/usr/lib/mosquitto_dynamic_security.so",
    "/usr/lib64/mosquitto_dynamic_security.so",
    "/usr/local/lib/mosquitto_dynamic_security.so",
)
SESSIONS_FILE = "sessions.db"
_LIMITS = f"""\
allow_anonymous false
allow_zero_length_clientid false
set_tcp_nodelay true
sys_interval 0
persistence true
persistence_file {SESSIONS_FILE}
autosave_interval 0
persistent_client_expiration 90d
max_keepalive 3600
max_packet_size 98304
max_inflight_messages 32
max_queued_messages 2000
max_queued_bytes 4194304
connection_messages false
log_dest stderr
log_timestamp_format %Y-%m-%dT%H:%M:%S
log_type error
log_type warning
"""

log = logging.getLogger("edgehub.broker")


@dataclass(slots=True, frozen=True)
class Files:
    """What the broker reads. `accounts` gives the plugin's file when the broker is to start."""

    certificate_pem: str
    key_pem: str
    access_list: str
    accounts: Callable[[], bytes]


class MosquittoChild:
    """`start` adopts a running broker or starts one. Poll `fileno()`: readable means that it has ended, then call
    `handle_end`; call `tick` when `next_at` has come; `stop` ends it for good. Raises HubError."""

    def __init__(self, directory: Path, host: str, port: int, files: Files) -> None:
        self._directory = directory
        self._host = host  # "" = all addresses
        self._port = port
        self._files = files
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_at = 0.0
        self._backoff_s = RESTART_FIRST_S
        self.pid = 0  # 0 = none runs
        self.next_at: float | None = None
        self.restarts = 0

    def start(self, now: float) -> bool:
        """True when a broker of the same configuration was already there."""
        running = find_broker(self._directory)
        plan = self._plan()
        if running is not None:
            pid, configuration = running
            with contextlib.suppress(ProcessLookupError):
                self._watch(pid, now)
            if self.pid and configuration == plan.configuration:
                log.info("broker: adopted, process %d", pid)
                return True
            log.info("broker: process %d runs with another configuration and is replaced", pid)
            self.stop()
        self._check_port()
        self._spawn(plan, now)
        return False

    def fileno(self) -> int:
        """A pidfd; -1 when none runs."""
        return self._pidfd

    def handle_end(self, now: float) -> None:
        """The broker has ended by itself: it is started again, at first soon."""
        status = self._forget()
        if now - self._started_at >= STEADY_S:
            self._backoff_s = RESTART_FIRST_S
        self.next_at = now + self._backoff_s
        said = self.last_words()
        log.warning("broker: ended (%s), starts again in %.0f s. It said: %s", status, self._backoff_s, said)
        self._backoff_s = min(2 * self._backoff_s, RESTART_LAST_S)

    def tick(self, now: float) -> None:
        """Start it again when that is due, and keep its log small."""
        if self.next_at is not None and self.next_at <= now:
            self.next_at = None
            self.restarts += 1
            self._spawn(self._plan(), now)
        self._trim_log()

    def restart(self, now: float, why: str) -> None:
        """With accounts and configuration made anew."""
        log.warning("broker: restarted, because %s", why)
        self.stop()
        self.restarts += 1
        self._spawn(self._plan(), now)

    def stop(self) -> None:
        """End it, and wait until it has saved its sessions."""
        self.next_at = None
        if self._pidfd < 0:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, how)
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(STOP_TIMEOUT_S * 1000):
                if how == signal.SIGTERM:
                    self._saved_mark.touch()
                break
        self._forget()

    def detach(self) -> None:
        """Let go of it without ending it."""
        self._forget(reap=False)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = _tail(self._log_path, 1024).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")

    @property
    def _log_path(self) -> Path:
        return self._directory.with_name("broker.log")  # not in a directory that the broker may change

    @property
    def _saved_mark(self) -> Path:
        """There while the sessions on disk are those that the broker ended with."""
        return self._directory / "sessions.saved"

    def _plan(self) -> _Plan:
        return _Plan(self._directory, self._host, self._port, self._files)

    def _spawn(self, plan: _Plan, now: float) -> None:
        plan.write()
        if not self._saved_mark.exists():
            # After a crash the file is up to a minute old: a device would be told that its session is there, while what
            # was said to it in that minute (a removal, say) is not. Without sessions every device asks anew.
            (self._directory / SESSIONS_FILE).unlink(missing_ok=True)
        self._saved_mark.unlink(missing_ok=True)
        descriptor = os.open(self._log_path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._child = subprocess.Popen(
                [*plan.prefix, plan.program, "-c", str(plan.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=self._directory,
                start_new_session=True,  # Ctrl-C at the hub's terminal is for the hub
            )
        except OSError as error:
            raise HubError(f"{plan.program}: it cannot be started ({error}). {_INSTALL}") from error
        finally:
            os.close(descriptor)
        self._watch(self._child.pid, now)
        log.info("broker: started, process %d, port %d", self._child.pid, self._port)

    def _watch(self, pid: int, now: float) -> None:
        self._pidfd = os.pidfd_open(pid)
        self.pid = pid
        self._started_at = now

    def _forget(self, *, reap: bool = True) -> str:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd, self.pid = -1, 0
        child, self._child = self._child, None
        if child is None:
            return "it was adopted"
        if not reap:
            child.returncode = 0  # it is nobody's child that we wait for any more
            return ""
        code = child.wait()
        return f"exit code {code}" if code >= 0 else f"signal {-code}"

    def _check_port(self) -> None:
        """Say at once, and in words, what would make the broker fail."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                what = f"{self._host or '*'}:{self._port}"
                if error.errno == errno.EADDRINUSE:
                    raise HubError(
                        f"broker: {what} is in use by another program. Stop that one (`ss -ltnp` names it)"
                    ) from error
                raise HubError(f"broker: cannot listen on {what} ({error.strerror})") from error

    def _trim_log(self) -> None:
        """The broker appends to its log, so it may be cut behind its back."""
        with contextlib.suppress(FileNotFoundError):
            if self._log_path.stat().st_size > LOG_BYTES_MAX:
                kept = _tail(self._log_path, LOG_BYTES_KEPT)
                os.truncate(self._log_path, 0)
                with self._log_path.open("ab") as file:
                    file.write(kept.partition(b"\n")[2])


def find_broker(directory: Path) -> tuple[int, Path] | None:
    """(process id, its configuration file) of a broker that was started in `directory`."""
    prefix = os.fsencode(directory / "mosquitto-")
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            arguments = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
            if len(arguments) >= 3 and arguments[1] == b"-c" and arguments[2].startswith(prefix):
                return int(process), Path(os.fsdecode(arguments[2]))
    return None


def find_program() -> str:
    """Raises HubError that says what to install."""
    places = (os.environ.get("PATH", os.defpath), *_PROGRAM_PLACES)
    program = shutil.which("mosquitto", path=os.pathsep.join(places))
    if program is None:
        raise HubError(f"mosquitto: the broker is not installed. {_INSTALL}")
    return program


def find_plugin() -> str:
    """Raises HubError that says what to install."""
    for place in _PLUGIN_PLACES:
        if found := sorted(glob.glob(place)):
            return found[0]
    raise HubError(f"mosquitto_dynamic_security.so: the broker's plugin is not installed. {_INSTALL}")


class _Plan:
    """Everything for one start. The configuration's name holds a hash of all but the accounts."""

    def __init__(self, directory: Path, host: str, port: int, files: Files) -> None:
        self.program = find_program()
        self._directory = directory
        self._files = files
        self._user = _run_as(directory)
        self.prefix = _keep_port(self._user) if port < FIRST_FREE_PORT else []
        listener = f"listener {port} {host}".rstrip()
        self._text = "\n".join(
            (
                listener,
                f"certfile {directory}/server.pem",
                f"keyfile {directory}/server.key",
                "tls_version tlsv1.2",
                f"max_connections {_connections_max()}",
                f"plugin {find_plugin()}",
                f"plugin_opt_config_file {directory}/accounts.json",
                f"acl_file {directory}/acl",
                f"persistence_location {directory}/",
                *([f"user {self._user}"] if self._user else []),
                _LIMITS,
            )
        )
        content = "\0".join((self._text, files.certificate_pem, files.key_pem, files.access_list))
        digest = hashlib.blake2s(content.encode(), digest_size=8).hexdigest()
        self.configuration = directory / f"mosquitto-{digest}.conf"

    def write(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for old in self._directory.glob("mosquitto-*.conf"):
            old.unlink()
        for name, content in (
            ("server.pem", self._files.certificate_pem.encode()),
            ("server.key", self._files.key_pem.encode()),
            ("acl", self._files.access_list.encode()),
            ("accounts.json", self._files.accounts()),
            (self.configuration.name, self._text.encode()),
        ):
            path = self._directory / name
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(content)
        if self._user:
            owner = pwd.getpwnam(self._user)
            for path in (self._directory, *self._directory.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _run_as(directory: Path) -> str:
    """The user that the broker drops to when the hub is root: the weakest that can reach the files. "" = no change."""
    if os.geteuid() != 0:
        return ""
    reachable = all(parent.stat().st_mode & 0o001 for parent in directory.parents)
    for name in ("mosquitto", "nobody") if reachable else ():
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            if _is_mapped("uid", user.pw_uid) and _is_mapped("gid", user.pw_gid):
                return user.pw_name
    return "root"


def _keep_port(user: str) -> list[str]:
    """What makes a command listen below 1024 as `user`: Mosquitto gives up root before it listens."""
    if user in ("", "root"):
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise HubError("setpriv: not found, and a broker below port 1024 needs it. Install util-linux, or use 8883")
    keep = "+net_bind_service"
    rights = [f"--inh-caps=-all,{keep}", f"--ambient-caps={keep}", f"--bounding-set=-all,{keep}", "--no-new-privs"]
    return [setpriv, f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups", *rights, "--"]


def _is_mapped(kind: str, number: int) -> bool:
    """Whether a user or group exists in this user namespace; a rootless one often has root alone."""
    ranges = [line.split() for line in Path(f"/proc/self/{kind}_map").read_text().splitlines()]
    return any(int(first) <= number < int(first) + int(count) for first, _, count in ranges)


def _connections_max() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(soft, CONNECTIONS_MAX) - _SPARE_FILES)


def _tail(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read()
    except FileNotFoundError:
        return b""
