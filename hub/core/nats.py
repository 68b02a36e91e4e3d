"""Who may do what at NATS brokers: the hub signs it, and every node checks it by itself. There is no list of accounts.

NATS calls it operator mode (docs.nats.io, "JWT authentication"): a node knows one operator's public key; the operator
signs an account, the account signs its users, and a user shows what was signed for it as its MQTT password. So a device
that was admitted through one node is known to all of them, whichever hub or node is down, and nothing is written or
reloaded for it. What nodes have to be told is who is *not* admitted any more: that is in the account.

All keys come from the network's seed, so there is nothing more to keep, to move or to lose. What a device or a token
is given depends only on its row: it is the same each time it is made.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Iterable

from edgeagent.proto.brokerpass import (
    ACCOUNT_KEY,
    CLAIM,
    DEVICE,
    INTERNAL,
    OPERATOR_KEY,
    USER_KEY,
    claims,
    nkey,
    rights,
    session_id,
    user_key,
    words,
)
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.token import base64url
from hub.core.model import CLAIM_GRACE_S, Device, Network

HUB = "hub"  # the hub's own user
UPDATE_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
INBOX = "_INBOX.em1"
ACCOUNT_BYTES_MAX = 8 << 20  # a node takes no longer message, and the account is one
REVOKED_MAX = 80_000  # a user who is cut off takes 96 bytes of that
_MADE_S = 1  # of what is never made anew: anything later counts before it
_LIMITS = '"limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"conn":-1,"leaf":-1'
_STREAMS = ',"mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1'  # where MQTT sessions are kept


class Authority:
    """Signs for one network. `account` and `system` are public keys as NATS writes them."""

    def __init__(self, crypto: Crypto, network: Network) -> None:
        self._crypto = crypto
        self._network = network.id
        self._seed = network.seed
        self._box_private = network.box_private
        self._account_key = self._public("account")
        self._operator = nkey(OPERATOR_KEY, self._public("operator"))
        self.account = nkey(ACCOUNT_KEY, self._account_key)
        self.system = nkey(ACCOUNT_KEY, self._public("system"))

    # What nodes are configured with; all of it is public.

    def operator_claims(self) -> str:
        head = f'"iss":"{self._operator}","sub":"{self._operator}","name":"edgehub {self._network}","iat":{_MADE_S},'
        return self._signed("operator", claims(head, f'"system_account":"{self.system}","type":"operator"'))

    def system_claims(self) -> str:
        """The account from which accounts are changed."""
        head = f'"iss":"{self._operator}","sub":"{self.system}","name":"system","iat":{_MADE_S},'
        return self._signed("operator", claims(head, _LIMITS + '},"type":"account"'))

    def account_claims(self, wall_s: int = _MADE_S, cut_off: Iterable[tuple[str, int]] = ()) -> str:
        """The account of hub, devices and tokens. `cut_off` are (user, up to when nothing counts that it was given).

        A node keeps what it is told, and what other nodes have only if its `jti` is another and its `iat` no earlier.
        """
        head = f'"iss":"{self._operator}","sub":"{self.account}","name":"{self._network}","iat":{wall_s},'
        revoked = ",".join(f'"{user_key(user)}":{until}' for user, until in cut_off)
        body = f'{_LIMITS}{_STREAMS}}},"revocations":{{{revoked}}},"type":"account"'
        return self._signed("operator", claims(head, body, f"em1-{wall_s}"))

    # What users show

    def device_pass(self, device: Device) -> bytes:
        """`bp` of its map. One that was cut off and comes back has a later one than all that it had."""
        return self._pass(DEVICE, device.id, max(device.created_s, device.barred_s + 1), 0)

    def claim_pass(self, claim: str, not_after: int) -> bytes:
        """`b` of a join token; for a while after its end it still may ask why."""
        return self._pass(CLAIM, claim, _MADE_S, not_after and not_after + CLAIM_GRACE_S)

    def hub_password(self) -> str:
        net = f"em1.{self._network}"
        may = rights([f"{net}.>"], [f"{net}.*.u.*", INTERNAL], 16)
        head = f'"iss":"{self.account}","sub":"{user_key(HUB)}","name":"{HUB}","iat":{_MADE_S},'
        body = f'{may},"payload":-1,"bearer_token":true,"allowed_connection_types":["MQTT"],"type":"user"'
        return self._signed("account", claims(head, body))

    def manager(self) -> tuple[str, bytes]:
        """(claims, Ed25519 seed by which it answers a node's challenge) of the user that changes accounts."""
        seed = self._key("manager")
        head = (
            f'"iss":"{self.system}","sub":"{nkey(USER_KEY, self._public("manager"))}","name":"{HUB}","iat":{_MADE_S},'
        )
        body = f'{rights([UPDATE_SUBJECT], [f"{INBOX}.>"], 16)},"payload":-1,"type":"user"'
        return self._signed("system", claims(head, body)), seed

    def session_id(self, device: Device) -> str:
        """The MQTT client id of a device."""
        return session_id(self._crypto, self._box_private, device.box_key)

    def _pass(self, role: str, user: str, since_s: int, until_s: int) -> bytes:
        text = words(self._network, role, user, since_s, until_s, self._account_key)
        signature = self._crypto.ed25519_sign(self._key("account"), text.encode())
        return since_s.to_bytes(8, "big") + until_s.to_bytes(8, "big") + self._account_key + signature

    def _signed(self, signer: str, text: str) -> str:
        return f"{text}.{base64url(self._crypto.ed25519_sign(self._key(signer), text.encode()))}"

    def _key(self, name: str) -> bytes:
        return self._crypto.blake2s(b"em1 nats " + name.encode(), key=self._seed)

    def _public(self, name: str) -> bytes:
        return self._crypto.ed25519_public(self._key(name))


def bar(device: Device, wall_s: int) -> int:
    """Its `barred_s` from now on: no pass that it was given is later, wherever the clock has gone since."""
    return max(wall_s, device.barred_s + 1, device.created_s)


def hosts_for(network: Network, user: str) -> list[str]:
    """Brokers in the order in which a device tries them: of a cluster not everybody's first one is the same."""
    hosts = list(network.hosts)
    first = crc32(user.encode()) % len(hosts) if network.nats else 0
    return hosts[first:] + hosts[:first]
