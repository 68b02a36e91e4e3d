"""Rules of a slice, as few as they can be made without search, in an order that depends on nothing but what they say.

A rule is a product: all its sources may reach all its targets by all its services. So rules that differ in one of the
three only are one rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeagent.proto.codec import encode
from edgeagent.proto.control import RULES_MAX, SELECTORS_MAX, SERVICES_MAX
from hub.core.policy.document import Prefix, Service

BYTES_MAX = 8_192  # of a slice; a map has room for four times that

Selectors = frozenset[str | Prefix]
Raw = tuple[Selectors, Selectors, tuple[Service, ...]]  # sources, targets, services

__all__ = ["BYTES_MAX", "RULES_MAX", "Cost", "Raw", "merge_in", "merge_out"]


def merge_in(raw: Iterable[Raw]) -> list[list[Any]]:
    """Rows of a slice's `in`."""
    by_ends: dict[tuple[Selectors, Selectors], set[Service]] = {}
    for (targets, services), sources in _merge_sources(raw).items():
        by_ends.setdefault((sources, targets), set()).update(services)
    return _sorted(
        [source_chunk, target_chunk, service_chunk]
        for (sources, targets), services in by_ends.items()
        for source_chunk in _chunks(_list(sources), SELECTORS_MAX)
        for target_chunk in _chunks(_list(targets), SELECTORS_MAX)
        for service_chunk in _chunks(join_services(services), SERVICES_MAX)
    )


def merge_out(raw: Iterable[tuple[Selectors, tuple[Service, ...]]]) -> list[list[Any]]:
    """Rows of a slice's `out`."""
    by_targets: dict[Selectors, set[Service]] = {}
    for services, targets in _merge_targets(raw).items():
        by_targets.setdefault(targets, set()).update(services)
    return _sorted(
        [target_chunk, service_chunk]
        for targets, services in by_targets.items()
        for target_chunk in _chunks(_list(targets), SELECTORS_MAX)
        for service_chunk in _chunks(join_services(services), SERVICES_MAX)
    )


def join_services(services: Iterable[Service]) -> list[list[int]]:
    """Sorted, and ranges that touch made one."""
    joined: list[list[int]] = []
    for protocol, low, high in sorted(services):
        if joined and joined[-1][0] == protocol and low <= joined[-1][2] + 1:
            joined[-1][2] = max(joined[-1][2], high)
        else:
            joined.append([protocol, low, high])
    return joined


@dataclass(slots=True, frozen=True)
class Cost:
    """What rules cost at most: how many in the direction that has more of them, and bytes in both.

    It only grows with what is to be said, which what merging leaves does not: so a ceiling that is looked at for the
    dearest identity holds for all. The cost of two things together is at most the sum of their costs.
    """

    rules: int
    size: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.rules + other.rules, self.size + other.size)

    @property
    def is_too_much(self) -> bool:
        return self.rules > RULES_MAX or self.size > BYTES_MAX

    @classmethod
    def of_in(cls, raw: Iterable[Raw]) -> Cost:
        by_rest: dict[tuple[Selectors, tuple[Service, ...]], set[str | Prefix]] = {}
        for sources, targets, services in raw:
            by_rest.setdefault((sources, services), set()).update(targets)
        rules = size = 0
        for (sources, services), ends in by_rest.items():
            m, n, k = (
                _pieces(len(sources), SELECTORS_MAX),
                _pieces(len(ends), SELECTORS_MAX),
                _pieces(len(services), SERVICES_MAX),
            )
            rules += m * n * k
            size += (
                m * n * k + n * k * _size(sources, m) + m * k * _size(ends, n) + m * n * _size_of_services(services, k)
            )
        return cls(rules, size)

    @classmethod
    def of_out(cls, raw: Iterable[tuple[Selectors, tuple[Service, ...]]]) -> Cost:
        by_services: dict[tuple[Service, ...], set[str | Prefix]] = {}
        for targets, services in raw:
            by_services.setdefault(services, set()).update(targets)
        rules = size = 0
        for services, ends in by_services.items():
            n, k = _pieces(len(ends), SELECTORS_MAX), _pieces(len(services), SERVICES_MAX)
            rules += n * k
            size += n * k + k * _size(ends, n) + n * _size_of_services(services, k)
        return cls(rules, size)


def _merge_targets(raw: Iterable[tuple[Selectors, tuple[Service, ...]]]) -> dict[tuple[Service, ...], Selectors]:
    merged: dict[tuple[Service, ...], Selectors] = {}
    for targets, services in raw:
        merged[services] = merged.get(services, frozenset()) | targets
    return {services: _without_covered(targets) for services, targets in merged.items()}


def _merge_sources(raw: Iterable[Raw]) -> dict[tuple[Selectors, tuple[Service, ...]], Selectors]:
    by_sources: dict[tuple[Selectors, tuple[Service, ...]], Selectors] = {}
    for sources, targets, services in raw:
        key = sources, services
        by_sources[key] = by_sources.get(key, frozenset()) | targets
    by_targets: dict[tuple[Selectors, tuple[Service, ...]], Selectors] = {}
    for (sources, services), ends in by_sources.items():
        key = _without_covered(ends), services
        by_targets[key] = by_targets.get(key, frozenset()) | sources
    return {key: _without_covered(sources) for key, sources in by_targets.items()}


def _without_covered(selectors: Selectors) -> Selectors:
    return frozenset({"*"}) if "*" in selectors else selectors


def _list(selectors: Selectors) -> list[Any]:
    """Words, then prefixes, each in order."""
    words = sorted(selector for selector in selectors if isinstance(selector, str))
    prefixes = sorted(selector for selector in selectors if not isinstance(selector, str))
    return [*words, *([address, length] for address, length in prefixes)]


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _sorted(rows: Iterable[list[Any]]) -> list[list[Any]]:
    return sorted(rows, key=encode)


def _pieces(count: int, size: int) -> int:
    return max(1, -(-count // size))


def _size(selectors: Iterable[str | Prefix], pieces: int) -> int:
    """Bytes of arrays of these selectors; CBOR heads are of at most 2 B here."""
    total = 2 * pieces
    for selector in selectors:
        total += len(selector.encode()) + 2 if isinstance(selector, str) else len(selector[0]) + 4
    return total


def _size_of_services(services: Iterable[Service], pieces: int) -> int:
    return 2 * pieces + sum(
        1 + sum(1 if number < 24 else 2 if number < 256 else 3 for number in service) for service in services
    )
