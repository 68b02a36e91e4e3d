"""What a relay keeps of one hub: its keys there, its admission, who was cut off. With it it serves without the hub."""

from __future__ import annotations

import logging
from collections import deque

from edgeagent.io.keystore import CacheWriter, Keystore, StateDamaged, StateError, StateFile, entropy
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import STAMP
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.epochs import Epochs
from edgeagent.proto.identity import Admission, Identity
from edgeagent.proto.refusals import ControlError
from edgeagent.proto.schema import Blob, Fields, List, Uint

log = logging.getLogger("edgerelay")

GONE_MAX = 4_096  # words of devices that were cut off, the newest ones; the hub says all of them again
GONE_BYTES_MAX = 900_000  # all of them, so that the file holds them
_SAVED = Fields({"v": Uint(1, 1), "e": STAMP, "gone": List(Blob(1_024), GONE_MAX)})
_START_AGAIN = "and start again with a token of `edgehub relays invite`"


class HubStore:
    """One network's folder. Raises StateError when it cannot be used; a disk that refuses later is said, and no more.

    `save_if_due` at `poll_timeout()`.
    """

    def __init__(self, directory: str, network: str, crypto: Crypto) -> None:
        self._crypto = crypto
        self._network = network
        self._keystore = Keystore(directory)
        self._keystore.open()
        self._writer = CacheWriter()
        self._gone_bytes = 0
        try:
            self.admission = self._load_admission()
            self.identity = self._load_identity()
            self._check_map()
            self.epochs, self.gone = self._load_rest()
        except StateError:
            self._keystore.close()
            raise

    def close(self) -> None:
        self._keystore.close()

    def keep_admission(self, admission: Admission) -> None:
        self.admission = admission
        self._save(StateFile.ADMISSION, admission.encode())

    def forget_admission(self) -> None:
        """The keys stay: with a new token the relay comes back as the one that it was."""
        self.admission = None
        try:
            self._keystore.remove(StateFile.ADMISSION)
        except OSError as error:
            log.error("%s: not removed: %s", self._keystore.path(StateFile.ADMISSION), error.strerror)

    def keep_epochs(self, now: float) -> None:
        """At once: what is signed in an epoch that a power cut forgets could never be followed by more."""
        self._save(StateFile.CACHE, encode({"v": 1, "e": self.epochs.reserved, "gone": list(self.gone)}))
        self._writer.written(now)

    def keep_gone(self, now: float, data: bytes) -> None:
        if data in self.gone:
            return
        self.gone.append(data)
        self._gone_bytes += len(data)
        while len(self.gone) > GONE_MAX or self._gone_bytes > GONE_BYTES_MAX:
            self._gone_bytes -= len(self.gone.popleft())
        self._writer.dirty(now)

    def poll_timeout(self) -> float | None:
        return self._writer.poll_timeout()

    def save_if_due(self, now: float) -> None:
        due = self._writer.poll_timeout()
        if due is not None and due <= now:
            self.keep_epochs(now)

    def save(self, now: float) -> None:
        """Whatever is not saved yet."""
        if self._writer.poll_timeout() is not None:
            self.keep_epochs(now)

    def _save(self, file: StateFile, body: bytes) -> None:
        try:
            self._keystore.save(file, body)
        except OSError as error:
            log.error("%s: not saved: %s", self._keystore.path(file), error.strerror)

    def _load_admission(self) -> Admission | None:
        path = self._keystore.path(StateFile.ADMISSION)
        try:
            data = self._keystore.load(StateFile.ADMISSION)
            admission = None if data is None else Admission.decode(self._crypto, data)
        except (StateDamaged, ControlError) as error:
            raise StateError(f"{error}. Remove {path} {_START_AGAIN}") from None
        if admission is not None and admission.network != self._network:
            raise StateError(f"{path}: it is of network {admission.network}. Remove it {_START_AGAIN}")
        return admission

    def _load_identity(self) -> Identity:
        """Made here only for a network that never took this relay in: lost keys are never made up for."""
        path = self._keystore.path(StateFile.IDENTITY)
        try:
            data = self._keystore.load(StateFile.IDENTITY)
            if data is not None:
                return Identity.decode(self._crypto, data)
            if self.admission is not None:
                raise StateError(f"{path}: not there. Remove {self._keystore.directory} {_START_AGAIN}")
        except (StateDamaged, ControlError) as error:
            if self.admission is not None:
                raise StateError(f"{error}. Remove {self._keystore.directory} {_START_AGAIN}") from None
            log.warning("%s; no hub knows these keys yet: making new ones", error)
        identity = Identity.create(self._crypto, entropy)
        try:
            self._keystore.save(StateFile.IDENTITY, identity.encode())
        except OSError as error:
            raise StateError(f"{path}: not saved: {error.strerror}") from None
        return identity

    def _check_map(self) -> None:
        if self.admission is None:
            return
        try:
            self.admission.open_map(self._crypto, self.identity.device_id)
        except ControlError as error:
            raise StateError(
                f"{self._keystore.path(StateFile.ADMISSION)}: {error}. Remove {self._keystore.directory} {_START_AGAIN}"
            ) from None

    def _load_rest(self) -> tuple[Epochs, deque[bytes]]:
        try:
            data = self._keystore.load(StateFile.CACHE)
            if data is not None:
                fields = _SAVED.check(decode(data, max_bytes=StateFile.CACHE.bytes_max), "cache")
                self._gone_bytes = sum(map(len, fields["gone"]))
                return Epochs(fields["e"]), deque(fields["gone"])
        except (StateDamaged, ControlError) as error:
            log.warning("%s; going on without it: the hub says all of it again", error)
        return Epochs(0), deque()
