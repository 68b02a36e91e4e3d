"""What the kernel's filter holds, what it should hold, and who loses by the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent.engine.kernel.rights import Frame, allow_all_of, rights_of
from edgeagent.engine.kernel.ruleset import chain_name, ruleset

if TYPE_CHECKING:
    from edgeagent.engine.kernel.rights import Element, Services
    from edgeagent.proto.device import Device
    from edgeagent.proto.peer import Peer
    from edgeagent.proto.records import Record

    Rights = dict[Element, tuple[Services, frozenset[bytes]]]  # and the public keys of those who have it

CHAINS_SPARE_MAX = 64  # of services that nobody has any more; then all is put anew


class Change:
    """From what stands to what is wanted. `lose`: the public keys of those who have less by it, None for everybody;
    `wait`: of those who are to have something else, None likewise.

    Where `script` is None, elements of maps are all that changes: `gone`, and `new` ones with the chain they lead to.
    """

    __slots__ = ("chains", "frame", "gone", "lose", "new", "rights", "script", "wait")

    def __init__(self, frame: Frame, rights: Rights, chains: dict[Services, int]) -> None:
        self.frame = frame
        self.rights = rights
        self.chains = chains
        self.script: str | None = None
        self.gone: list[Element] = []
        self.new: list[tuple[Element, str]] = []
        self.lose: frozenset[bytes] | None = frozenset()
        self.wait: frozenset[bytes] | None = frozenset()

    @property
    def takes(self) -> bool:
        """Whether anybody loses anything."""
        return self.lose is None or bool(self.lose)


class Filter:
    """`look` as often as the device may have changed; what it returns put in place, and then tell by `done`."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._frame: Frame | None = None  # None: none stands
        self._rights: Rights = {}
        self._chains: dict[Services, int] = {}
        self._number = 0  # of the next chain
        self._seen: tuple[object, ...] = ()
        self._seen_peers: list[tuple[Peer, Record | None]] = []
        self._change: Change | None = None
        self._known: dict[int, tuple[object, dict[Element, Services]]] = {}  # by record
        self._known_for: tuple[object, object] = (None, None)

    @property
    def stands(self) -> bool:
        return self._frame is not None

    def broke(self) -> None:
        """It does not stand, or is not known to any more."""
        self._frame = None
        self._seen = ()

    def look(self, device: Device) -> Change | None:
        """What is to be done; None where all is as it should be. The same object until something changes."""
        policy = None if device.firewall is None else device.firewall.policy
        peers = [(peer, peer.record) for peer in device.peers.values()]
        seen = (device.own, policy, len(device.allowed_ips), device.allowed_ips.moves, bool(self._frame))
        if seen == self._seen and peers == self._seen_peers:
            return self._change
        self._seen, self._seen_peers = seen, peers
        self._change = self._compare(Frame(device), self._wanted(device))
        return self._change

    def done(self, change: Change) -> None:
        self._frame, self._rights, self._chains = change.frame, change.rights, change.chains
        self._change = None
        if self._seen:
            self._seen = *self._seen[:-1], True

    def whole(self, change: Change) -> str:
        """For `nft -f -`: all of it, whatever stands."""
        used = _used(change)
        change.chains = {services: number for services, number in change.chains.items() if services in used}
        rights = {element: services for element, (services, _) in change.rights.items()}
        return ruleset(self._interface, change.frame, change.chains, rights)

    def _wanted(self, device: Device) -> Rights:
        if device.firewall is None:
            self._known.clear()
            return {}
        policy, own = device.firewall.policy, sorted(device.own or ())
        if self._known_for != (policy, device.own):
            self._known_for = policy, device.own
            self._known.clear()
        known: dict[int, tuple[object, dict[Element, Services]]] = {}
        found: Rights = {}
        for public, peer in device.peers.items():
            record = peer.record
            if record is None:
                continue  # who is nobody to the policy reaches nothing here
            its = self._known.get(id(record)) or (record, rights_of(policy, record, own))
            known[id(record)] = its
            for element, services in its[1].items():
                before = found.get(element)
                # One device by its old key and its new one
                found[element] = services, frozenset((public,)) if before is None else before[1] | {public}
        self._known = known
        return found

    def _compare(self, frame: Frame, rights: Rights) -> Change | None:
        chains = dict(self._chains)
        missing = False
        for services in [*(services for services, _ in rights.values()), *(rule.services for rule in frame.rules)]:
            if services not in chains:
                missing = True
                chains[services] = self._number
                self._number += 1
        change = Change(frame, rights, chains)
        lose: set[bytes] = set()
        wait: set[bytes] = set()
        for element, (services, whose) in self._rights.items():
            new = rights.get(element)
            if new is None:
                change.gone.append(element)
                lose |= whose
            elif new[0] != services:
                change.gone.append(element)
                change.new.append((element, chain_name(chains[new[0]])))
                if not allow_all_of(new[0], services):
                    lose |= whose
        for element, (services, whose) in rights.items():
            before = self._rights.get(element)
            if before is None:
                change.new.append((element, chain_name(chains[services])))
            if before is None or before[0] != services:
                wait |= whose
        change.lose, change.wait = frozenset(lose), frozenset(wait)
        old, same = self._frame, self._frame is not None and frame.same(self._frame)
        if old is None or not frame.allows_all_of(old):
            change.lose = change.wait = None
        elif same and not change.gone and not change.new:
            self._rights = rights  # which may be others' than before
            return None
        else:
            change.lose = change.lose if frame.restricts else frozenset()
            change.wait = change.wait if same else None  # it may be about prefixes of any
        if missing or not same or len(chains) > len(_used(change)) + CHAINS_SPARE_MAX:
            change.script = self.whole(change)
        return change


def _used(change: Change) -> set[Services]:
    return {services for services, _ in change.rights.values()} | {rule.services for rule in change.frame.rules}
