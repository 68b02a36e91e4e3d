"""What policies say and what is wrong with them: golden files, every mistake with its place, and bytes of all kinds."""

from __future__ import annotations

import tracemalloc
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.core.policy import words
from hub.core.policy.compile import Facts, Policy, may_tag, routes_internet
from hub.core.policy.evaluate import End, check, matrix, services_text, verdict
from hub.core.policy.hujson import BYTES_MAX, to_text
from hub.core.policy.problems import PolicyError, Problem, excerpt
from hub.core.policy.reading import read

GOLDEN = sorted(Path(__file__).with_name("policies").glob("*.txt"))
HEAD = "==== from -> to : service : verdict\n"
PREFIX = '{"tagOwners": {"tag:a": []}, "groups": {"group:g": ["u@"]}, "hosts": {"h": "10.0.0.0/8"},\n'


# golden files


def end(text: str) -> End:
    """`tag:x`, `user@`, `name address` or an address that is no device's own."""
    name, _, address = text.partition(" ")
    if "@" in name:
        facts: Facts | None = Facts(user=words.read_user(name))
    elif name.startswith("tag:"):
        facts = Facts(tags=(name,))
    else:
        facts, address = None, address or name
    return End(facts, ip_address(address).packed if address else None)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_verdicts(path: Path) -> None:
    text, _, table = path.read_text(encoding="utf-8").partition(HEAD)
    policy = check(text)
    lines = table.splitlines()
    assert lines
    for line in lines:
        ends, service, expected = line.split(" : ")
        source, target = (end(part) for part in ends.split(" -> "))
        name, _, port = service.partition(" ")
        rule = verdict(policy, source, target, words.read_protocol(name)[0], int(port or 0))
        assert ("denied" if rule is None else rule.name) == expected, line


def test_the_example_of_the_documentation_is_a_policy() -> None:
    page = Path(__file__).parents[2] / "docs" / "policy.md"
    document = check(page.read_text(encoding="utf-8").split("```\n")[3]).document
    assert len(document.rules) == 4 and len(document.tests) == 2 and document.warnings == ()


# mistakes and their places


