"""From HuJSON to a `Document`: every section checked, every mistake collected with its place.

What this hub would not enforce is refused, so that nobody believes in a rule that is none; what changes nothing about
who reaches what is let through with a warning.
"""

from __future__ import annotations

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
from hub.core.policy.nodes import NodeReader, TooManyProblems
from hub.core.policy.problems import PolicyError
from hub.core.policy.words import Names, clip

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


class _Reading(NodeReader):
    def __init__(self, root: Node) -> None:
        super().__init__()
        self._root = root
        self._names = Names(frozenset(), frozenset(), {})

    def document(self) -> Document:
        try:
            found = self._sections()
        except TooManyProblems:
            raise PolicyError(self.problems) from None
        if self.problems:
            raise PolicyError(self.problems)
        return found

    def _sections(self) -> Document:
        sections = self.fields(self._root, _SECTIONS, "section", "the policy", (*_REFUSED, *_HARMLESS))
        for name, why in _REFUSED.items():
            if name in sections and sections[name].value:
                self.problem(sections[name], f"{name}: {why}. Remove it")
        for name, why in _HARMLESS.items():
            if name in sections and sections[name].value:
                self.warn(sections[name], f"{name}: {why}")
        groups = self._groups(sections.get("groups"))
        hosts = self._hosts(sections.get("hosts"))
        tags = self.members(sections.get("tagOwners"), "tagOwners", limits.TAGS_MAX)
        for key, _ in tags:
            if not is_tag(key.value):
                self.problem(
                    key, f"{clip(str(key.value))}: a tag is tag: and a name of a-z, 0-9 and -, at most 63 characters"
                )
        self._names = Names(frozenset(groups), frozenset(str(key.value) for key, _ in tags), hosts)
        owners = {str(key.value): self._people(node, "tagOwners") for key, node in tags}
        acls = self.items(sections.get("acls"), "acls", limits.RULES_MAX)
        grants = self.items(sections.get("grants"), "grants", limits.RULES_MAX)
        rules = [self._acl(node, f"acls[{at}]") for at, node in enumerate(acls)]
        rules += [self._grant(node, f"grants[{at}]") for at, node in enumerate(grants)]
        if len(rules) > limits.RULES_MAX:
            self.problem(self._root, f"{len(rules)} rules: a policy has at most {limits.RULES_MAX}")
        routes, exits = self._approvers(sections.get("autoApprovers"))
        tests = [self._test(node) for node in self.items(sections.get("tests"), "tests", limits.TESTS_MAX)]
        if not rules:
            self.warn(self._root, "there are no rules, so no device may reach any other")
        return Document(
            groups=groups,
            tag_owners=owners,
            hosts=hosts,
            rules=tuple(rule for rule in rules if rule is not None),
            route_approvers=tuple(routes),
            exit_approvers=exits,
            tests=tuple(test for test in tests if test is not None),
            warnings=tuple(self.warnings),
        )

    # definitions

    def _groups(self, node: Node | None) -> dict[str, tuple[str, ...]]:
        groups: dict[str, tuple[str, ...]] = {}
        counts: dict[str, int] = {}
        for key, members in self.members(node, "groups", limits.GROUPS_MAX):
            name = str(key.value)
            if not is_group(name):
                self.problem(key, f"{clip(name)}: a group is group: and a name of letters, digits and . _ + -")
            logins: dict[str, None] = {}
            for member in self.items(members, name, limits.USERS_MAX):
                text = self.text(member)
                if text is None:
                    continue
                if text.startswith("group:"):
                    self.problem(member, f"{clip(text)}: a group has users, not groups. List its users here")
                    continue
                login = self.attempt(member, words.read_user, text)
                if login is not None and login not in logins:
                    logins[login] = None
                    counts[login] = counts.get(login, 0) + 1
                    if counts[login] == GROUPS_OF_A_USER_MAX + 1:
                        self.problem(member, f"{clip(text)}: a user can be in {GROUPS_OF_A_USER_MAX} groups at most")
            groups[name] = tuple(logins)
        return groups

    def _hosts(self, node: Node | None) -> dict[str, Prefix]:
        hosts: dict[str, Prefix] = {}
        for key, value in self.members(node, "hosts", limits.HOSTS_MAX):
            name = str(key.value)
            if not words.is_host_alias(name):
                self.problem(key, f"{clip(name)}: a host alias has letters, digits and . _ -, and is no address")
            prefix = self._prefix(value)
            if prefix is not None:
                hosts[name] = prefix
        return hosts

    def _prefix(self, node: Node) -> Prefix | None:
        text = self.text(node)
        if text is None:
            return None
        found = words.read_prefix(text)
        if found is None:
            self.problem(node, f"{clip(text)}: no address and no prefix. Write 192.0.2.7, 10.0.0.0/8 or fd00::/48")
            return None
        prefix, dropped = found
        if dropped:
            self.warn(node, f"{clip(text)}: bits behind the prefix do not count: it means {limits.prefix_text(prefix)}")
        return prefix

    def _people(self, node: Node, what: str) -> tuple[Selector, ...]:
        """Owners of a tag, or approvers."""
        found: dict[Selector, None] = {}
        for item in self.items(node, what):
            text = self.text(item)
            if text is None:
                continue
            if words.is_role_without_meaning(text, roles=what == "tagOwners"):
                self.warn(item, f"{clip(text)}: this hub does not know who that is, so nobody is meant by it")
                continue
            selector = self.attempt(item, lambda text: self._names.selector(text, roles=True), text)
            if selector is None:
                continue
            if selector.kind in (Kind.ANY, Kind.PREFIX, Kind.SELF, Kind.INTERNET):
                self.problem(item, f"{clip(text)}: users, groups, tags, autogroup:member and roles can be named here")
            else:
                found[selector] = None
        return tuple(found)

    def _approvers(self, node: Node | None) -> tuple[list[tuple[Prefix, tuple[Selector, ...]]], tuple[Selector, ...]]:
        if node is None:
            return [], ()
        fields = self.fields(node, ("routes", "exitNode"), "field", "autoApprovers", ("services",))
        if "services" in fields and fields["services"].value:
            self.problem(fields["services"], "services with addresses of their own are not known here. Remove it")
        routes: list[tuple[Prefix, tuple[Selector, ...]]] = []
        for key, approvers in self.members(fields.get("routes"), "routes", limits.APPROVERS_MAX):
            prefix = self._prefix(key)
            if prefix is not None:
                routes.append((prefix, self._people(approvers, "routes")))
        exits = fields.get("exitNode")
        return routes, () if exits is None else self._people(exits, "exitNode")

    # rules

    def _acl(self, node: Node, name: str) -> Rule | None:
        fields = self._rule_fields(node, ("action", "src", "dst", "proto"), name, ("users", "ports"))
        if fields is None:
            return None
        action = self.text(fields["action"]) if "action" in fields else None
        if "action" not in fields:
            self.problem(node, f'{name}: "action" is missing. Write "action": "accept"')
        elif action is not None and action != "accept":
            self.problem(
                fields["action"], f"{clip(action)}: rules only accept. What none accepts is denied: remove the rule"
            )
        source_node = self.one_of(fields, node, name, "src", "users")
        target_node = self.one_of(fields, node, name, "dst", "ports")
        protocols = self._protocols(fields.get("proto"))
        if source_node is None or target_node is None or protocols is None:
            return None
        sources = self._sources(source_node, name)
        by_services: dict[tuple[Service, ...], dict[Selector, None]] = {}
        for item in self.items(target_node, name):
            text = self.text(item)
            split = None if text is None else self.attempt(item, words.split_target, text)
            if split is None:
                continue
            target = self._target(item, split[0], sources)
            ports = self.attempt(item, words.read_ports, split[1])
            if target is None or ports is None:
                continue
            services = self.attempt(item, lambda ports: words.services_of(protocols, ports), ports)
            if services is not None:
                by_services.setdefault(tuple(sorted(set(services))), {})[target] = None
        parts = tuple(Part(tuple(targets), services) for services, targets in by_services.items())
        return Rule(name, node.line, node.column, sources, parts)

    def _grant(self, node: Node, name: str) -> Rule | None:
        fields = self._rule_fields(node, ("src", "dst", "ip"), name)
        if fields is None:
            return None
        for key in ("src", "dst", "ip"):
            if key not in fields:
                self.problem(node, f'{name}: "{key}" is missing')
        if not {"src", "dst", "ip"} <= fields.keys():
            return None
        sources = self._sources(fields["src"], name)
        targets: dict[Selector, None] = {}
        for item in self.items(fields["dst"], name):
            text = self.text(item)
            target = None if text is None else self._target(item, text.strip("[]") if "[" in text else text, sources)
            if target is not None:
                targets[target] = None
        services: set[Service] = set()
        for item in self.items(fields["ip"], name):
            text = self.text(item)
            found = None if text is None else self.attempt(item, words.read_service, text)
            services.update(found or ())
        if not fields["ip"].value:
            self.warn(fields["ip"], f"{name}: no services, so it allows nothing")
        return Rule(name, node.line, node.column, sources, (Part(tuple(targets), tuple(sorted(services))),))

    def _rule_fields(
        self, node: Node, known: tuple[str, ...], name: str, older: tuple[str, ...] = ()
    ) -> dict[str, Node] | None:
        if not isinstance(node.value, dict):
            self.problem(node, f"{name}: an object {{ … }} expected, found {node.kind}")
            return None
        fields = self.fields(node, known, "field", name, (*older, *_RULE_REFUSED))
        for key, why in _RULE_REFUSED.items():
            if key in fields and fields[key].value:
                self.problem(fields[key], f"{key}: {why}")
        return fields

    def _sources(self, node: Node, name: str) -> tuple[Selector, ...]:
        found: dict[Selector, None] = {}
        for item in self.items(node, name):
            text = self.text(item)
            selector = None if text is None else self.attempt(item, self._names.selector, text)
            if selector is None:
                continue
            if selector.kind in (Kind.SELF, Kind.INTERNET):
                self.problem(item, f"{clip(text or '')}: can only be a destination")
            else:
                self._warn_dropped(item, text or "")
                found[selector] = None
        return tuple(found)

    def _target(self, node: Node, text: str, sources: tuple[Selector, ...]) -> Selector | None:
        selector = self.attempt(node, self._names.selector, text)
        if selector is None:
            return None
        self._warn_dropped(node, text)
        if selector.kind is Kind.SELF:
            others = [source for source in sources if source.kind not in (Kind.USER, Kind.GROUP, Kind.MEMBER, Kind.ANY)]
            if others:
                self.problem(
                    node, f"'autogroup:self': {others[0]} is no user, so it has no devices of its own. Make two rules"
                )
                return None
        return selector

    def _warn_dropped(self, node: Node, text: str) -> None:
        found = words.read_prefix(text)
        if found is not None and found[1]:
            meant = limits.prefix_text(found[0])
            self.warn(node, f"{clip(text)}: bits behind the prefix do not count: it means {meant}")

    def _protocols(self, node: Node | None) -> tuple[int, ...] | None:
        if node is None or node.value == "":
            return (ANY_OF_THESE,)
        if type(node.value) is int:
            return self.attempt(node, words.read_protocol, str(node.value))
        text = self.text(node)
        return None if text is None else self.attempt(node, words.read_protocol, text)

    # tests

    def _test(self, node: Node) -> Test | None:
        if not isinstance(node.value, dict):
            self.problem(node, f"a test is an object {{ … }}, found {node.kind}")
            return None
        known, older = ("src", "accept", "deny", "proto"), ("user", "allow", "srcPostureAttrs")
        fields = self.fields(node, known, "field", "a test", older)
        if "srcPostureAttrs" in fields and fields["srcPostureAttrs"].value:
            self.problem(fields["srcPostureAttrs"], "no device posture is checked here. Remove it")
        source_node = self.one_of(fields, node, "the test", "src", "user")
        protocols = self._protocols(fields.get("proto"))
        if source_node is None or protocols is None:
            return None
        text = self.text(source_node)
        source = None if text is None else self.attempt(source_node, self._names.selector, text)
        if source is not None and not _is_one(source) and source.kind is not Kind.GROUP:
            self.problem(source_node, f"{clip(text or '')}: a test begins at a user, a group, a tag or one address")
            source = None
        claims: list[Claim] = []
        for key, is_allowed in (("accept", True), ("allow", True), ("deny", False)):
            if key in fields:
                items = self.items(fields[key], key)
                claims += [claim for item in items if (claim := self._claim(item, protocols, is_allowed)) is not None]
        if not claims and not self.problems:
            self.warn(node, "this test claims nothing")
        if source is None:
            return None
        if protocols == (ANY_OF_THESE,):
            protocols = (TCP, UDP)
        return Test(node.line, node.column, source, protocols, tuple(claims))

    def _claim(self, node: Node, protocols: tuple[int, ...], is_allowed: bool) -> Claim | None:
        text = self.text(node)
        split = None if text is None else self.attempt(node, words.split_target, text)
        if text is None or split is None:
            return None
        target = self.attempt(node, self._names.selector, split[0])
        ports = self.attempt(node, words.read_ports, split[1])
        if target is None or ports is None:
            return None
        if not _is_one(target) and target.kind not in (Kind.GROUP, Kind.SELF, Kind.INTERNET):
            self.problem(node, f"{clip(text)}: a test ends at a user, a group, a tag or one address")
            return None
        return Claim(node.line, node.column, text, target, tuple(ports), is_allowed)


def _is_one(selector: Selector) -> bool:
    """Whether it is a single kind of device or a single address."""
    if selector.prefix is not None:
        return selector.prefix[1] == 8 * len(selector.prefix[0])
    return selector.kind in (Kind.USER, Kind.TAG)
