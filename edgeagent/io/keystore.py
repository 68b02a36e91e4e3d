"""The state directory: what must survive a power cut, written so that a cut leaves the old or the new file, never none.

A file is `magic 4 ‖ version 4 ‖ body length 4 (big-endian) ‖ BLAKE2s-256 of (name ‖ 0 ‖ body) ‖ body`. It is
written beside its name, synced, renamed over it, and the directory is synced. A file that is torn, foreign or under
another file's name is told from a good one and reported as damaged; what that means is the caller's to decide, by file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import struct
from enum import Enum
from time import monotonic, sleep

from edgeagent.proto.flashmeter import FlashMeter

log = logging.getLogger("edgeagent")

MAGIC = b"edst"
VERSION = 1
_HEADER = struct.Struct(">4sII32s")
CACHE_DELAY_S = 2.0  # from the first change to its write
CACHE_INTERVAL_S = 60.0  # between two writes in the long run
ENTROPY_POLL_S = 0.25
ENTROPY_SAID_AGAIN_S = 60.0
CACHE_BURST = 8  # writes that may come sooner: a device that has just joined learns much at once


class StateFile(Enum):
    """name, and the most that it may hold, bytes"""

    IDENTITY = ("identity", 4_096)  # the device's keys and its MQTT password
    ADMISSION = ("admission", 131_072)  # network key, CA, brokers, first map: the device has joined
    CACHE = ("cache", 1_048_576)  # map, records, session epoch
    CLOCK = ("clock", 16)  # TAI64N reservation ns 8, time floor s 8
    LOCK = ("network-lock", 8_192)  # what is held of the network's lock; it outlives the admission
    TOKEN = ("token", 16_384)  # the join token, until it has been answered
    LEDGER = ("ledger", 32_768)  # bytes by uplink, cause, day and month
    BINDINGS = ("bindings", 8_192)  # how long the NATs that were met remember a silent UDP binding
    RESOLVER = ("resolver", 65_536)  # what this host's resolver was told of us, to be taken back
    ROUTES = ("routes", 8_192)  # what the device offers to route and what it uses
    ROUTING = ("routing", 16_384)  # what was changed in the kernel to route, and what it was before
    AEAD = ("aead", 8_192)  # how fast each AEAD is on this device
    UPDATE = ("update", 8_192)  # the first root that was named, and what was refused or given up
    SETTINGS = ("settings", 16_384)  # of the hub: confirmed ones, and those on trial
    COMMANDS = ("commands", 32_768)  # of the hub, so that none is done twice

    def __init__(self, filename: str, bytes_max: int) -> None:
        self.filename = filename
        self.bytes_max = bytes_max


class StateError(Exception):
    """The state directory cannot be used; the text says what and what to do."""


class StateDamaged(StateError):
    """A file is there and is not what was written."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: damaged: {why}")
        self.path = path


