"""Rules of policy routing (fib_rules.h) as bytes. Loaded where a device uses routes of others."""

from __future__ import annotations

from struct import Struct

_FR_ACT_TO_TBL, _FIB_RULE_INVERT = 1, 0x2
_FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_FWMASK = 6, 10, 14, 15, 16
_RULE = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, two reserved, action, flags
_ATTRIBUTE = Struct("=HHI")


class Rule:
    """`table` is asked by packets of any mark but `unmarked`; of its answers none counts with a prefix as short as
    `suppress`. Rules are asked in the order of `priority`."""

    __slots__ = ("family", "priority", "suppress", "table", "unmarked")

    def __init__(
        self, family: int, priority: int, table: int, *, unmarked: tuple[int, int] | None = None, suppress: int = -1
    ) -> None:
        self.family = family
        self.priority = priority
        self.table = table
        self.unmarked = unmarked  # mark, mask
        self.suppress = suppress

    def encode(self) -> bytes:
        flags = _FIB_RULE_INVERT if self.unmarked is not None else 0
        body = _RULE.pack(self.family, 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, flags)
        attributes = [(_FRA_PRIORITY, self.priority), (_FRA_TABLE, self.table)]
        if self.unmarked is not None:
            attributes += [(_FRA_FWMARK, self.unmarked[0]), (_FRA_FWMASK, self.unmarked[1])]
        if self.suppress >= 0:
            attributes.append((_FRA_SUPPRESS_PREFIXLEN, self.suppress))
        return body + b"".join(_ATTRIBUTE.pack(_ATTRIBUTE.size, kind, value) for kind, value in attributes)