MISTAKES = [
    # (policy, its problems as line:column and the beginning of the text)
    ("", ["1:1 there is nothing here"]),
    ("[]", ["1:1 the policy: an object"]),
    ("{", ["1:1 this { is not closed"]),
    ('{"acls": [\n  1,\n', ["1:10 this [ is not closed"]),
    ("/* {}", ["1:1 this comment has no end"]),
    ("{} {}", ["1:4 something follows"]),
    ('{"a": 1 /* c */ "b": 2}', ["1:17 a comma or }"]),
    ('{"acls": [], "acls": []}', ["1:14 the key 'acls' stands here a second time"]),
    ('{"acls": [], "ACLs": []}', ["1:14 'ACLs': stands here a second time"]),
    ('{"acls": [,]}', ["1:11 a value expected, found ,"]),
    ('{"acls": [tag:a]}', ["1:11 a value expected, found tag"]),
    ("{'acls': []}", ["1:2 a key in quotation marks"]),
    ('{"a\nb": 1}', ["1:2 this text has no closing"]),
    ('{"\\x41": 1}', ["1:3 unknown escape"]),
    ('{"\\ud800": 1}', ["1:3 half of a surrogate"]),
    ('{"\x07": 1}', ["1:3 control character"]),
    ('{"a": 01}', ["1:7 no number"]),
    ('{"a": ' + "9" * 40 + "}", ["1:7 a number of 40"]),
    ("[" * 33, ["1:33 more than 32 levels"]),
    ("\n\n  {\n\t\u00e9", ["4:2 a key in quotation marks or }"]),
    ('{"rules": []}', ["1:2 'rules': the policy has no such section"]),
    ('{"ssh": [{}]}', ["1:9 ssh: this hub does not control SSH"]),
    ('{"nodeAttrs": [{}]}', ["1:15 nodeAttrs: attributes"]),
    ('{"postures": {"posture:p": []}}', ["1:14 postures: no device posture"]),
    ('{"ipsets": {"ipset:p": []}}', ["1:12 ipsets: sets of addresses"]),
    ('{"groups": {"g": []}}', ["1:13 'g': a group is group:"]),
    ('{"groups": {"group:g": ["u"]}}', ["1:25 'u': a user is written"]),
    ('{"groups": {"group:g": ["group:h"]}}', ["1:25 'group:h': a group has users"]),
    ('{"groups": {"group:g": "u@"}}', ["1:24 group:g: an array"]),
    ('{"tagOwners": {"tag:A": []}}', ["1:16 'tag:A': a tag is"]),
    ('{"tagOwners": {"tag:a": ["*"]}}', ["1:26 '*': users, groups, tags"]),
    ('{"hosts": {"h": "10.0.0.300"}}', ["1:17 '10.0.0.300': no address"]),
    ('{"hosts": {"tag:h": "10.0.0.3"}}', ["1:12 'tag:h': a host alias"]),
    ('{"autoApprovers": {"routes": {"x": []}}}', ["1:31 'x': no address"]),
    ('{"autoApprovers": {"exitNode": ["tag:b"]}}', ["1:33 'tag:b': there is no such tag"]),
    ('{"tests": [{"src": "*"}]}', ["1:20 '*': a test begins at"]),
    ('{"tests": [{"src": "u@", "accept": ["*:1"]}]}', ["1:37 '*:1': a test ends at"]),
    ('{"tests": [{"src": "u@", "accept": ["u@"]}]}', ["1:37 'u@': ports are missing"]),
]
RULES = [
    ('{"src": [], "dst": []}', ['2:10 acls[0]: "action" is missing']),
    ('{"action": "deny", "src": [], "dst": []}', ["2:21 'deny': rules only accept"]),
    ('{"action": "accept", "src": []}', ['2:10 acls[0]: "dst" is missing']),
    ('{"action": "accept", "src": [], "users": [], "dst": []}', ['2:51 acls[0]: "users" is the old name']),
    ('{"action": "accept", "src": ["tag:b"], "dst": []}', ["2:39 'tag:b': there is no such tag"]),
    ('{"action": "accept", "src": ["group:b"], "dst": []}', ["2:39 'group:b': there is no such group"]),
    ('{"action": "accept", "src": ["u"], "dst": []}', ["2:39 'u': neither an address nor"]),
    ('{"action": "accept", "src": ["autogroup:admin"], "dst": []}', ["2:39 'autogroup:admin': devices are not"]),
    ('{"action": "accept", "src": ["autogroup:self"], "dst": []}', ["2:39 'autogroup:self': can only be a dest"]),
    ('{"action": "accept", "src": ["autogroup:danger-all"], "dst": []}', ["2:39 'autogroup:danger-all': nothing"]),
    ('{"action": "accept", "src": ["autogroup:odd"], "dst": []}', ["2:39 'autogroup:odd': unknown"]),
    ('{"action": "accept", "src": ["ipset:x"], "dst": []}', ["2:39 'ipset:x': ipset: is not known"]),
    ('{"action": "accept", "src": [7], "dst": []}', ["2:39 text in quotation marks expected, found a number"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*"]}', ["2:53 '*': ports are missing. Write *:443"]),
    ('{"action": "accept", "src": ["*"], "dst": ["tag:a"]}', ["2:53 'tag:a': ports are missing"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:http"]}', ["2:53 'http': ports are numbers"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:65536"]}', ["2:53 '65536': ports end at 65535"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:90-80"]}', ["2:53 '90-80': the range runs backwards"]),
    ('{"action": "accept", "src": ["*"], "dst": ["fd00::1"]}', ["2:53 'fd00::1': an IPv6 address stands in br"]),
    ('{"action": "accept", "src": ["*"], "dst": ["[fd00::1]"]}', ["2:53 '[fd00::1]': after the brackets"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:80"], "proto": "icmp"}', ["2:53 only tcp, udp and sctp"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:80"], "proto": "quic"}', ["2:71 'quic': no protocol"]),
    ('{"action": "accept", "src": ["*"], "dst": ["*:80"], "proto": "256"}', ["2:71 '256': no protocol"]),
    ('{"action": "accept", "src": ["*"], "dst": [], "srcPosture": ["p"]}', ["2:70 srcPosture: no device posture"]),
    ('{"action": "accept", "src": ["*"], "dst": [], "when": 1}', ["2:56 'when': acls[0] has no such field"]),
    ('{"action": "accept", "src": ["tag:a"], "dst": ["autogroup:self:*"]}', ["2:57 'autogroup:self': tag:a is no"]),
]


def problems_of(text: str) -> list[str]:
    with pytest.raises(PolicyError) as refused:
        check(text)
    return [f"{problem.line}:{problem.column} {problem.text}" for problem in refused.value.problems]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text[:30] for text, _ in MISTAKES])
