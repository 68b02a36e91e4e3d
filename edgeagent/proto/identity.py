"""What a device is (keys made on it, which never leave it) and what it was admitted to. Both are kept on flash."""

from __future__ import annotations

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.control import CA_BYTES_MAX, HOSTS, KEY, MAP_BYTES_MAX
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.devicemap import DeviceMap, open_map
from edgeagent.proto.keys import Entropy, generate_private_key
from edgeagent.proto.names import device_id, network_id
from edgeagent.proto.schema import Blob, Fields, Nullable, Text, Uint
from edgeagent.proto.token import base64url

_VERSION = Uint(1, 1)
_IDENTITY = Fields({"v": _VERSION, "dk": KEY, "bk": KEY, "nk": KEY, "next": Nullable(KEY), "pw": Text(128)})
_ADMISSION = Fields({"v": _VERSION, "n": KEY, "ca": Blob(CA_BYTES_MAX), "map": Blob(MAP_BYTES_MAX), "h": HOSTS})


class Identity:
    """Private keys of a device and their public halves. Secret: `encode()` belongs in a file that only root reads.

    `node_next` is the node key that a renewal has made and the hub has not yet put into use.
    """

    __slots__ = (
        "_crypto",
        "box_key",
        "box_private",
        "device_id",
        "device_key",
        "device_seed",
        "next_key",
        "node_key",
        "node_next",
        "node_private",
        "password",
    )

    def __init__(
        self,
        crypto: Crypto,
        *,
        device_seed: bytes,
        box_private: bytes,
        node_private: bytes,
        node_next: bytes | None,
        password: str,
    ) -> None:
        self._crypto = crypto
        self.device_seed = device_seed
        self.box_private = box_private
        self.node_private = node_private
        self.node_next = node_next
        self.password = password
        self.device_key = crypto.ed25519_public(device_seed)
        self.device_id = device_id(crypto, self.device_key)
        self.box_key = crypto.x25519_base(box_private)
        self.node_key = crypto.x25519_base(node_private)
        self.next_key = None if node_next is None else crypto.x25519_base(node_next)

    @classmethod
    def create(cls, crypto: Crypto, entropy: Entropy) -> Identity:
        """A new device."""
        return cls(
            crypto,
            device_seed=entropy(32),
            box_private=generate_private_key(entropy),
            node_private=generate_private_key(entropy),
            node_next=None,
            password=base64url(entropy(32)),
        )

    def session_id(self, hub_box_key: bytes) -> str:
        """The MQTT client id where a broker does not see to it that a device's is its own."""
        from edgeagent.proto.brokerpass import session_id

        return session_id(self._crypto, self.box_private, hub_box_key)

    def broker_login(self, network: str, device_map: DeviceMap) -> tuple[str, str]:
        """(MQTT client id, password) of this device, whose user name is its id."""
        if not device_map.broker_pass:
            return self.device_id, self.password
        from edgeagent.proto.brokerpass import DEVICE, bearer

        password = bearer(network, DEVICE, self.device_id, device_map.broker_pass)
        return self.session_id(device_map.hub_box_key), password

    def make_next(self, entropy: Entropy) -> None:
        """Begin a renewal: make the next node key. To be saved before anybody hears of it."""
        self.node_next = generate_private_key(entropy)
        self.next_key = self._crypto.x25519_base(self.node_next)

    def switch(self) -> None:
        """The next node key becomes the one in use. To be saved."""
        if self.node_next is not None and self.next_key is not None:
            self.node_private, self.node_key = self.node_next, self.next_key
            self.node_next = self.next_key = None

    def encode(self) -> bytes:
        return encode(
            {
                "v": 1,
                "dk": self.device_seed,
                "bk": self.box_private,
                "nk": self.node_private,
                "next": self.node_next,
                "pw": self.password,
            }
        )

    @classmethod
    def decode(cls, crypto: Crypto, data: bytes) -> Identity:
        """Raises ControlError."""
        fields = _IDENTITY.check(decode(data), "identity")
        return cls(
            crypto,
            device_seed=fields["dk"],
            box_private=fields["bk"],
            node_private=fields["nk"],
            node_next=fields["next"],
            password=fields["pw"],
        )


class Admission:
    """What a device keeps of the network that took it in. `hosts` are brokers, as the newest map has them."""

    __slots__ = ("ca_der", "hosts", "map_object", "network", "network_key")

    def __init__(
        self, crypto: Crypto, *, network_key: bytes, ca_der: bytes, map_object: bytes, hosts: list[str]
    ) -> None:
        self.network_key = network_key
        self.ca_der = ca_der
        self.map_object = map_object
        self.hosts = hosts
        self.network = network_id(crypto, network_key)

    def open_map(self, crypto: Crypto, device: str) -> DeviceMap:
        """The map as it was last kept. Raises ControlError when it is not this device's."""
        return open_map(crypto, self.network_key, self.map_object, network=self.network, device=device)

    def encode(self) -> bytes:
        return encode({"v": 1, "n": self.network_key, "ca": self.ca_der, "map": self.map_object, "h": self.hosts})

    @classmethod
    def decode(cls, crypto: Crypto, data: bytes) -> Admission:
        """Raises ControlError."""
        fields = _ADMISSION.check(decode(data), "admission")
        return cls(crypto, network_key=fields["n"], ca_der=fields["ca"], map_object=fields["map"], hosts=fields["h"])
