"""The kernel's side of routes that this device uses: a table of its own, and two rules that lead there.

    5300:  lookup main, but for default routes      what this device reaches by itself stays as it is
    5301:  not from the agent: lookup table 5300    the prefixes behind others, and the exit node's default routes

What the agent itself sends is marked and never asks the table: a tunnel does not go through itself. While an exit node
is used without the local network, the first rule is left out. The routes end with the interface, however the agent
ends; rules without routes lead on to the rest, and are taken away at the next start.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from edgeagent.io import rtnetlink as rt
from edgeagent.io.marks import MARK, MARK_MASK
from edgeagent.io.rules import Rule
from edgeagent.proto.prefixes import EXIT, Prefix, to_text

if TYPE_CHECKING:
    from edgeagent.io.netlink import Netlink

log = logging.getLogger("edgeagent")
TABLE = 5300
_PRIORITY_OWN, _PRIORITY_TABLE = 5300, 5301
_FAMILIES = (rt.AF_INET, rt.AF_INET6)
_NOT_THERE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_NO_V6 = (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL)


class PolicyRoutes:
    """`put` what is wanted, as often as it changes or was taken away; `remove` at the end. Both raise OSError."""

    def __init__(self, netlink: Netlink, index: int) -> None:
        self._netlink = netlink
        self._index = index
        self.routes: dict[Prefix, bytes] = {}  # prefix → source address
        self._rules: list[tuple[int, int]] = []  # (family, priority) of those that are there

    def put(self, prefixes: list[Prefix], own: tuple[bytes, bytes], *, exit_node: bool, allow_lan: bool) -> None:
        """Routes to `prefixes`, and with `exit_node` to everything, through the interface; `own` are our addresses."""
        wanted = [*prefixes, *(EXIT if exit_node else ())]
        # Routes before rules: from the first packet on that asks the table there is no hole in it
        for prefix in wanted:
            self._add(prefix, own[0] if len(prefix[0]) == 4 else own[1])
        for prefix in [each for each in self.routes if each not in wanted]:
            self._delete(prefix)
        for family in _FAMILIES:
            self._rule(Rule(family, _PRIORITY_TABLE, TABLE, unmarked=(MARK, MARK_MASK)), bool(wanted))
            own_first = bool(wanted) and (allow_lan or not exit_node)
            self._rule(Rule(family, _PRIORITY_OWN, rt.RT_TABLE_MAIN, suppress=0), own_first)

    def remove(self) -> None:
        for family, priority in list(self._rules):
            table = TABLE if priority == _PRIORITY_TABLE else rt.RT_TABLE_MAIN
            self._rule(Rule(family, priority, table), False)
        for prefix in list(self.routes):
            self._delete(prefix)

    def _add(self, prefix: Prefix, source: bytes) -> None:
        try:
            self._netlink.replace_route(rt.Route(*prefix, self._index, source=source, table=TABLE))
            self.routes[prefix] = source
        except OSError as error:
            if len(prefix[0]) == 4 or error.errno not in _NO_V6:
                raise
            log.debug("%s: %s", to_text(prefix), error.strerror)

    def _delete(self, prefix: Prefix) -> None:
        del self.routes[prefix]
        try:
            self._netlink.delete_route(rt.Route(*prefix, self._index, table=TABLE))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise

    def _rule(self, rule: Rule, wanted: bool) -> None:
        key = (rule.family, rule.priority)
        if wanted is (key in self._rules):
            return
        try:
            self._netlink.change_rule(rule.encode(), delete=not wanted)
        except OSError as error:
            done = (errno.EEXIST,) if wanted else _NOT_THERE
            if error.errno not in (*done, *(_NO_V6 if rule.family == rt.AF_INET6 else ())):
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise OSError(error.errno, "this kernel has no policy routing (IP_MULTIPLE_TABLES)") from None
                raise
        if wanted:
            self._rules.append(key)
        else:
            self._rules.remove(key)


def remove_leftovers(netlink: Netlink) -> None:
    """Rules of an agent that was killed."""
    for family in _FAMILIES:
        for priority, table in ((_PRIORITY_OWN, rt.RT_TABLE_MAIN), (_PRIORITY_TABLE, TABLE)):
            for _ in range(4):  # one agent beside another may have left its own
                try:
                    netlink.change_rule(Rule(family, priority, table).encode(), delete=True)
                except OSError:
                    break