def test_mistakes_have_a_place(text: str, expected: list[str]) -> None:
    found = problems_of(text)
    assert len(found) == len(expected), found
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize(("rule", "expected"), RULES, ids=[rule[:70] for rule, _ in RULES])
def test_mistakes_in_rules_have_a_place(rule: str, expected: list[str]) -> None:
    found = problems_of(f'{PREFIX}"acls": [{rule}]}}')
    assert len(found) == len(expected), found
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_all_mistakes_are_told_at_once_in_order() -> None:
    text = PREFIX + '"acls": [\n{"src": ["x"], "dst": ["*"]},\n{"action": "accept", "src": ["*"], "dst": ["*:x"]}]}'
    assert [problem.split(" ")[0] for problem in problems_of(text)] == ["3:1", "3:10", "3:24", "4:44"]


def test_an_excerpt_has_the_caret_below_the_place() -> None:
    text = '{"acls": [\n\t"é", {"action": "no"}, 7, "' + "x" * 300 + '"]}'
    for problem in read_refused(text):
        line, caret = excerpt(text, problem)
        assert len(line) <= 100
        shown = text.split("\n")[problem.line - 1][problem.column - 1]
        assert line[len(caret) - 1] == shown and caret.endswith("^")


def read_refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(PolicyError) as refused:
        read(text)
    return refused.value.problems


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ('{"src": "u@", "accept": ["tag:a:23"]}', ["3:36 test failed: tag:a:23 from u@ is denied, no rule accepts it"]),
        (
            '{"src": "u@", "deny": ["tag:a:22"]}',
            ["3:34 test failed: tag:a:22 from u@ is accepted, by acls[0]"],
        ),
        (
            '{"src": "group:g", "accept": ["tag:a:22-23"]}',
            ["3:41 test failed: tag:a:22-23 from u of group:g"],
        ),
        ('{"src": "u@", "proto": "udp", "accept": ["tag:a:22"]}', ["3:52 test failed: tag:a:22 from u@ is denied"]),
        ('{"src": "group:none", "accept": ["tag:a:22"]}', ["3:11 test: group:none has no users"]),
        ('{"src": "tag:a", "accept": ["autogroup:self:1"]}', ["3:39 test: autogroup:self has nobody"]),
        ('{"src": "u@", "accept": ["tag:a:1", "tag:a:2"]}', ["3:36 test failed", "3:47 test failed"]),
    ],
)
def test_failing_tests_are_named(test: str, expected: list[str]) -> None:
    rules = '{"action": "accept", "src": ["group:g"], "proto": "tcp", "dst": ["tag:a:22"]}'
    text = PREFIX.replace('["u@"]', '["u@"], "group:none": []') + f'"acls": [{rules}],\n"tests": [{test}]}}'
    found = problems_of(text)
    assert len(found) == len(expected), found
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


def test_what_changes_nothing_is_a_warning() -> None:
    document = read('{"randomizeClientPort": true, "ssh": [], "hosts": {"h": "10.0.0.9/8"}, "disableIPv4": false}')
    assert [(warning.column, warning.text.split(":")[0]) for warning in document.warnings] == [
        (25, "randomizeClientPort"),
        (57, "'10.0.0.9/8'"),
        (1, "there are no rules, so no device may reach any other"),
    ]


# ceilings


def many(count: int, rule: str) -> str:
    rules = ",\n".join(rule.replace("%", str(at)) for at in range(count))
    tags = ", ".join(f'"tag:t{at}": []' for at in range(count))
    users = ", ".join(f'"group:g{at}": ["u{at}@"]' for at in range(count))
    return f'{{"tagOwners": {{{tags}}}, "groups": {{{users}}}, "acls": [\n{rules}]}}'


def test_a_policy_that_would_make_a_slice_too_large_is_refused_and_the_rule_named() -> None:
    [found] = problems_of(many(400, '{"action":"accept","src":["tag:t%"],"dst":["10.1.0.0/16:%"]}'))
    at, _, text = found.partition(" ")
    assert text.startswith("acls[") and "at most 256 rules and 8192 bytes" in text
    number = int(text[5 : text.index("]")])
    assert at == f"{number + 2}:1"
    rules = '{"action":"accept","src":["tag:t%"],"dst":["10.1.0.0/16:%"]}'
    check(many(number, rules))
    problems_of(many(number + 1, rules))


