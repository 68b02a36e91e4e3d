"""What this device holds of its network's lock, on flash and by its settings. Loaded only where there is one."""

from __future__ import annotations

import logging
from base64 import b64decode
from typing import TYPE_CHECKING

from edgeagent.io.keystore import StateError, StateFile
from edgeagent.proto.lock import Lock
from edgeagent.proto.refusals import ControlError

if TYPE_CHECKING:
    from edgeagent.context import Context
    from edgeagent.proto.identity import Admission
    from edgeagent.proto.token import Token

log = logging.getLogger("edgeagent")


def load(context: Context, admission: Admission) -> Lock | None:
    """What was kept for this network, and else the keys of the setting `lock`. Keys named there that were not named
    before begin anew with them: whoever sets them is at home on this device."""
    given = [b64decode(text) for text in context.settings.lock.split(",") if text]
    lock = _kept(context, admission.network)
    if given and (lock is None or lock.given != given):
        lock = Lock(context.crypto, admission.network, given, given=True)
        save(context, lock)
    return lock


def pin(context: Context, admission: Admission, token: Token) -> None:
    """Before the first map counts: a token that names lock keys says what to trust. What is held already stays."""
    if _kept(context, admission.network) is None:
        save(context, Lock(context.crypto, admission.network, token.lock_keys))


def save(context: Context, lock: Lock) -> None:
    """Raises StateError: a lock that the next start has forgotten is none."""
    if not context.save(StateFile.LOCK, lock.encode()):
        raise StateError("what the network's lock says could not be kept, and the hub could take it back at each start")


def _kept(context: Context, network: str) -> Lock | None:
    data = context.load_or_none(StateFile.LOCK)
    if data is None:
        return None
    try:
        lock = Lock.decode(context.crypto, data)
    except ControlError as error:
        context.damaged_files += 1
        log.warning("%s: %s; going on without it", context.keystore.path(StateFile.LOCK), error)
        return None
    return lock if lock.network == network else None
