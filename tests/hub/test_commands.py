"""Commands at the hub, on both stores: given, said again, answered, given up, forgotten; by devices that lie, too."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.proto.commands import OPEN_MAX, OUTPUT_BYTES_MAX, VERBS
from edgeagent.proto.control import ANSWER_DATA_BYTES_MAX, ANSWER_PARTS_MAX
from edgeagent.proto.refusals import ControlDrop, ControlError
from edgeagent.proto.telemetry import SAMPLE_BYTES_MAX, read, write
from hub.core import actions, chores, commands
from hub.core.memory import MemoryStore
from hub.core.model import Command, CommandState, HubDrop, HubError
from tests.hub.kit import DAY_S, Dev, Hub, admitted, load_crypto, make_network, relays_of, row, seeded
from tests.test_commands import ARGS

SAMPLE: dict[str, Any] = {
    "t": 1_800_000_000,
    "up": 60,
    "m": [24_000, 40_960, 0],
    "tb": [["peers", 2, 64], ["records", 3, 256]],
    "np": 1,
    "p": [["d" * 24, "cam", "relay", "fra-1 tls", 12_345, 100, 200, 3_000, 4_000]],
    "l": [["eth0", 0, 10, 20], ["eth0", 7, 30, 40], ["wwan0", 5, 1, 0]],
    "u": [["eth0", "up", True, False, "normal", None]],
    "d": [["replayed-message", 2]],
}


def give(hub: Hub, device: Dev, verb: str = "rekey", **options: Any) -> Command:
    with hub.store.write() as tx:
        args = options.pop("args", ARGS.get(verb))
        return commands.create(hub.scribe, tx, row(tx, device), verb, args, hub.wall_s, actor="cli:test", **options)


def told(hub: Hub, device: Dev) -> list[dict[str, Any]]:
    """What the device hears of commands now."""
    return [body for kind, body in device.read(hub.sent()) if kind == "cmd"]


def answer(device: Dev, command: Command, state: str, **more: Any) -> tuple[str, bytes]:
    return device.write("answer", {"id": bytes.fromhex(command.id), "st": state, "at": 1_800_000_000, **more})


def state(hub: Hub, command: Command) -> tuple[str, str]:
    with hub.store.read() as tx:
        found = tx.command(command.id)
    assert found is not None
    return found.state.value, found.code


def shown(hub: Hub, command: Command) -> dict[str, Any]:
    with hub.store.read() as tx:
        found = tx.command(command.id)
        assert found is not None
        return commands.describe(tx, found, with_output=True)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_command_reaches_the_device_signed_with_all_that_it_must_know(hub: Hub, verb: str) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, verb)
    assert told(hub, device) == [
        {
            "id": bytes.fromhex(command.id),
            "v": verb,
            "x": hub.wall_s + commands.EXPIRES_S,
            "by": "cli:test",
            "a": ARGS[verb],
        }
    ]
    assert state(hub, command) == ("queued", "")


def test_the_answers_are_kept(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "run")
    hub.later(2)
    hub.hear(answer(device, command, "accepted"), answer(device, command, "running"))
    assert state(hub, command) == ("running", "")
    hub.later(2)
    hub.hear(answer(device, command, "running", no=0, d=b"one\n"))
    hub.hear(answer(device, command, "failed", no=1, d=b"two\n", n=2, c="exit-status", tx="it ended with 3"))
    found = shown(hub, command)
    assert (found["state"], found["code"], found["text"]) == ("failed", "exit-status", "it ended with 3")
    assert (found["output"], found["output_complete"]) == ("one\ntwo\n", True)
    assert (found["created"] + 4, found["finished"]) == (hub.wall_s, hub.wall_s)
    assert not hub.coordinator.drops


def test_output_that_is_sent_twice_or_not_whole(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "run")
    hub.hear(answer(device, command, "running", no=0, d=b"a"), answer(device, command, "running", no=0, d=b"A"))
    assert shown(hub, command)["output"] == "A"
    hub.hear(answer(device, command, "done", no=2, d=b"C", n=3))
    assert (shown(hub, command)["output"], shown(hub, command)["output_complete"]) == ("AC", False)


def test_output_is_bounded(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "run")
    part = bytes(ANSWER_DATA_BYTES_MAX)
    for number in range(ANSWER_PARTS_MAX):
        hub.hear(answer(device, command, "running", no=number, d=part))
        hub.later(1)
    with hub.store.read() as tx:
        held = tx.output_bytes(command.id)
    assert OUTPUT_BYTES_MAX <= held <= 2 * OUTPUT_BYTES_MAX


def test_an_answer_counts_for_the_device_that_was_asked_and_until_it_is_over(hub: Hub) -> None:
    device, other = admitted(hub, 2)
    command = give(hub, device)
    hub.hear(answer(other, command, "done"))
    hub.hear(other.write("answer", {"id": bytes(8), "st": "done", "at": 1}))
    assert state(hub, command) == ("queued", "")
    assert hub.coordinator.drops == {HubDrop.UNKNOWN_COMMAND: 2}
    hub.hear(answer(device, command, "done"))
    for late in ("failed", "running", "expired"):
        hub.hear(answer(device, command, late))
    assert state(hub, command) == ("done", "")
    assert hub.coordinator.drops[HubDrop.COMMAND_OVER] == 3


def test_a_replayed_answer_is_dropped(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device)
    message = answer(device, command, "accepted")
    hub.hear(message, answer(device, command, "running"), message)
    assert state(hub, command) == ("running", "")
    assert hub.coordinator.drops == {ControlDrop.REPLAYED: 1}


def test_too_many_answers_are_dropped(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device)
    hub.hear(*(answer(device, command, "running") for _ in range(400)))
    assert hub.coordinator.drops == {HubDrop.RATE_LIMITED: 240}


def test_a_device_that_is_back_hears_again_what_is_open(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    first, second, third = give(hub, device, expires_in_s=60), give(hub, device, "netcheck"), give(hub, device, "run")
    assert [body["id"].hex() for body in told(hub, device)] == [first.id, second.id, third.id]
    hub.hear(answer(device, second, "running"), answer(device, third, "done"))
    hub.later(61)
    hub.hear(device.birth())
    assert [body["id"].hex() for body in told(hub, device)] == [second.id]
    hub.hear(answer(device, second, "done"))
    hub.hear(device.birth())
    assert told(hub, device) == []


def test_what_was_not_sent_yet_is_sent_once(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device)
    hub.hear(device.birth())
    hub.hear(device.birth())
    assert [body["id"].hex() for body in told(hub, device)] == [command.id]


def test_what_nobody_answers_expires_and_a_late_word_of_the_device_is_the_truth(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    first, second = give(hub, device, expires_in_s=60), give(hub, device, "run", expires_in_s=60)
    hub.hear(answer(device, second, "running"))
    hub.later(61)
    dates(hub)
    assert state(hub, first) == ("expired", commands.UNANSWERED)
    assert state(hub, second) == ("running", "")
    hub.hear(answer(device, first, "running"))
    assert state(hub, first) == ("running", "")
    hub.later(commands.ENDS_WITHIN_S + 1)
    dates(hub)
    assert [state(hub, command) for command in (first, second)] == 2 * [("failed", commands.LOST)]
    hub.hear(answer(device, second, "done"), answer(device, first, "expired", c="expired"))
    assert state(hub, second) == ("done", "")
    assert state(hub, first) == ("expired", "expired")


def dates(hub: Hub) -> None:
    with hub.store.write() as tx:
        chores.look_at_dates(hub.scribe, tx, hub.wall_s)


def test_so_many_wait_and_no_more(hub: Hub) -> None:
    device, other = admitted(hub, 2)
    made = [give(hub, device) for _ in range(OPEN_MAX)]
    with pytest.raises(HubError, match="16 commands wait for it"):
        give(hub, device)
    give(hub, other)
    hub.hear(answer(device, made[0], "refused", c="busy"))
    give(hub, device)


@pytest.mark.parametrize(
    ("verb", "options", "says"),
    [
        ("format", {"args": {}}, "there is none of this name. Known are reboot-agent"),
        ("run", {"permitted": ("rekey", "netcheck")}, "cli:test may not give it"),
        ("run", {"args": {"s": "../../bin/sh", "a": [], "t": 1}}, r"run\.s: name of a script"),
        ("run", {"args": {"s": "x", "a": ["x" * 200], "t": 1}}, r"run\.a\[0\]: printable text of at most 128"),
        ("netcheck", {"args": {"t": 61}}, r"netcheck\.t: integer from 1 to 60, got 61"),
        ("rekey", {"args": {"x": 1}}, "unknown field x"),
        ("rekey", {"expires_in_s": 1}, "can wait between 5 s and 7 days"),
        ("rekey", {"expires_in_s": 8 * DAY_S}, "can wait between 5 s and 7 days"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(hub: Hub, verb: str, options: dict[str, Any], says: str) -> None:
    [device] = admitted(hub, 1)
    hub.sent()
    with pytest.raises(HubError, match=says):
        give(hub, device, verb, **{"args": ARGS.get(verb, {}), **options})
    assert told(hub, device) == []


def test_relays_and_those_that_are_not_in_take_no_commands(hub: Hub) -> None:
    [relay] = relays_of(hub, "fra-1")
    with pytest.raises(HubError, match="a relay"):
        give(hub, relay)
    [waiting] = admitted(hub, 1, needs_approval=True)
    with pytest.raises(HubError, match="it is pending"):
        give(hub, waiting)
    device = Dev(hub, 9, hub.token(), name="gone")
    hub.hear(device.join())
    command = give(hub, device)
    with hub.store.write() as tx:
        actions.remove_device(hub.scribe, tx, row(tx, device), hub.wall_s)
    with pytest.raises(HubError, match="it is removed"):
        give(hub, device)
    hub.later(commands.EXPIRES_S + 1)
    dates(hub)
    assert state(hub, command) == ("expired", commands.UNANSWERED)
    hub.hear(relay.write("answer", {"id": bytes(8), "st": "done", "at": 1}))
    assert hub.coordinator.drops == {HubDrop.NOT_A_DEVICE: 1}


def test_old_ones_are_forgotten_with_their_output(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    first = give(hub, device, "run")
    hub.hear(answer(device, first, "done", no=0, d=b"x", n=1))
    for number in range(commands.KEPT_MAX + 3):
        command = give(hub, device)
        hub.later(1)
        hub.hear(answer(device, command, "done"))
        with hub.store.read() as tx:
            assert len(tx.commands(device.id, limit=1_000)) <= commands.KEPT_MAX + 1, number
    with hub.store.read() as tx:
        assert tx.command(first.id) is None and tx.output(first.id) == []
    waiting = give(hub, device, expires_in_s=commands.EXPIRES_MAX_S)
    hub.later(6 * DAY_S)
    dates(hub)
    assert state(hub, waiting) == ("queued", "")
    hub.later(31 * DAY_S)
    for _ in range(3):
        dates(hub)
    with hub.store.read() as tx:
        assert [each.id for each in tx.commands(device.id)] == [waiting.id]


def test_commands_are_listed_the_newest_first(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    made = [give(hub, device, verb).id for verb in ("rekey", "netcheck", "run")]
    with hub.store.read() as tx:
        assert [each.id for each in tx.commands(device.id)] == made[::-1]
        assert [each.id for each in tx.commands(device.id, limit=2)] == made[:0:-1]
        assert [each.id for each in tx.open_commands(device.id)] == made
        assert tx.commands_beyond(device.id, 0) == []


def test_a_failed_transaction_leaves_nothing(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "run")
    told(hub, device)
    with pytest.raises(RuntimeError), hub.store.write() as tx:
        tx.save_output(command.id, 0, b"x")
        tx.save_telemetry(device.id, 1, b"x")
        tx.drop_commands([command.id])
        raise RuntimeError
    with hub.store.read() as tx:
        assert tx.output(command.id) == [] and tx.telemetry(device.id) is None
    assert state(hub, command) == ("queued", "")


# Watching


def test_a_watch_is_begun_once_for_all_who_look(hub: Hub) -> None:
    [device] = admitted(hub, 1)

    def watch() -> Command:
        with hub.store.write() as tx:
            return commands.watch(hub.scribe, tx, row(tx, device), hub.wall_s, actor="web:ann", seconds=60)

    first = watch()
    assert watch().id == first.id
    assert [body["v"] for body in told(hub, device)] == ["watch"]
    hub.hear(answer(device, first, "running", d=write(SAMPLE)))
    hub.later(45)
    second = watch()
    assert second.id != first.id
    assert [body["id"].hex() for body in told(hub, device)] == [second.id]
    hub.hear(answer(device, first, "done", c="replaced"), answer(device, second, "running", d=write(SAMPLE)))
    with hub.store.write() as tx:
        commands.unwatch(hub.scribe, tx, row(tx, device), hub.wall_s, actor="web:ann")
    assert [(body["v"], body["id"].hex()) for body in told(hub, device)] == [("unwatch", second.id)]
    hub.hear(answer(device, second, "done"))
    for _ in range(5):
        hub.hear(answer(device, watch(), "done"))
    with hub.store.read() as tx:
        assert len(tx.commands(device.id)) <= 2  # they would push out all else


def test_the_last_sample_is_kept(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "watch")
    hub.hear(answer(device, command, "running", d=write({**SAMPLE, "up": 1})))
    hub.later(1)
    hub.hear(answer(device, command, "running", d=write(SAMPLE)))
    with hub.store.read() as tx:
        found = commands.telemetry(tx, device.id)
        assert tx.output(command.id) == []
    assert found is not None and found["received"] == hub.wall_s and found["uptime_s"] == 60
    assert found["peers"][0]["latency_ms"] == 12.345 and found["policy"] is None
    assert found["ledger_today"][1] == {"uplink": "wwan0", "causes": [{"cause": "telemetry", "sent": 1, "received": 0}]}


def test_modems_of_a_sample_are_read_in_full_words() -> None:
    row = ["wwan0", "LTE", "", "Testnet", "roaming", "", 1, -112, None, 3, None, 10, 20, 42]
    bare = {"t": 0, "up": 0, "m": [0, None, 0], "tb": [], "np": 0, "p": [], "l": [], "u": [], "d": []}
    assert read(write(bare))["modems"] == []
    [found] = read(write({**bare, "mo": [row]}))["modems"]
    assert found == {
        "uplink": "wwan0", "technology": "LTE", "band": None, "operator": "Testnet", "registration": "roaming",
        "apn": None, "bars": 1, "rsrp_dbm": -112, "rsrq_db": None, "sinr_db": 3, "rssi_dbm": None, "received": 10,
        "sent": 20, "age_s": 42, "roaming": True,
    }  # fmt: skip
    for bad in ([*row[:-1]], [*row[:6], 9, *row[7:]], ["x" * 65, *row[1:]], [*row[:7], "strong", *row[8:]]):
        with pytest.raises(ControlError, match="mo"):
            read(write({**bare, "mo": [bad]}))
    with pytest.raises(ControlError, match="mo"):
        read(write({**bare, "mo": [row] * 5}))


def test_samples_that_are_wrong_or_too_many_are_dropped(hub: Hub) -> None:
    [device] = admitted(hub, 1)
    command = give(hub, device, "watch")
    hub.hear(answer(device, command, "running", d=b"\xa0"), answer(device, command, "running", d=b"no cbor"))
    assert hub.coordinator.drops == {HubDrop.BAD_SAMPLE: 2}
    hub.hear(*(answer(device, command, "running", d=write(SAMPLE)) for _ in range(20)))
    assert hub.coordinator.drops == {HubDrop.BAD_SAMPLE: 2, HubDrop.RATE_LIMITED: 14}
    with hub.store.read() as tx:
        assert tx.telemetry(device.id) is not None


NAME = st.text("abc-", max_size=64)
NUMBER = st.integers(0, 1 << 62)


@given(
    st.lists(st.tuples(NAME, NAME, NAME, NAME, st.none() | NUMBER, *4 * [NUMBER]), max_size=60),
    st.lists(st.tuples(NAME, NUMBER, NUMBER), max_size=60),
    st.lists(st.tuples(NAME, st.integers(0, 7), NUMBER, NUMBER), max_size=64),
    st.lists(st.tuples(NAME, NUMBER), max_size=60),
)
def test_any_sample_fits_and_is_read(peers: Any, tables: Any, ledger: Any, dropped: Any) -> None:
    lists = {"p": peers, "tb": tables, "l": ledger, "d": dropped}
    sample = {**SAMPLE, **{key: [list(each) for each in rows] for key, rows in lists.items()}, "np": len(peers)}
    data = write(sample)
    assert len(data) <= SAMPLE_BYTES_MAX
    found = read(data)
    assert found["peer_count"] == len(peers) >= len(found["peers"])
    assert [peer["name"] for peer in found["peers"]] == [peer[1] for peer in peers[: len(found["peers"])]]


# Whatever devices say


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.integers(0, 3),
            st.sampled_from(["accepted", "running", "done", "failed", "refused", "expired"]),
            st.dictionaries(st.sampled_from(["no", "n"]), st.integers(0, 63)),
            st.binary(max_size=40),
        ),
        max_size=25,
    )
)
def test_a_device_changes_its_own_commands_only_and_never_one_that_is_over(steps: list[Any]) -> None:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0))
    hub = Hub(MemoryStore(network), crypto, network)
    devices = admitted(hub, 2)
    made = [give(hub, device, verb) for device in devices for verb in ("run", "watch")]
    for who, which, said, more, data in steps:
        before = [shown(hub, command) for command in made]
        hub.hear(answer(devices[who], made[which], said, **more, **({"d": data} if data else {})))
        after = [shown(hub, command) for command in made]
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if number != which or number // 2 != who or not CommandState(old["state"]).is_open:
                assert old == new
        hub.later(1)
