"""Why the control plane refused something: named reasons, counted, and an error whose text names the field."""

from __future__ import annotations

from enum import Enum

from edgeagent.proto.errors import RemoteProtocolError


class ControlDrop(Enum):
    """Why a control message, or a packet that waited for one, was dropped; the value is its name in `status`."""

    TOO_LONG = "too-long"  # more bytes than a message of this kind may have
    NOT_CBOR = "not-cbor"  # not the subset of CBOR that docs/protocol.md allows
    BAD_BOX = "bad-box"  # a sealed box that does not open with our key on this topic
    BAD_SIGNATURE = "bad-signature"  # not signed by whom it must be
    BAD_FIELD = "bad-field"  # a field is missing, unknown, or not of its form
    WRONG_KIND = "wrong-kind"  # signed for another purpose
    WRONG_NETWORK = "wrong-network"  # signed for another network
    WRONG_SUBJECT = "wrong-subject"  # signed about, or for, another device
    REPLAYED = "replayed-message"  # (epoch, seq) not newer than the last one
    EXPIRED = "expired-object"  # past its not_after
    NOT_YET = "not-yet-valid"  # before its not_before
    UNKNOWN_TOPIC = "unknown-topic"  # a topic that this side never reads
    UNKNOWN_FEED = "unknown-feed"  # a feed of a device whose record is not held
    FEED_KEY = "feed-key"  # a feed that does not open: sealed with an older or a newer feed key
    TOMBSTONED = "tombstoned"  # a record that is not newer than its device's removal
    TABLE_FULL = "table-full"  # no room for a question: too many are under way
    UNRESOLVED_FULL = "unresolved-full"  # packets that waited for the hub gave way to newer ones
    UNRESOLVED_EXPIRED = "unresolved-expired"  # packets waited for an answer that did not come
    UNREACHABLE = "unreachable"  # packets to a destination that the hub does not know, or forbids
    STRANGER_FULL = "stranger-full"  # initiations of unknown keys gave way to newer ones
    STRANGER_REFUSED = "stranger-refused"  # initiations of a key that the hub does not know, or forbids
    PUBLISH_FULL = "publish-full"  # messages that nobody drained gave way to newer ones
    COMMAND_EXPIRED = "command-expired"  # a command of the hub that came after its end
    COMMAND_AGAIN = "command-again"  # a command that came before: it is answered again, and not done again
    COMMAND_REFUSED = "command-refused"  # a command that is unknown, wrong, not allowed here, or one too many
    BAD_CACHE = "bad-cache"  # the saved cache is damaged, or another device's


class ControlError(RemoteProtocolError):
    """Something from outside is refused. `reason` is for counting; the text names the field and what was expected."""

    def __init__(self, reason: ControlDrop, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
