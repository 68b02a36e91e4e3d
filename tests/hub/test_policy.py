"""The hub with a policy: what devices are told, who is told anew when it changes, and who is not introduced."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edgeagent.proto.control import POLICY
from hub.core import actions, chores
from hub.core.coordinator import Coordinator
from hub.core.model import DeviceState, HubError, JobKind
from hub.core.policing import HISTORY_MAX, find_policy, set_policy
from hub.core.policy.problems import PolicyError
from hub.core.policy_ends import explain, split_port
from hub.core.relays import ROUND_STEP
from tests.hub.kit import Dev, Hub, admitted, relays_of, row, seeded

OWNERS = '"tagOwners": {"tag:a": [], "tag:b": [], "tag:c": []}'
A_TO_B = f'{{{OWNERS}, "acls": [{{"action": "accept", "src": ["tag:a"], "dst": ["tag:b:22"]}}]}}'


def put(hub: Hub, text: str) -> int:
    with hub.store.write() as tx:
        return set_policy(tx, hub.wall_s, text, "test").version


def deal(hub: Hub, *devices: Dev) -> list[str]:
    """All jobs done and read; whose map came."""
    rows = hub.sent()
    return [device.name for device in devices for kind, _ in device.read(rows) if kind == "map"]


def po(device: Dev) -> Any:
    assert device.map is not None
    return device.map.body.get("po")


def change(hub: Hub, device: Dev, **changes: Any) -> None:
    """As an operator's action does it."""
    with hub.store.write() as tx:
        hub.scribe.push(tx, replace(row(tx, device), **changes))


def three(hub: Hub) -> list[Dev]:
    devices = [Dev(hub, seed, hub.token(tags=(f"tag:{name}",)), name=name) for seed, name in enumerate("abc")]
    hub.hear(*(device.join() for device in devices))
    deal(hub, *devices)
    return devices


def ask(hub: Hub, reader: Dev, subject: Dev | None) -> dict[str, Any]:
    """By name; None: one that nobody has."""
    hub.hear(reader.ask(h="nobody" if subject is None else subject.name))
    rows = hub.sent()
    answers = [body for kind, body in reader.read(rows) if kind == "rec"]
    if subject is not None:
        subject.read(rows)
    assert len(answers) == 1
    return answers[0]


# maps


def test_without_a_policy_maps_and_records_say_nothing_of_it(hub: Hub) -> None:
    a, b, _ = three(hub)
    assert po(a) is None
    assert "gr" not in decoded(ask(hub, a, b), a, b)


def decoded(_: dict[str, Any], reader: Dev, subject: Dev) -> dict[str, Any]:
    body: dict[str, Any] = reader.recs[subject.id]["record"].body
    return body


def test_a_policy_reaches_those_whom_it_concerns_and_all_get_the_first(hub: Hub) -> None:
    a, b, c = three(hub)
    version = put(hub, A_TO_B)
    assert deal(hub, a, b, c) == ["a", "b", "c"], "from allowed to denied is news to everybody"
    assert po(a) == {"v": version, "u": "", "in": [], "out": [[["tag:b"], [[0, 22, 22]]]]}
    assert po(b) == {"v": version, "u": "", "in": [[["tag:a"], ["me"], [[0, 22, 22]]]], "out": []}
    assert po(c) == {"v": version, "u": "", "in": [], "out": []}
    assert all(POLICY.check(po(device), "po") == po(device) for device in (a, b, c))


