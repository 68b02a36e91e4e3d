"""The relay's state directory: its own key, a certificate made here, and a folder for each network that took it in."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from ipaddress import ip_address

from edgeagent.io.keystore import StateFile
from edgeagent.proto.crypto import Crypto
from edgeagent.proto.keys import from_base64, generate_private_key, to_base64
from edgeagent.proto.names import is_host_name, is_network_id
from edgeagent.proto.token import TOKEN_CHARACTERS_MAX, Token, TokenError

log = logging.getLogger("edgerelay")

KEY, CERTIFICATE, CERTIFICATE_KEY = "relay.key", "tls.crt", "tls.key"
CERTIFICATE_DAYS = 3_650


class StateUnusable(Exception):
    """The state directory or a join file cannot be used as it is; the text says why and what to do."""


def make_directory(path: str) -> None:
    """Raises StateUnusable."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from None


def relay_key(directory: str) -> bytes:
    """The relay's X25519 key, made at the first call. Raises StateUnusable."""
    make_directory(directory)
    path = os.path.join(directory, KEY)
    try:
        if not os.path.exists(path):
            _write(path, (to_base64(generate_private_key(os.urandom)) + "\n").encode())
        with open(path, encoding="ascii") as file:
            return from_base64(file.read(128).strip(), path)
    except OSError as error:
        raise _unusable(path, error) from None


def certificate(directory: str, names: list[str]) -> tuple[str, str]:
    """Files of a certificate for `names` that nobody signed but itself, and of its key; made at the first call.

    Members trust the relay's key; TLS is there to pass firewalls and proxies. Raises StateUnusable.
    """
    make_directory(directory)
    chain, key = os.path.join(directory, CERTIFICATE), os.path.join(directory, CERTIFICATE_KEY)
    if os.path.exists(chain) and os.path.exists(key):
        return chain, key
    try:
        made = _self_signed(names)
    except ModuleNotFoundError as missing:
        raise StateUnusable(
            f"cert: none is given, and making one needs {missing.name}. Run: pip install 'edgemesh[relay]', "
            "or give --cert and --key"
        ) from None
    try:
        _write(key, made[1])
        _write(chain, made[0])
    except OSError as error:
        raise _unusable(directory, error) from None
    return chain, key


def saved_networks(directory: str) -> list[str]:
    """Ids of the networks that took this relay in."""
    with suppress(OSError):
        return sorted(
            name
            for name in os.listdir(directory)
            if is_network_id(name) and os.path.exists(os.path.join(directory, name, StateFile.ADMISSION.filename))
        )
    return []


def read_tokens(files: list[str], saved: list[str], crypto: Crypto) -> dict[str, Token]:
    """Join tokens by network id. A file that has gone is no fault when some network has taken the relay in.

    Raises StateUnusable.
    """
    tokens: dict[str, Token] = {}
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                token = Token.decode(crypto, file.read(TOKEN_CHARACTERS_MAX + 1))
        except FileNotFoundError as error:
            if saved:
                log.info("join-file: %s is not there any more; networks that took this relay in are served", path)
                continue
            raise StateUnusable(
                f"join-file: {path}: {error.strerror}. `edgehub relays invite` prints what it holds"
            ) from None
        except OSError as error:
            raise StateUnusable(f"join-file: {path}: {error.strerror}") from None
        except TokenError as error:
            raise StateUnusable(f"join-file: {path}: {error}") from None
        network = token.network_id(crypto)
        if network in tokens:
            raise StateUnusable(f"join-file: {path}: a second token of network {network}. Give one")
        tokens[network] = token
    return tokens


def own_name() -> str:
    """This host's name as one DNS label; `relay` when it has none that is one."""
    label = socket.gethostname().partition(".")[0].lower().replace("_", "-")
    return label if is_host_name(label) else "relay"


def _write(path: str, data: bytes) -> None:
    """Whole or not at all, for its owner alone."""
    new = path + ".new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _unusable(path: str, error: OSError) -> StateUnusable:
    return StateUnusable(f"state-dir: {path}: {error.strerror}. Run as its owner, or give another by --state-dir")


def _self_signed(names: list[str]) -> tuple[bytes, bytes]:
    """(certificate, key), PEM."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    def general(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ip_address(name))
        except ValueError:
            return x509.DNSName(name)

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    # From 2000 on: a relay may be younger than the clock of who looks at it
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([general(name) for name in dict.fromkeys(names)]), critical=False)
        .sign(key, SHA256())
    )
    return (
        made.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
