"""From HuJSON to a `Document`: every section checked, every mistake collected with its place.

What this hub would not enforce is refused, so that nobody believes in a rule that is none; what changes nothing about
who reaches what is let through with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from edgeagent.proto.control import GROUPS_MAX as GROUPS_OF_A_USER_MAX
from edgeagent.proto.names import is_group, is_tag
from hub.core.policy import document as limits
from hub.core.policy import words
from hub.core.policy.document import (
    ANY_OF_THESE,
    TCP,
    UDP,
    Claim,
    Document,
    Kind,
    Part,
    Prefix,
    Rule,
    Selector,
    Service,
    Test,
)
from hub.core.policy.hujson import Node, parse
from hub.core.policy.problems import SHOWN_MAX, PolicyError, Problem
from hub.core.policy.words import Names, clip

T = TypeVar("T")

_SECTIONS = ("groups", "tagOwners", "hosts", "acls", "grants", "autoApprovers", "tests")
_REFUSED = {  # sections that say who may do what, and that nothing here would enforce
    "ssh": "this hub does not control SSH: who reaches port 22 is for acls and grants, who may log in for sshd",
    "sshTests": "this hub does not control SSH, so there is nothing to test",
    "nodeAttrs": "attributes of devices have no effect here",
    "postures": "no device posture is checked here, so rules would let in whom they seem to keep out",
    "defaultSrcPosture": "no device posture is checked here, so rules would let in whom they seem to keep out",
    "ipsets": "sets of addresses are not known here. Write the prefixes out, or use hosts",
    "services": "services with addresses of their own are not known here",
    "attrConfig": "attributes of devices have no effect here",
    "extraDNSRecords": "names are not set in the policy here. See `edgehub --help`",
}
_HARMLESS = {
    "randomizeClientPort": "has no effect here: devices choose their ports themselves",
    "disableIPv4": "has no effect here: devices have an IPv4 and an IPv6 address",
    "OneCGNATRoute": "has no effect here",
    "derpMap": "has no effect here: relays are added by `edgehub relays invite`",
    "cacheNetworkMap": "has no effect here",
}
_RULE_REFUSED = {
    "srcPosture": "no device posture is checked here: the rule would let in whom it seems to keep out. Remove it",
    "via": "which router traffic goes by is not for the policy here. Remove it",
    "app": "capabilities of applications are not given out here. Remove it",
}


def read(text: str) -> Document:
    """Raises PolicyError with all that is wrong (the first SHOWN_MAX of it)."""
    return _Reading(parse(text)).document()


class _TooMany(Exception):
    """Enough problems were found."""


class _Reading:
    def __init__(self, root: Node) -> None:
        self._root = root
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._names = Names(frozenset(), frozenset(), {})

    def document(self) -> Document:
        try:
            found = self._sections()
        except _TooMany:
            raise PolicyError(self._problems) from None
        if self._problems:
            raise PolicyError(self._problems)
        return found

    def _sections(self) -> Document:
        sections = self._fields(self._root, (*_SECTIONS, *_REFUSED, *_HARMLESS), "section", "the policy")
        for name, why in _REFUSED.items():
            if name in sections and sections[name].value:
                self._problem(sections[name], f"{name}: {why}. Remove it")
        for name, why in _HARMLESS.items():
            if name in sections and sections[name].value not in (None, False, "", 0):
                self._warn(sections[name], f"{name}: {why}")
        groups = self._groups(sections.get("groups"))
        hosts = self._hosts(sections.get("hosts"))
        tags = self._table(sections.get("tagOwners"), "tagOwners", limits.TAGS_MAX)
        for key, _ in tags:
            if not is_tag(key.value):
                self._problem(
                    key, f"{clip(str(key.value))}: a tag is tag: and a name of a-z, 0-9 and -, at most 63 characters"
                )
        self._names = Names(frozenset(groups), frozenset(str(key.value) for key, _ in tags), hosts)
        owners = {str(key.value): self._people(node, "tagOwners") for key, node in tags}
        rules = [self._acl(node, f"acls[{at}]") for at, node in enumerate(self._list(sections.get("acls"), "acls"))]
        rules += [
            self._grant(node, f"grants[{i}]") for i, node in enumerate(self._list(sections.get("grants"), "grants"))
        ]
        if len(rules) > limits.RULES_MAX:
            self._problem(self._root, f"{len(rules)} rules: a policy has at most {limits.RULES_MAX}")
        routes, exits = self._approvers(sections.get("autoApprovers"))
        tests = [self._test(node) for node in self._list(sections.get("tests"), "tests", limits.TESTS_MAX)]
        if not rules:
            self._warn(self._root, "there are no rules, so no device may reach any other")
        return Document(
            groups=groups,
            tag_owners=owners,
            hosts=hosts,
            rules=tuple(rule for rule in rules if rule is not None),
            route_approvers=tuple(routes),
            exit_approvers=exits,
            tests=tuple(test for test in tests if test is not None),
            warnings=tuple(self._warnings),
        )

    # definitions

    def _groups(self, node: Node | None) -> dict[str, tuple[str, ...]]:
        groups: dict[str, tuple[str, ...]] = {}
        counts: dict[str, int] = {}
        for key, members in self._table(node, "groups", limits.GROUPS_MAX):
            name = str(key.value)
            if not is_group(name):
                self._problem(key, f"{clip(name)}: a group is group: and a name of letters, digits and . _ + -")
            logins: dict[str, None] = {}
            for member in self._list(members, name, limits.USERS_MAX):
                text = self._text(member)
                if text is None:
                    continue
                if text.startswith("group:"):
                    self._problem(member, f"{clip(text)}: a group has users, not groups. List its users here")
                    continue
                login = self._try(member, words.read_user, text)
                if login is not None and login not in logins:
                    logins[login] = None
                    counts[login] = counts.get(login, 0) + 1
                    if counts[login] == GROUPS_OF_A_USER_MAX + 1:
                        self._problem(member, f"{clip(text)}: a user can be in {GROUPS_OF_A_USER_MAX} groups at most")
            groups[name] = tuple(logins)
        return groups

    def _hosts(self, node: Node | None) -> dict[str, Prefix]:
        hosts: dict[str, Prefix] = {}
        for key, value in self._table(node, "hosts", limits.HOSTS_MAX):
            name = str(key.value)
            if not words.is_host_alias(name):
                self._problem(key, f"{clip(name)}: a host alias has letters, digits and . _ -, and is no address")
            prefix = self._prefix(value)
            if prefix is not None:
                hosts[name] = prefix
        return hosts

    def _prefix(self, node: Node) -> Prefix | None:
        text = self._text(node)
        if text is None:
            return None
        found = words.read_prefix(text)
        if found is None:
            self._problem(node, f"{clip(text)}: no address and no prefix. Write 192.0.2.7, 10.0.0.0/8 or fd00::/48")
            return None
        prefix, dropped = found
        if dropped:
            self._warn(
                node, f"{clip(text)}: bits behind the prefix do not count: it means {limits.prefix_text(prefix)}"
            )
        return prefix

    def _people(self, node: Node, what: str) -> tuple[Selector, ...]:
        """Owners of a tag, or approvers."""
        found: dict[Selector, None] = {}
        for item in self._list(node, what):
            text = self._text(item)
            if text is None:
                continue
            if words.is_role_without_meaning(text, roles=what == "tagOwners"):
                self._warn(item, f"{clip(text)}: this hub does not know who that is, so nobody is meant by it")
                continue
            selector = self._try(item, lambda text: self._names.selector(text, roles=True), text)
            if selector is None:
                continue
            if selector.kind in (Kind.ANY, Kind.PREFIX, Kind.SELF, Kind.INTERNET):
                self._problem(item, f"{clip(text)}: users, groups, tags, autogroup:member and roles can be named here")
            else:
                found[selector] = None
        return tuple(found)

    def _approvers(self, node: Node | None) -> tuple[list[tuple[Prefix, tuple[Selector, ...]]], tuple[Selector, ...]]:
        if node is None:
            return [], ()
        fields = self._fields(node, ("routes", "exitNode", "services"), "field", "autoApprovers")
        if "services" in fields and fields["services"].value:
            self._problem(fields["services"], "services with addresses of their own are not known here. Remove it")
        routes: list[tuple[Prefix, tuple[Selector, ...]]] = []
        for key, approvers in self._table(fields.get("routes"), "routes", limits.APPROVERS_MAX):
            prefix = self._prefix(key)
            if prefix is not None:
                routes.append((prefix, self._people(approvers, "routes")))
        exits = fields.get("exitNode")
        return routes, () if exits is None else self._people(exits, "exitNode")

    # rules

    def _acl(self, node: Node, name: str) -> Rule | None:
        allowed = ("action", "src", "dst", "proto", "users", "ports", *_RULE_REFUSED)
        fields = self._rule_fields(node, allowed, name)
        if fields is None:
            return None
        action = self._text(fields["action"]) if "action" in fields else None
        if "action" not in fields:
            self._problem(node, f'{name}: "action" is missing. Write "action": "accept"')
        elif action is not None and action != "accept":
            self._problem(
                fields["action"], f"{clip(action)}: rules only accept. What none accepts is denied: remove the rule"
            )
        source_node = self._one_of(fields, node, name, "src", "users")
        target_node = self._one_of(fields, node, name, "dst", "ports")
        protocols = self._protocols(fields.get("proto"))
        if source_node is None or target_node is None or protocols is None:
            return None
        sources = self._sources(source_node, name)
        by_services: dict[tuple[Service, ...], dict[Selector, None]] = {}
        for item in self._list(target_node, name):
            text = self._text(item)
            split = None if text is None else self._try(item, words.split_target, text)
            if split is None:
                continue
            target = self._target(item, split[0], sources)
            ports = self._try(item, words.read_ports, split[1])
            if target is None or ports is None:
                continue
            services = self._try(item, lambda ports: words.services_of(protocols, ports), ports)
            if services is not None:
                by_services.setdefault(tuple(sorted(set(services))), {})[target] = None
        parts = tuple(Part(tuple(targets), services) for services, targets in by_services.items())
        return Rule(name, node.line, node.column, sources, parts)

    def _grant(self, node: Node, name: str) -> Rule | None:
        fields = self._rule_fields(node, ("src", "dst", "ip", *_RULE_REFUSED), name)
        if fields is None:
            return None
        for key in ("src", "dst", "ip"):
            if key not in fields:
                self._problem(node, f'{name}: "{key}" is missing')
        if not {"src", "dst", "ip"} <= fields.keys():
            return None
        sources = self._sources(fields["src"], name)
        targets: dict[Selector, None] = {}
        for item in self._list(fields["dst"], name):
            text = self._text(item)
            target = None if text is None else self._target(item, text.strip("[]") if "[" in text else text, sources)
            if target is not None:
                targets[target] = None
        services: set[Service] = set()
        for item in self._list(fields["ip"], name):
            text = self._text(item)
            found = None if text is None else self._try(item, words.read_service, text)
            services.update(found or ())
        if not fields["ip"].value:
            self._warn(fields["ip"], f"{name}: no services, so it allows nothing")
        return Rule(name, node.line, node.column, sources, (Part(tuple(targets), tuple(sorted(services))),))

    def _rule_fields(self, node: Node, allowed: tuple[str, ...], name: str) -> dict[str, Node] | None:
        if not isinstance(node.value, dict):
            self._problem(node, f"{name}: an object {{ … }} expected, found {node.kind}")
            return None
        fields = self._fields(node, allowed, "field", name)
        for key, why in _RULE_REFUSED.items():
            if key in fields and fields[key].value:
                self._problem(fields[key], f"{key}: {why}")
        return fields

    def _sources(self, node: Node, name: str) -> tuple[Selector, ...]:
        found: dict[Selector, None] = {}
        for item in self._list(node, name):
            text = self._text(item)
            selector = None if text is None else self._try(item, self._names.selector, text)
            if selector is None:
                continue
            if selector.kind in (Kind.SELF, Kind.INTERNET):
                self._problem(item, f"{clip(text or '')}: can only be a destination")
            else:
                self._warn_dropped(item, text or "")
                found[selector] = None
        return tuple(found)

    def _target(self, node: Node, text: str, sources: tuple[Selector, ...]) -> Selector | None:
        selector = self._try(node, self._names.selector, text)
        if selector is None:
            return None
        self._warn_dropped(node, text)
        if selector.kind is Kind.SELF:
            others = [source for source in sources if source.kind not in (Kind.USER, Kind.GROUP, Kind.MEMBER, Kind.ANY)]
            if others:
                self._problem(
                    node, f"'autogroup:self': {others[0]} is no user, so it has no devices of its own. Make two rules"
                )
                return None
        return selector

    def _warn_dropped(self, node: Node, text: str) -> None:
        found = words.read_prefix(text)
        if found is not None and found[1]:
            meant = limits.prefix_text(found[0])
            self._warn(node, f"{clip(text)}: bits behind the prefix do not count: it means {meant}")

    def _protocols(self, node: Node | None) -> tuple[int, ...] | None:
        if node is None or node.value == "":
            return (ANY_OF_THESE,)
        if type(node.value) is int:
            return self._try(node, words.read_protocol, str(node.value))
        text = self._text(node)
        return None if text is None else self._try(node, words.read_protocol, text)

    # tests

    def _test(self, node: Node) -> Test | None:
        if not isinstance(node.value, dict):
            self._problem(node, f"a test is an object {{ … }}, found {node.kind}")
            return None
        allowed = ("src", "accept", "deny", "proto", "user", "allow", "srcPostureAttrs")
        fields = self._fields(node, allowed, "field", "a test")
        if "srcPostureAttrs" in fields and fields["srcPostureAttrs"].value:
            self._problem(fields["srcPostureAttrs"], "no device posture is checked here. Remove it")
        source_node = self._one_of(fields, node, "the test", "src", "user")
        protocols = self._protocols(fields.get("proto"))
        if source_node is None or protocols is None:
            return None
        text = self._text(source_node)
        source = None if text is None else self._try(source_node, self._names.selector, text)
        if source is not None and not _is_one(source) and source.kind is not Kind.GROUP:
            self._problem(source_node, f"{clip(text or '')}: a test begins at a user, a group, a tag or one address")
            source = None
        claims: list[Claim] = []
        for key, is_allowed in (("accept", True), ("allow", True), ("deny", False)):
            if key in fields:
                items = self._list(fields[key], key)
                claims += [claim for item in items if (claim := self._claim(item, protocols, is_allowed)) is not None]
        if not claims and not self._problems:
            self._warn(node, "this test claims nothing")
        if source is None:
            return None
        if protocols == (ANY_OF_THESE,):
            protocols = (TCP, UDP)
        return Test(node.line, node.column, source, protocols, tuple(claims))

    def _claim(self, node: Node, protocols: tuple[int, ...], is_allowed: bool) -> Claim | None:
        text = self._text(node)
        split = None if text is None else self._try(node, words.split_target, text)
        if text is None or split is None:
            return None
        target = self._try(node, self._names.selector, split[0])
        ports = self._try(node, words.read_ports, split[1])
        if target is None or ports is None:
            return None
        if not _is_one(target) and target.kind not in (Kind.GROUP, Kind.SELF, Kind.INTERNET):
            self._problem(node, f"{clip(text)}: a test ends at a user, a group, a tag or one address")
            return None
        return Claim(node.line, node.column, text, target, tuple(ports), is_allowed)

    # nodes

    def _fields(self, node: Node, allowed: tuple[str, ...], what: str, where: str) -> dict[str, Node]:
        """The members of an object by their names; case does not matter, as for the programs these files come from."""
        if not isinstance(node.value, dict):
            self._problem(node, f"{where}: an object {{ … }} expected, found {node.kind}")
            return {}
        by_lower = {name.lower(): name for name in allowed}
        found: dict[str, Node] = {}
        for key, value in node.value.values():
            text = str(key.value)
            name = by_lower.get(text.lower())
            if text.startswith("#"):
                continue  # what editors keep for themselves
            if name is None:
                self._problem(key, f"{clip(text)}: {where} has no such {what}. There are {', '.join(_known(allowed))}")
            elif name in found:
                self._problem(key, f"{clip(text)}: stands here a second time. Put the two together")
            else:
                found[name] = value
        return found

    def _table(self, node: Node | None, what: str, most: int) -> list[tuple[Node, Node]]:
        if node is None or node.value is None:
            return []
        if not isinstance(node.value, dict):
            self._problem(node, f"{what}: an object {{ … }} expected, found {node.kind}")
            return []
        if len(node.value) > most:
            self._problem(node, f"{what}: {len(node.value)} items, at most {most} are possible")
        return list(node.value.values())

    def _list(self, node: Node | None, what: str, most: int = limits.ITEMS_MAX) -> Iterator[Node]:
        if node is None or node.value is None:
            return
        if not isinstance(node.value, list):
            self._problem(node, f"{what}: an array [ … ] expected, found {node.kind}")
            return
        most = max(most, limits.RULES_MAX) if what in ("acls", "grants") else most
        if len(node.value) > most:
            self._problem(node, f"{what}: {len(node.value)} items, at most {most} are possible")
        yield from node.value

    def _one_of(self, fields: dict[str, Node], node: Node, where: str, name: str, older: str) -> Node | None:
        """A field under its name, or the one that it had before."""
        if name in fields and older in fields:
            self._problem(fields[older], f'{where}: "{older}" is the old name of "{name}". Keep one')
        found = fields.get(name, fields.get(older))
        if found is None:
            self._problem(node, f'{where}: "{name}" is missing')
        return found

    def _text(self, node: Node) -> str | None:
        if isinstance(node.value, str):
            return node.value
        self._problem(node, f"text in quotation marks expected, found {node.kind}")
        return None

    def _try(
        self, node: Node, read: Callable[[str], T] | Callable[[list[tuple[int, int]]], T], value: object
    ) -> T | None:
        try:
            return read(value)  # type: ignore[arg-type]
        except ValueError as error:
            self._problem(node, str(error))
            return None

    def _problem(self, node: Node, text: str) -> None:
        self._problems.append(node.problem(text))
        if len(self._problems) >= SHOWN_MAX:
            raise _TooMany

    def _warn(self, node: Node, text: str) -> None:
        if len(self._warnings) < SHOWN_MAX:
            self._warnings.append(node.problem(text))


def _is_one(selector: Selector) -> bool:
    """Whether it is a single kind of device or a single address."""
    if selector.prefix is not None:
        return selector.prefix[1] == 8 * len(selector.prefix[0])
    return selector.kind in (Kind.USER, Kind.TAG)


def _known(allowed: tuple[str, ...]) -> list[str]:
    return [name for name in allowed if name not in _REFUSED and name not in _HARMLESS and name not in _RULE_REFUSED]
