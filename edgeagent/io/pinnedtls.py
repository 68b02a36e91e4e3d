"""TLS to a broker whose CA is pinned by its hash, and the way to its address. Nothing here waits but a thread."""

from __future__ import annotations

import hashlib
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_CHECK_TIME = 0x20_0000  # X509_V_FLAG_NO_CHECK_TIME; the ssl module has no name for it


class Trust:
    """What a broker has to prove: that its certificate comes from the network's CA.

    `pin` is the SHA-256 of the CA certificate (DER) from the join token. `ca` is the certificate itself once it has
    been seen. `check_time` is False while the device does not know the time: then dates of certificates are ignored.
    """

    __slots__ = ("ca", "check_time", "pin")

    def __init__(self, pin: bytes, ca: bytes | None, check_time: bool) -> None:
        self.pin = pin
        self.ca = ca if ca is not None and hashlib.sha256(ca).digest() == pin else None
        self.check_time = check_time


def presented_chain(tls: ssl.SSLSocket) -> list[bytes]:
    """The certificates (DER) that the other side sent, unverified. Public only from Python 3.13 on."""
    if sys.version_info >= (3, 13):
        return list(tls.get_unverified_chain())
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    return [certificate.public_bytes(ssl._ssl.ENCODING_DER) for certificate in inner.get_unverified_chain() or ()]  # type: ignore[attr-defined]


def wrap(sock: socket.socket, host: str, trust: Trust) -> ssl.SSLSocket:
    """`sock` with TLS before its handshake: unverified while the CA is not known. Raises OSError, ValueError."""
    return _context(trust).wrap_socket(sock, do_handshake_on_connect=False, server_hostname=_sni(host))


def _context(trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Host names prove nothing here: the CA is the network's own, and it is pinned.
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.ca is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_verify_locations(cadata=trust.ca)
    if not trust.check_time:
        context.verify_flags |= _NO_CHECK_TIME
    return context


def _sni(host: str) -> Any:
    """For proxies that choose by name; none for an address (RFC 6066, section 3). Bytes, as for getaddrinfo."""
    return host.encode("ascii") if literal_family(host) is None else None


def literal_family(host: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


look_up: Callable[..., list[Any]] | None = None  # in place of getaddrinfo, while that would go astray
RESOLVERS_MAX = 6  # threads that ask name servers; one that was given up may still do so for half a minute


class Resolver:
    """getaddrinfo in a thread; `wake` becomes readable when `done`. Raises OSError when there are no descriptors.

    `close` it when nobody waits any more; `listen` makes another `wake` for whoever waits again.
    """

    _threads: ClassVar[list[threading.Thread]] = []

    def __init__(self, host: str, port: int) -> None:
        self.addresses: list[Any] = []
        self.error = ""
        self.done = False
        self.asked = True  # no: there was no thread for it, and no name server was asked
        self.asked_at = 0.0  # by the clock of whoever asked
        self._lock = threading.Lock()
        self.wake, self._signal = socket.socketpair()
        threads = Resolver._threads
        threads[:] = [thread for thread in threads if thread.is_alive()]
        if len(threads) >= RESOLVERS_MAX:
            self.error = f"{host}: the name servers do not answer"
            self.asked = False
            self._finish()
            return
        thread = threading.Thread(target=self._run, args=(host, port), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no memory for its stack, or too many tasks
            self.error = f"{host}: {error}"
            self.asked = False
            self._finish()
        else:
            threads.append(thread)

    def _run(self, host: str, port: int) -> None:
        try:
            # Bytes: for text the idna codec and its tables would be loaded, 0.4 MiB
            found = (look_up or socket.getaddrinfo)(host.encode("ascii"), port, type=socket.SOCK_STREAM)
            self.addresses = [(family, address) for family, _, _, _, address in found]
            self.error = "" if found else f"{host}: no address"
        except (OSError, UnicodeError) as error:
            self.error = f"{host}: {getattr(error, 'strerror', None) or error}"
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self.done = True
            self._signal.close()

    def listen(self) -> None:
        """Raises OSError as the constructor does."""
        wake, signal = socket.socketpair()
        with self._lock:
            self._signal.close()
            self.wake, self._signal = wake, signal
            if self.done:
                signal.close()

    def close(self) -> None:
        self.wake.close()


LOOK_UP_TIMEOUT_S = 20.0  # for a look-up, where nothing else can be tried meanwhile: two dead servers, asked twice
GIVEN_UP_MAX = 8  # look-ups whose answers are waited for by nobody
LATE_MAX_S = 300.0  # an answer to a question older than that is asked for anew
KNOWN_MAX = 16  # hosts whose last addresses are remembered
ADDRESSES_MAX = 8  # of one host


class LookUps:
    """`begin` one, and `end` it when it is done or `give_up`. `known` has what a host's addresses were the last time
    that anybody said so, for when nobody does.

    A resolver waits five seconds for a dead name server before it asks the next one (resolv.conf(5)). Whoever gave up
    before that, and threw the answer away, would never get one: a look-up that is given up goes on, for the next try.
    """

    __slots__ = ("_given_up", "_known")

    def __init__(self) -> None:
        self._given_up: dict[tuple[str, int], Resolver] = {}
        self._known: dict[tuple[str, int], list[Any]] = {}

    def begin(self, now: float, host: str, port: int) -> Resolver:
        """The look-up that was given up, if its answer is still of use, else another. Raises OSError."""
        earlier = self._given_up.pop((host, port), None)
        if earlier is not None:
            is_late = now - earlier.asked_at > LATE_MAX_S
            if not earlier.done or (earlier.addresses and not is_late):
                earlier.listen()
                return earlier
        resolver = Resolver(host, port)
        resolver.asked_at = now
        return resolver

    def end(self, host: str, port: int, resolver: Resolver) -> tuple[list[Any], str]:
        """Of one that is done: addresses as getaddrinfo has them, at most ADDRESSES_MAX, or why there are none."""
        name = (host, port)
        resolver.close()
        found = resolver.addresses[:ADDRESSES_MAX]
        if found:
            self._known.pop(name, None)
            if len(self._known) >= KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[name] = list(found)
        return found, resolver.error

    def give_up(self, host: str, port: int, resolver: Resolver) -> None:
        """Nobody waits for it now; its descriptor is closed."""
        name = (host, port)
        resolver.close()
        if len(self._given_up) >= GIVEN_UP_MAX and name not in self._given_up:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[name] = resolver

    def known(self, host: str, port: int) -> list[Any]:
        return list(self._known.get((host, port), ()))
