"""Passes: the hub's word that a device may use a relay, checked by the relay alone, without asking anybody.

A pass is a signed object of kind `pass` with `nb` and `na`, its subject the device, its network the tenant. Body: `nk`
the node key that it admits, `rl` relay ids, `rg` regions, `rc` rate class. It holds for a relay whose id is in `rl`
or whose region is in `rg`, and for no other.
"""

from __future__ import annotations

from edgeagent.proto.control import PASS_BYTES_MAX, check_body
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.relay_frames import Refusal, RelayError
from edgeagent.proto.signed import Signed, open_signed, peek_payload, sign_object

RATE_CLASS_MAX = 7

_REASONS = {ControlDrop.EXPIRED: Refusal.EXPIRED, ControlDrop.NOT_YET: Refusal.NOT_YET}


class Pass:
    """A pass that holds here and now: who, of which network, at which rate class, until when."""

    __slots__ = ("device", "network", "node_key", "not_after", "rate_class", "stamp", "wall_s")

    def __init__(self, signed: Signed) -> None:
        self.device = signed.subject
        self.network = signed.network
        self.node_key: bytes = signed.body["nk"]
        self.rate_class: int = signed.body["rc"]
        self.not_after: int = signed.not_after or 0
        self.stamp = signed.stamp
        self.wall_s = signed.wall_s


def write_pass(
    crypto: Crypto,
    network_seed: bytes,
    *,
    network: str,
    device: str,
    epoch: int,
    seq: int,
    wall_s: int,
    not_before: int,
    not_after: int,
    node_key: bytes,
    relays: list[str],
    regions: list[str],
    rate_class: int = 0,
) -> bytes:
    """The hub's side. (epoch, seq) goes up per device. Raises LocalProtocolError."""
    return sign_object(
        crypto,
        network_seed,
        kind="pass",
        network=network,
        subject=device,
        epoch=epoch,
        seq=seq,
        wall_s=wall_s,
        body={"nk": node_key, "rl": relays, "rg": regions, "rc": rate_class},
        not_before=not_before,
        not_after=not_after,
    )


def peek_node_key(data: bytes) -> bytes | None:
    """The node key that a pass names, unverified: a device sorts its own passes by it. None for what is no pass."""
    try:
        key: bytes = check_body("pass", peek_payload(data, "pass", max_bytes=PASS_BYTES_MAX)["b"])["nk"]
    except ControlError:
        return None
    return key


def open_pass(
    crypto: Crypto, networks: dict[str, bytes], relay: str, region: str, node_key: bytes, wall_s: float, data: bytes
) -> Pass:
    """The relay's side; `networks` maps the ids that it serves to their keys.

    Raises RelayError: BAD_PASS, WRONG_NETWORK, WRONG_RELAY, WRONG_KEY, EXPIRED or NOT_YET. Whatever is not said
    plainly in a signed pass is refused.
    """
    try:
        head = peek_payload(data, "pass", max_bytes=PASS_BYTES_MAX)
        key = networks.get(head["n"])
        if key is None:
            raise RelayError(Refusal.WRONG_NETWORK, "pass: of a network that this relay does not serve")
        signed = open_signed(
            crypto, key, data, kind="pass", network=head["n"], subject=head["s"], max_bytes=PASS_BYTES_MAX
        )
        if relay not in signed.body["rl"] and region not in signed.body["rg"]:
            raise RelayError(Refusal.WRONG_RELAY, "pass: for other relays")
        if signed.body["nk"] != node_key:
            raise RelayError(Refusal.WRONG_KEY, "pass: for another node key")
        signed.check_dates(wall_s)
    except ControlError as error:
        raise RelayError(_REASONS.get(error.reason, Refusal.BAD_PASS), str(error)) from None
    return Pass(signed)
