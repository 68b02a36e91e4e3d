"""`edgehub command` and its kin on a database without a running hub: what they take, print, and end with."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgeagent.proto.codec import encode
from hub import cli_commands
from hub.core.model import CommandState, HubError
from hub.live_view import size
from hub.store.sqlite import SqliteStore
from tests.hub.kit import Dev
from tests.hub.test_cli import Shell, join, ready, shell
from tests.hub.test_commands import SAMPLE

__all__ = ["join", "ready", "shell"]  # fixtures
Join = Callable[..., Dev]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["a", "rekey"], (["a"], "rekey", {})),
        (["a", "tag:x", "collect-logs"], (["a", "tag:x"], "collect-logs", {})),
        (["a", "collect-logs", "7"], (["a"], "collect-logs", {"lines": 7})),
        (["a", "netcheck"], (["a"], "netcheck", {})),
        (["a", "watch", "30"], (["a"], "watch", {"seconds": 30})),
        (["a", "run", "x"], (["a"], "run", {"script": "x", "arguments": [], "seconds": 9})),
        (
            ["a", "run", "rekey", "-v", "run"],
            (["a"], "run", {"script": "rekey", "arguments": ["-v", "run"], "seconds": 9}),
        ),
        (
            ["run", "run", "run"],
            (["run"], "run", {"script": "run", "arguments": [], "seconds": 9}),
        ),  # a device of that name
    ],
)
def test_what_words_mean(words: list[str], meant: object) -> None:
    assert cli_commands._split(words, 9) == meant


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a"], "DEVICE... VERB expected"),
        (["rekey"], "DEVICE... VERB expected"),
        (["a", "b", "reboot"], "VERB being one of reboot-agent, collect-logs"),
        (["a", "run"], "the name of a script expected"),
        (["a", "rekey", "now"], "'now' is more than it takes"),
        (["a", "netcheck", "1", "2"], "more than it takes"),
        (["a", "netcheck", "soon"], "a number expected, not 'soon'"),
        (["a", "collect-logs", "١"], "a number expected"),
    ],
)
def test_what_they_cannot_mean(words: list[str], says: str) -> None:
    with pytest.raises(HubError) as caught:
        cli_commands._split(words, 9)
    assert says in str(caught.value)


def test_a_command_waits_in_the_database_and_the_shell_says_so(join: Join, ready: Shell) -> None:
    join(1, "cam")
    out = ready("command", "cam", "rekey", "--no-wait")
    assert out.endswith("  cam\n") and "the hub is not running" in ready.err
    [listed] = ready.json("commands", "list", "cam")
    assert (listed["id"], listed["state"], listed["verb"]) == (out.split()[0], "queued", "rekey")
    assert listed["actor"].startswith("cli:") and listed["expires"] - listed["created"] == 600
    assert "queued" in ready("commands", "list", "cam")
    assert ready.json("commands", "show", listed["id"])["output"] == ""


def test_what_nobody_answers_in_time_ends_the_wait(join: Join, ready: Shell) -> None:
    join(1, "cam")
    began = time.time()
    [found] = ready.json("command", "cam", "netcheck", "--expires", "5s", code=1)
    assert (found["name"], found["state"], found["code"]) == ("cam", "expired", "unanswered")
    assert time.time() - began >= 5
    assert "not heard from in time" in ready("commands", "show", found["id"]) + ready.err


def test_many_by_tag_and_each_once(join: Join, ready: Shell) -> None:
    for number in range(3):
        join(number, f"cam-{number}", "--tag", "tag:cam")
    join(9, "gate")
    given = ready.json("command", "cam-1", "tag:cam", "gate", "rekey", "--no-wait")
    assert [each["name"] for each in given] == ["cam-1", *sorted_others(given), "gate"] and len(given) == 4
    assert "no active device has this tag" in ready.fails("command", "tag:none", "rekey", "--no-wait")


def sorted_others(given: list[dict[str, str]]) -> list[str]:
    return [each["name"] for each in given if each["name"] in ("cam-0", "cam-2")]


def test_mistakes_are_said_in_one_line(join: Join, ready: Shell) -> None:
    join(1, "cam")
    assert "there is none of this name" in ready.fails("command", "nobody", "rekey", "--no-wait")
    assert "name of a script" in ready.fails("command", "cam", "run", "../x", "--no-wait")
    assert "--expires" in ready.fails("command", "cam", "rekey", "--expires", "soon", "--no-wait")
    assert "between 5 s and 7 days" in ready.fails("command", "cam", "rekey", "--expires", "8d", "--no-wait")
    assert "there is none of this id" in ready.fails("commands", "show", "1234")
    assert "debug | info" in ready.fails("logs", "cam", "--level", "loud")
    assert ready.json("commands", "list", "cam") == []


def test_output_moves_no_cursor(join: Join, ready: Shell) -> None:
    device = join(1, "cam")
    number = ready("command", "cam", "run", "x", "--no-wait").split()[0]
    store = SqliteStore(ready.state.database)
    with store.write() as tx:
        found = tx.command(number)
        assert found is not None and found.device == device.id
        tx.save_output(number, 0, b"\x1b[2Jred\tand\xff\n")
        found.state, found.parts, found.due_s, found.finished_s = CommandState.DONE, 1, 0, 1
        tx.save_command(found)
    store.close()
    assert ready("commands", "show", number) == "?[2Jred\tand\ufffd\n"
    assert "run x: done" in ready.err


def test_a_sample_is_shown(join: Join, ready: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    device = join(1, "cam")
    store = SqliteStore(ready.state.database)
    sample = {**SAMPLE, "p": [["d" * 24, "[bold]x", "relay", "fra-1 tls", 12_345, 100, 200_000, 3_000, 4_000]]}
    sample["mo"] = [["wwan0", "LTE", "B3", "[red]Net", "home", "", 2, -97, -11, None, None, 1, 2, 3]]

    def arrives(_seconds: float) -> None:
        with store.write() as tx:
            tx.save_telemetry(device.id, int(time.time()), encode(sample))

    monkeypatch.setattr("hub.cli_commands.time.sleep", arrives)
    shown = ready("watch", "cam", "--seconds", "1")
    assert all(word in shown for word in ("[bold]x", "fra-1 tls", "12.3 ms", "195.3 KiB/s", "replayed-message 2"))
    assert all(word in shown for word in ("wwan0", "LTE B3", "2 of 4", "-97 dBm", "[red]Net"))
    assert "cam is offline" in ready.err
    store.close()
    assert "2 of 4 bars, RSRP -97 dBm, RSRQ -11 dB" in ready("devices", "show", "cam")
    assert ready.json("devices", "show", "cam")["modems"][0]["operator"] == "[red]Net"
    [row] = ready.json("commands", "list", "cam")
    assert (row["verb"], row["state"]) == ("watch", "done")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
