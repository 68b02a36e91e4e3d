"""The hub's own certificate authority, and the broker's certificate under it (ECDSA P-256).

Devices pin the CA by the SHA-256 of its DER, found in the chain that the broker presents; boards have no clock at
boot, so everything is valid from the year 2000 on.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)
CA_LIFE = timedelta(days=30 * 365)
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")  # how the hub itself reaches its broker
_EARLIEST_NOW = datetime(2025, 1, 1, tzinfo=UTC)  # a hub whose clock was never set makes certificates that last


def make_ca(name: str, wall_s: float) -> tuple[str, bytes]:
    """(private key as PEM, certificate as DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} hub CA"[:64])])
    certificate = (
        _builder(subject, subject, key.public_key(), _not_after(wall_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return _pem(key), certificate.public_bytes(Encoding.DER)


def make_server(ca_key_pem: str, ca_der: bytes, names: tuple[str, ...], *, peer: bool = False) -> tuple[str, str]:
    """(private key, certificate chain with the CA at its end), both PEM, for `names`: host names and addresses.

    `peer`: also where it is the client, at other servers of its cluster.
    """
    ca_key = load_pem_private_key(ca_key_pem.encode(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA key is not one of this hub's")
    ca = x509.load_der_x509_certificate(ca_der)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edgehub broker")])
    wanted = dict.fromkeys((*names, *LOCAL_NAMES))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if peer else [])]
    certificate = (
        _builder(subject, ca.subject, key.public_key(), ca.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, SHA256())
    )
    chain = certificate.public_bytes(Encoding.PEM) + ca.public_bytes(Encoding.PEM)
    return _pem(key), chain.decode()


def der_to_pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def pem_to_der(pem: bytes) -> bytes:
    """The last certificate of a PEM file: of a chain, the CA. Raises ValueError."""
    return x509.load_pem_x509_certificates(pem)[-1].public_bytes(Encoding.DER)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(not_after)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _not_after(wall_s: float) -> datetime:
    return max(datetime.fromtimestamp(wall_s, UTC), _EARLIEST_NOW).replace(microsecond=0) + CA_LIFE


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