def test_only_changed_slices_are_told_again(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    put(hub, "// nothing but a comment is new\n" + A_TO_B)
    assert deal(hub, a, b, c) == []
    rules = '{"action": "accept", "src": ["tag:c"], "dst": ["tag:b:80"]}'
    put(hub, A_TO_B.replace('"acls": [', f'"acls": [{rules}, '))
    assert deal(hub, a, b, c) == ["b", "c"]
    assert [row[0] for row in po(b)["in"]] == [["tag:a"], ["tag:c"]]


def test_a_device_that_joins_later_gets_its_slice_with_the_answer(hub: Hub) -> None:
    put(hub, A_TO_B)
    [device] = admitted(hub, 1, tags=("tag:b",))
    assert [row[0] for row in po(device)["in"]] == [["tag:a"]]
    with hub.store.write() as tx:
        tx.add_job(JobKind.POLICY, "", "")
    assert deal(hub, device) == []


def test_new_tags_and_a_new_user_make_a_new_slice(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    change(hub, c, tags=("tag:b", "tag:c"))
    assert deal(hub, a, b, c) == ["c"]
    assert po(c)["in"] == po(b)["in"]
    change(hub, c, tags=(), user="ann")
    assert deal(hub, a, b, c) == ["c"]
    assert po(c) == {"v": 1, "u": "ann", "in": [], "out": []}


def test_a_slice_is_the_same_after_a_restart(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    hub.coordinator = Coordinator(hub.crypto, seeded(5), hub.network)
    hub.scribe = hub.coordinator.scribe
    with hub.store.write() as tx:
        tx.add_job(JobKind.POLICY, "", "")
    assert deal(hub, a, b, c) == []


def test_relays_are_told_of_no_policy(hub: Hub) -> None:
    put(hub, A_TO_B)
    [relay] = relays_of(hub, "fra-1")
    assert po(relay) is None
    put(hub, "{}")
    assert deal(hub, relay) == []


def test_a_round_goes_in_small_steps_and_another_waits_behind_it(hub: Hub) -> None:
    devices = admitted(hub, 2 * ROUND_STEP + 5, tags=("tag:a",))
    put(hub, A_TO_B)
    with hub.store.write() as tx:
        assert chores.work(hub.scribe, tx, hub.wall_s, limit=1) == 1
        assert tx.job_count() == ROUND_STEP + 1, "a map for each of one step, and the next step"
    put(hub, A_TO_B.replace(":22", ":23"))
    deal(hub, *devices)
    assert {po(device)["v"] for device in devices} == {2}
    assert {po(device)["out"][0][1][0][1] for device in devices} == {23}


# records


def test_groups_are_in_records_and_only_those_who_know_a_user_are_told(hub: Hub) -> None:
    a, b, c = three(hub)
    change(hub, a, tags=(), user="ann")
    deal(hub, a, b, c)
    ask(hub, b, a)
    text = '{"groups": {"group:ops": [%s], "group:all": ["ann@"]}, ' + OWNERS + ", %s}"
    rules = '"acls": [{"action": "accept", "src": ["group:ops"], "dst": ["tag:b:*"]}]'
    put(hub, text % ("", rules))
    deal(hub, a, b, c)
    assert b.recs[a.id]["record"].body["gr"] == ["group:all"]
    before = [device.map.stamp for device in (a, b, c) if device.map]
    put(hub, text % ('"ann@"', rules))
    rows = hub.sent()
    assert [kind for kind, _ in b.read(rows)] == ["rec"]
    assert [kind for kind, _ in c.read(rows)] == []
    assert b.recs[a.id]["record"].body["gr"] == ["group:all", "group:ops"]
    assert [kind for kind, _ in a.read(rows)] == ["map"], "it may reach more now"
    assert before[1:] == [device.map.stamp for device in (b, c) if device.map], "a slice does not say who is in a group"
    change(hub, a, tags=("tag:a",))
    deal(hub, a, b, c)
    assert "gr" not in b.recs[a.id]["record"].body, "its user does not count beside tags"


# asks


def test_who_may_not_meet_is_not_introduced(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    answer = ask(hub, a, c)
    nobody = ask(hub, a, None)
    assert {**answer, "id": 0} == {**nobody, "id": 0}, "who may not be met is told from nobody by nothing"
    assert ask(hub, c, b)["no"] == "unknown"
    assert not a.recs and not c.recs
    with hub.store.read() as tx:
        assert tx.acquaintances(c.id) == []
    assert "rec" in ask(hub, b, a), "what answers must know who asked: one direction is enough"
    assert a.recs.keys() == {b.id}
    put(hub, A_TO_B.replace('"tag:b:22"', '"tag:b:22", "tag:c:1"'))
    deal(hub, a, b, c)
    assert "rec" in ask(hub, a, c)


def test_who_knows_but_an_id_is_not_introduced_by_saying_so(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    hub.hear(a.ask(have=[[c.id, 0, 0, 0], [b.id, 0, 0, 0]]))
    a.read(hub.sent())
    assert a.recs.keys() == {b.id} and not a.gone
    with hub.store.read() as tx:
        assert tx.acquaintances(c.id) == []


def test_devices_of_one_user_meet_by_self_alone(hub: Hub) -> None:
    a, b, c = three(hub)
    for device, user in ((a, "ann"), (b, "ann"), (c, "bob")):
        change(hub, device, tags=(), user=user)
    put(hub, '{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}')
    deal(hub, a, b, c)
    assert "rec" in ask(hub, a, b)
    assert ask(hub, a, c)["no"] == "unknown"


# the document


def test_a_policy_that_is_refused_changes_nothing(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    failing = A_TO_B[:-1] + ', "tests": [{"src": "tag:a", "accept": ["tag:b:23"]}]}'
    for text in ("{", '{"acls": [{}]}', failing):
        with pytest.raises(PolicyError), hub.store.write() as tx:
            set_policy(tx, hub.wall_s, text, "test")
    with hub.store.read() as tx:
        assert tx.policy_version() == 1 and find_policy(tx).text == A_TO_B and tx.job_count() == 0


def test_versions_count_up_and_the_last_hundred_are_kept(hub: Hub) -> None:
    with hub.store.read() as tx, pytest.raises(HubError, match="there is no policy"):
        find_policy(tx)
    for count in range(HISTORY_MAX + 3):
        assert put(hub, f"{{}} // {count}") == count + 1
        hub.later(60)
    with hub.store.read() as tx:
        kept = tx.policies(1_000)
        assert [stored.version for stored in kept] == list(range(HISTORY_MAX + 3, 3, -1))
        assert find_policy(tx).text == f"{{}} // {HISTORY_MAX + 2}"
        assert find_policy(tx, 4).created_s + 60 * (HISTORY_MAX - 1) == find_policy(tx).created_s
        with pytest.raises(HubError, match="not kept"):
            find_policy(tx, 3)


def test_a_stored_policy_that_cannot_be_read_allows_nothing(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    with hub.store.write() as tx:
        tx.add_policy(replace(find_policy(tx), version=2, text='{"of": "another version"}'))
        tx.add_job(JobKind.POLICY, "", "")
    assert deal(hub, a, b, c) == ["a", "b"]
    assert po(b) == {"v": 2, "u": "", "in": [], "out": []}
    assert ask(hub, a, b)["no"] == "unknown"


def test_an_author_is_a_line_of_text(hub: Hub) -> None:
    for author in ("", "a\nb", "x" * 201):
        with pytest.raises(HubError, match="author"), hub.store.write() as tx:
            set_policy(tx, hub.wall_s, "{}", author)


def test_tests_by_address_are_about_the_devices_there_are(hub: Hub) -> None:
    _, b, _ = three(hub)
    assert b.map is not None
    address = ".".join(str(byte) for byte in b.map.body["addrs"][0])
    claims = json.dumps([{"src": "tag:a", "accept": [f"{address}:22"], "deny": [f"{address}:23"]}])
    put(hub, A_TO_B[:-1] + f', "tests": {claims}}}')


# explain


def test_explain_finds_devices_by_name_id_address_and_kind(hub: Hub) -> None:
    a, b, c = three(hub)
    put(hub, A_TO_B)
    deal(hub, a, b, c)
    assert b.map is not None
    v4 = ".".join(str(byte) for byte in b.map.body["addrs"][0])
    with hub.store.read() as tx:
        policy = hub.scribe.policing.current(tx)
        assert policy is not None
        for source in ("a", a.id, "tag:a"):
            for target in ("b", b.id, v4, "tag:b"):
                [found] = explain(tx, policy, source, f"{target}:22").verdicts
                assert found.rule is not None and (found.service, found.rule.name) == ("tcp 22", "acls[0]")
                [found] = explain(tx, policy, source, f"{target}:23").verdicts
                assert found.rule is None
                [found] = explain(tx, policy, source, target).verdicts
                assert found.service == "any 22"
        assert explain(tx, policy, "c", "b").verdicts[0].rule is None
        assert [found.service for found in explain(tx, policy, "a", "b", "icmp").verdicts] == ["any 22"]
        for source, target, proto, text in (
            ("nobody", "b", "", "no device of this name"),
            ("a", "b:70000", "", "port 70000"),
            ("a", "b:22", "icmp", "only tcp, udp and sctp have ports"),
            ("a", "b", "quic", "no protocol"),
            ("10.0.0.1", "fd00::1", "", "one is an IPv4 address"),
        ):
            with pytest.raises(HubError, match=text):
                explain(tx, policy, source, target, proto)


def test_explain_names_the_family_where_they_differ(hub: Hub) -> None:
    three(hub)
    with hub.store.read() as tx:
        address = tx.device_by_name("b")
        assert address is not None and address.v4 is not None
        text = ".".join(str(byte) for byte in address.v4.to_bytes(4, "big"))
    put(hub, A_TO_B.replace("tag:b:22", f"{text}:22"))
    with hub.store.read() as tx:
        policy = hub.scribe.policing.current(tx)
        assert policy is not None
        found = explain(tx, policy, "a", "b:22").verdicts
    assert [(verdict.service, verdict.rule is not None) for verdict in found] == [
        ("IPv4 tcp 22", True),
        ("IPv6 tcp 22", False),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cam-3", ("cam-3", None)),
        ("cam-3:22", ("cam-3", 22)),
        ("tag:cam", ("tag:cam", None)),
        ("tag:cam:22", ("tag:cam", 22)),
        ("u@:22", ("u@", 22)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("fd00::1", ("fd00::1", None)),
        ("fd00::1:22", ("fd00::1:22", None)),
        ("[fd00::1]:22", ("fd00::1", 22)),
        ("[fd00::1]", ("fd00::1", None)),
    ],
)
def test_ports_are_split_off(text: str, expected: tuple[str, int | None]) -> None:
    assert split_port(text) == expected


def test_an_expired_device_gets_no_news_of_policies(hub: Hub) -> None:
    a, b, c = three(hub)
    with hub.store.write() as tx:
        actions.expire_device(hub.scribe, tx, row(tx, c), hub.wall_s, hub.wall_s)
        assert row(tx, c).state is DeviceState.EXPIRED
    deal(hub, a, b, c)
    put(hub, A_TO_B)
    assert deal(hub, a, b, c) == ["a", "b"]
