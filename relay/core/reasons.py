"""Why the relay dropped something: named reasons, counted."""

from __future__ import annotations

from enum import Enum


class RelayDrop(Enum):
    """Why the relay dropped a packet, a datagram or a connection; the value is its name in `status` and in metrics."""

    NOT_OURS = "not-ours"  # a datagram that is neither of a relay nor STUN
    BAD_DATAGRAM = "bad-datagram"  # a relay's datagram of a length or type that cannot be
    SHORT_HELLO = "short-hello"  # a first datagram smaller than its answer would be
    STALE_CHALLENGE = "stale-challenge"  # an old or another address's challenge; a new one went out
    LOGIN_RATE = "login-rate"  # more logins from one address than it may have
    UNKNOWN_SESSION = "unknown-session"  # a datagram of no session
    WRONG_SOURCE = "wrong-source"  # a session's datagram from another address; it must show that it is there first
    BAD_MAC = "bad-mac"  # a control datagram that is forged or repeated
    UNBOUND_CHANNEL = "unbound-channel"  # data on a channel that means nobody
    CHANNELS_FULL = "channels-full"  # more channels than a session may bind
    PACKET_TOO_LONG = "packet-too-long"  # longer than a relayed packet may be
    NOT_HERE = "not-here"  # to a key that nobody here holds
    OTHER_TENANT = "other-tenant"  # to a member of another network
    MEMBER_RATE = "member-rate"  # beyond what the member's pass allows
    TENANT_RATE = "tenant-rate"  # beyond what the member's network may have
    FAIR_SHARE = "fair-share"  # the relay's rate is used up, and the network's queue was full
    QUEUE_FULL = "queue-full"  # the oldest packet to a member that reads too slowly gave way
    QUEUES_FULL = "queues-full"  # too much waits for all slow members together
    SECOND_HOP = "second-hop"  # a sibling forwarded to a key that is not here: packets go one hop only
    SIBLING_FOREIGN = "sibling-foreign"  # a sibling spoke of a network that it is no relay of
    SIBLING_FULL = "sibling-full"  # a sibling announced more members than there is room for
    KNOCK_MALFORMED = "knock-malformed"  # a member's knock of a form that cannot be
    KNOCK_RATE = "knock-rate"  # more knocks than a member may ask for
    KNOCK_REFUSED = "knock-refused"  # a knock with a challenge that is forged, too old, or another address's
    STUN_MALFORMED = "stun-malformed"  # begins like STUN and is none, or has a wrong fingerprint
    STUN_UNEXPECTED = "stun-unexpected"  # STUN, but no binding request
    STUN_SHORT = "stun-short"  # a request smaller than its answer, beyond the few that are answered all the same
    NEVER_READS = "never-reads"  # a member that does not even take control frames; it was closed
    DOOR_FULL = "door-full"  # the oldest connection that had not logged in gave way
    DOOR_SOURCE = "door-source"  # too many connections from one address that had not logged in, or too often
    DOOR_SLOW = "door-slow"  # a connection that did not log in in time
    BAD_REQUEST = "bad-request"  # something that is not the HTTP it should be
    TLS_FAILED = "tls-failed"  # a connection whose TLS handshake failed
    CONNECTION_LOST = "connection-lost"  # a connection that broke without saying so
    OWN_FAULT = "own-fault"  # a connection or datagram that found a bug of the relay; the log says which