def test_many_tags_and_groups_are_no_reason_to_refuse() -> None:
    policy = check(many(200, '{"action":"accept","src":["group:g%"],"dst":["tag:t%:22"]}'))
    body = policy.slice_for(Facts(tags=("tag:t7",)))
    assert body["in"] == [[["group:g7"], ["me"], [[0, 22, 22]]]] and body["out"] == []
    assert policy.slice_for(Facts(user="u9"))["out"] == [[["tag:t9"], [[0, 22, 22]]]]


def test_addresses_of_the_mesh_concern_one_device_each_and_no_router() -> None:
    hosts = ", ".join(f'"h{at}": "100.64.{at // 250}.{at % 250}"' for at in range(600))
    rules = ",".join(f'{{"action": "accept", "src": ["u{at}@"], "dst": ["h{at}:{at}"]}}' for at in range(600))
    policy = check(f'{{"hosts": {{{hosts}}}, "acls": [{rules}]}}')
    device = Facts(addresses=(bytes((100, 64, 1, 7)),), routes=((bytes(4), 0),))
    assert policy.slice_for(device)["in"] == [[["user:u257"], [[bytes((100, 64, 1, 7)), 32]], [[0, 257, 257]]]]


@pytest.mark.parametrize(
    ("route", "is_one"),
    [
        *(("0.0.0.0/0", True), ("8.8.8.0/24", True), ("192.168.0.0/15", True), ("192.168.0.0/16", False)),
        *(("::/0", True), ("10.0.0.0/7", True), ("fe80::/9", True), ("fc00::/7", False), ("fd00::/8", False)),
        ("2600::/64", True),
    ],
)
def test_which_routes_lead_to_the_internet(route: str, is_one: bool) -> None:
    network = ip_network(route)
    assert routes_internet(Facts(routes=((network.network_address.packed, network.prefixlen),))) == is_one


def test_long_lists_are_cut_into_rules_that_devices_take() -> None:
    sources = ", ".join(f'"10.{at}.0.0/16"' for at in range(200))
    policy = check(f'{{"acls": [{{"action": "accept", "src": [{sources}], "dst": ["*:*"]}}]}}')
    incoming = policy.slice_for(Facts())["in"]
    assert [len(sources) for sources, _, _ in incoming] == [72, 128]


def test_a_user_is_in_as_many_groups_as_a_record_holds() -> None:
    groups = ", ".join(f'"group:g{at}": ["u@"]' for at in range(65))
    [found] = problems_of(f'{{"groups": {{{groups}}}}}')
    assert "a user can be in 64 groups at most" in found


# what others ask of a policy


def test_who_may_tag() -> None:
    policy = check(
        '{"groups": {"group:g": ["ann@"]}, "tagOwners": {"tag:a": ["group:g"], "tag:b": ["bob@", "tag:a"],'
        ' "tag:c": ["autogroup:member"], "tag:d": ["autogroup:admin"], "tag:e": ["autogroup:network-admin"]}}'
    )
    tags = ("tag:a", "tag:b", "tag:c", "tag:d", "tag:e", "tag:other")

    def allowed(user: str, *roles: str) -> str:
        return "".join(tag[4] for tag in tags if may_tag(policy, user, roles, tag))

    assert allowed("ann", "operator") == "ac"
    assert allowed("bob", "operator") == "bc"
    assert allowed("", "operator") == ""
    assert allowed("eve", "admin") == allowed("eve", "owner") == "abcdeo"
    assert may_tag(None, "eve", ["owner"], "tag:a") and not may_tag(None, "eve", ["operator"], "tag:a")


def test_auto_approvers() -> None:
    policy = check(
        '{"groups": {"group:g": ["ann@"]}, "tagOwners": {"tag:r": []}, "autoApprovers": {"routes": {"10.0.0.0/8":'
        ' ["tag:r"], "fd00::/16": ["group:g", "autogroup:admin"]}, "exitNode": ["bob@"]}}'
    )
    ten, wide, six = (bytes((10, 7, 0, 0)), 16), (bytes((8, 0, 0, 0)), 5), (b"\xfd\x00\x12" + bytes(13), 48)
    assert policy.auto_approves(ten, ["tag:r"], "", [])
    assert not policy.auto_approves(wide, ["tag:r"], "", [])
    assert not policy.auto_approves(ten, [], "ann", ["group:g"])
    assert policy.auto_approves(six, [], "ann", ["group:g"])
    assert not policy.auto_approves(six, ["tag:r"], "ann", ["group:g"]), "its user does not count beside tags"
    assert policy.auto_approves("exit", [], "bob", []) and policy.auto_approves((bytes(4), 0), [], "bob", [])
    assert not policy.auto_approves("exit", ["tag:r"], "", [])