class Keystore:
    """One state directory, mode 0700, held by one process. `flash` counts what was written since the start."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self.flash = FlashMeter()
        self._lock_fd = -1
        self._last: dict[StateFile, bytes] = {}

    @property
    def flash_writes(self) -> int:
        return self.flash.writes

    def open(self) -> None:
        """Make, check and lock the directory. StateError when it is another's, open to others, or in use."""
        try:
            self._make()
            about = os.stat(self.directory)
            if about.st_uid != os.geteuid():
                raise StateError(f"{self.directory}: belongs to uid {about.st_uid}, not to uid {os.geteuid()}")
            if stat.S_IMODE(about.st_mode) & 0o077:
                os.chmod(self.directory, 0o700)
            self._lock()
            for name in os.listdir(self.directory):
                if name.endswith(".new"):  # a write that a power cut stopped
                    os.unlink(os.path.join(self.directory, name))
        except OSError as error:
            raise StateError(f"{self.directory}: {error.strerror}") from None

    def close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def path(self, file: StateFile) -> str:
        return os.path.join(self.directory, file.filename)

    def load(self, file: StateFile) -> bytes | None:
        """The body as last saved, None when there never was one. StateDamaged, or StateError when it cannot be read."""
        path = self.path(file)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StateDamaged(path, "it is a symbolic link") from None
            raise StateError(f"{path}: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StateDamaged(path, "it is not a file")
            data = _read_at_most(fd, _HEADER.size + file.bytes_max + 1)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from None
        finally:
            os.close(fd)
        body = _checked(path, file, data)
        self._last[file] = body
        return body

    def save(self, file: StateFile, body: bytes) -> None:
        """Durable when it returns. A body equal to the last one costs no write. OSError when the disk refuses."""
        if self._last.get(file) == body:
            return
        if len(body) > file.bytes_max:
            raise ValueError(f"{file.filename}: {len(body)} bytes, at most {file.bytes_max}")
        path = self.path(file)
        data = _HEADER.pack(MAGIC, VERSION, len(body), _digest(file, body)) + body
        self._last.pop(file, None)
        try:
            _write_synced(path + ".new", data)
            os.replace(path + ".new", path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".new")
            raise
        self.flash.book(monotonic(), len(data))
        _sync_directory(self.directory)
        self._last[file] = body

    def remove(self, file: StateFile) -> None:
        """Forget a file; no error when there is none."""
        self._last.pop(file, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(file))
            self.flash.book(monotonic(), 0)
            _sync_directory(self.directory)

    def _make(self) -> None:
        """mkdir -p; every new name is synced into its parent, or a power cut takes the whole directory with it."""
        missing = []
        path = self.directory
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            os.mkdir(path, 0o700 if path == self.directory else 0o755)
            _sync_directory(os.path.dirname(path))

    def _lock(self) -> None:
        fd = os.open(os.path.join(self.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StateError(f"{self.directory}: another agent is running on it") from None
        self._lock_fd = fd


class CacheWriter:
    """When to write the cache: soon after a change, but in the long run once per CACHE_INTERVAL_S at most.

    Inputs: `dirty(now)`, `written(now)`. Output: `poll_timeout()`, the moment at which to write, or None.
    """

    __slots__ = ("_due", "_paid_until")

    def __init__(self) -> None:
        self._due: float | None = None
        self._paid_until: float | None = None  # the writes so far, laid end to end at CACHE_INTERVAL_S each, end here

    def dirty(self, now: float) -> None:
        if self._due is None:
            self._due = now + CACHE_DELAY_S
            if self._paid_until is not None:
                self._due = max(self._due, self._paid_until - (CACHE_BURST - 1) * CACHE_INTERVAL_S)

    def written(self, now: float) -> None:
        self._due = None
        self._paid_until = max(now, self._paid_until or now) + CACHE_INTERVAL_S

    def poll_timeout(self) -> float | None:
        return self._due


def entropy(size: int) -> bytes:
    """Key material from the kernel. Waits until its pool is ready, which on a first boot can take long, and says so:
    keys that could be guessed would be worse than none."""
    data = b""
    began = said = 0.0
    while len(data) < size:
        try:
            data += os.getrandom(size - len(data), os.GRND_NONBLOCK)
        except BlockingIOError:
            now = monotonic()
            began = began or now
            if not said or now - said >= ENTROPY_SAID_AGAIN_S:
                said = now
                log.warning(
                    "waiting for the kernel's random numbers since %.0f s: no keys are made before. A board with a "
                    "hardware generator needs its driver (ls /sys/class/misc/hw_random); others need jitterentropy "
                    "or a seed kept over boots (systemd-random-seed; OpenWrt: urngd)",
                    now - began,
                )
            sleep(ENTROPY_POLL_S)
    if said:
        log.info("random numbers are there after %.0f s", monotonic() - began)
    return data


def _digest(file: StateFile, body: bytes) -> bytes:
    return hashlib.blake2s(file.filename.encode() + b"\0" + body).digest()


def _checked(path: str, file: StateFile, data: bytes) -> bytes:
    if len(data) < _HEADER.size:
        raise StateDamaged(path, f"{len(data)} bytes long")
    magic, version, length, digest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise StateDamaged(path, "no state file of this program")
    if version != VERSION:
        raise StateDamaged(path, f"format {version}, this program knows {VERSION}")
    body = data[_HEADER.size :]
    if length != len(body):
        raise StateDamaged(path, f"{length} bytes expected, {len(body)} found")
    if digest != _digest(file, body):
        raise StateDamaged(path, "its checksum is wrong")
    return body


def _read_at_most(fd: int, size: int) -> bytes:
    chunks = []
    while size > 0:
        chunk = os.read(fd, min(size, 65_536))
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _write_synced(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
