"""What can go wrong, and whose fault it is.

EdgeError
├── LocalProtocolError     our own caller misused a machine: a bug, never provoked by the network
│   └── LimitReached       a table with a ceiling is full and the caller must make room first
└── RemoteProtocolError    a peer, the hub or a file said something that cannot be; its text names the field

On the data path bad input raises nothing: it is a drop, counted under a DropReason.
"""

from __future__ import annotations

from enum import Enum


class EdgeError(Exception):
    """Base of every error that this project raises on purpose."""


class LocalProtocolError(EdgeError):
    """A machine was driven in a way that its contract forbids."""


class LimitReached(LocalProtocolError):
    """A table is at its ceiling; the text names the limit."""


class RemoteProtocolError(EdgeError):
    """Input from outside is wrong; the text names the field and what was expected."""


class DropReason(Enum):
    """Why the WireGuard data path dropped a datagram or a packet; the value is its name in `status` and in metrics."""

    MALFORMED = "malformed"  # no WireGuard message has this type, reserved bytes or length
    NO_PRIVATE_KEY = "no-private-key"  # the device has no private key yet
    MAC1_INVALID = "mac1-invalid"  # the sender does not know our public key (paper 5.4.4)
    HANDSHAKE_QUEUE_FULL = "handshake-queue-full"  # more handshakes waiting than the queue holds
    COOKIE_DEMANDED = "cookie-demanded"  # under load and without a valid mac2: a cookie reply went out instead
    HANDSHAKE_RATE = "handshake-rate"  # more handshakes per second from one source than a device needs
    INITIATION_INVALID = "initiation-invalid"  # an initiation that does not decrypt
    INITIATION_REPLAYED = "initiation-replayed"  # an initiation whose TAI64N is not newer than the last (paper 5.1)
    INITIATION_FLOOD = "initiation-flood"  # a peer starts handshakes less than 20 ms apart
    UNKNOWN_PEER = "unknown-peer"  # an initiation under a static key that is not a peer's
    RESPONSE_UNEXPECTED = "response-unexpected"  # a response to no handshake of ours
    RESPONSE_INVALID = "response-invalid"  # a response that does not decrypt
    COOKIE_REPLY_UNEXPECTED = "cookie-reply-unexpected"  # a cookie for no message that we sent
    COOKIE_REPLY_INVALID = "cookie-reply-invalid"  # a cookie that does not decrypt
    UNKNOWN_INDEX = "unknown-index"  # transport data for a receiver index that is nobody's
    KEY_EXPIRED = "key-expired"  # transport data under a key older than 180 s or used up
    AUTHENTICATION = "authentication"  # transport data that does not decrypt
    REPLAYED = "replayed"  # transport data with a counter seen before or behind the window (RFC 6479)
    INNER_MALFORMED = "inner-malformed"  # a decrypted packet that is not IPv4 or IPv6, or whose length lies
    INNER_SOURCE = "inner-source"  # a decrypted packet whose source is not among the peer's allowed IPs
    INNER_DESTINATION = "inner-destination"  # a decrypted packet for nobody that may be reached here
    INNER_ECN = "inner-ecn"  # congestion was marked outside, the packet inside cannot carry the mark (RFC 6040)
    NO_PEER = "no-peer"  # a packet to an address that is no peer's
    NO_ENDPOINT = "no-endpoint"  # a packet to a peer whose endpoint is not known
    ENDPOINT_UNUSABLE = "endpoint-unusable"  # a peer was heard from port 0, or from inside the mesh: no place to answer
    STAGED_FULL = "staged-full"  # the oldest packet that waited for a handshake gave way to a newer one
    STAGED_EXPIRED = "staged-expired"  # packets waited for a handshake that did not come within 90 s
    PACKET_TOO_BIG = "packet-too-big"  # more than the path to its peer takes, and not to be cut up: its sender is told
    POLICY = "policy"  # a decrypted packet that no rule of the policy admits, and that belongs to no flow that one did
    PROHIBITED = "prohibited"  # a packet to a peer that the policy does not let us reach: its sender is told
    FRAGMENT_WITHOUT_FIRST = "fragment-without-first"  # with a policy: a later fragment before the first, or too late
    FLOW_UNREADABLE = "flow-unreadable"  # with a policy: inner headers are cut short, overlap, or nest too deep
    NOT_IP = "not-ip"  # the TUN handed out something that is neither IPv4 nor IPv6