def test_who_reaches_what() -> None:
    policy = check(PREFIX + '"acls": [{"action": "accept", "src": ["group:g"], "dst": ["tag:a:22,80-90", "u@:1"]}]}')
    classes = [("u", Facts(user="u")), ("a", Facts(tags=("tag:a",))), ("none", Facts())]
    table = matrix(policy, classes)
    assert [[services_text(cell) for cell in row] for row in table] == [
        ["any 1", "any 22, 80-90", ""],
        ["", "", ""],
        ["", "", ""],
    ]


def test_a_test_by_address_means_the_device_that_has_it() -> None:
    text = PREFIX + '"acls": [{"action": "accept", "src": ["u@"], "dst": ["tag:a:22"]}],'
    text += '"tests": [{"src": "u@", "accept": ["100.64.0.7:22"]}]}'
    assert len(problems_of(text)) == 1
    policy = check(text, find=lambda address: Facts(tags=("tag:a",)) if address == bytes((100, 64, 0, 7)) else None)
    assert isinstance(policy, Policy)


# bytes of all kinds

PIECES = st.sampled_from(
    (
        *(
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            "//",
            "/*",
            "*/",
            "\n",
            " ",
            "\\",
            "\\u12",
            "\\ud83d",
            "true",
            "nul",
            "-1",
        ),
        *('"acls"', '"src"', '"dst"', '"*"', '"*:*"', '"tag:a"', '"groups"', '"group:g"'),
        *("-1", "1e5", "\u00e9", "\x00", "\ufeff", "\ud800"),
    )
)


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join)))
def test_no_text_gets_anything_but_problems_out_of_it(text: str) -> None:
    try:
        check(text)
    except PolicyError as refused:
        for problem in refused.problems:
            lines = text.split("\n")
            assert 1 <= problem.line <= len(lines) and 1 <= problem.column <= len(lines[problem.line - 1]) + 1
            assert problem.text and problem.text.isprintable()
            excerpt(text, problem)


@settings(max_examples=300)
@given(st.data())
def test_a_broken_policy_is_never_worse_than_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(GOLDEN)).read_text(encoding="utf-8").partition(HEAD)[0]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    broken = text[:start] + data.draw(st.one_of(st.text(max_size=5), PIECES)) + text[end:]
    try:
        check(broken)
    except PolicyError as refused:
        assert refused.problems


@given(st.text(max_size=30), st.text(max_size=5))
def test_a_byte_that_is_no_text_has_a_place(before: str, after: str) -> None:
    with pytest.raises(PolicyError) as refused:
        to_text(before.encode() + b"\xff" + after.encode())
    [problem] = refused.value.problems
    assert (problem.line, problem.column) == (before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)


BOMBS = {
    "brackets": "[" * BYTES_MAX,
    "objects": '{"a":' * (BYTES_MAX // 5),
    "one line": "[" + "1," * (BYTES_MAX // 2 - 1) + "]",
    "keys": "{" + ",".join(f'"{at}":0' for at in range(BYTES_MAX // 12)) + "}",
    "comments": "/**/" * (BYTES_MAX // 4),
    "slashes": "/*/" * (BYTES_MAX // 3),
    "blanks": " \n" * (BYTES_MAX // 2),
    "escapes": '"' + "\\n" * (BYTES_MAX // 2 - 1) + '"',
    "rules": '{"acls":[' + '{"action":"accept","src":["*"],"dst":["*:1"]},' * (BYTES_MAX // 46 - 1) + "]}",
    "ports": '{"acls":[{"action":"accept","src":["*"],"dst":["*:' + "1," * 100_000 + '1"]}]}',
    "groups": '{"groups":{' + ",".join(f'"group:{at}":["u@"]' for at in range(BYTES_MAX // 22)) + "}}",
    "digits": "9" * BYTES_MAX,
    "too long": " " * (BYTES_MAX + 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_worst_texts_have_an_end(name: str) -> None:
    with pytest.raises(PolicyError):
        check(BOMBS[name])


@pytest.mark.parametrize(
    "name", ["keys", *(pytest.param(name, marks=pytest.mark.slow) for name in BOMBS if name != "keys")]
)
def test_the_worst_texts_cost_little_memory(name: str) -> None:
    """Being watched for it they take ten times as long."""
    tracemalloc.start()
    try:
        with pytest.raises(PolicyError):
            check(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 160 * BYTES_MAX
