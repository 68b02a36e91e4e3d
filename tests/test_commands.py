"""The book of commands: each is begun once, whatever comes again, late, wrong, or after a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto.codec import decode, encode
from edgeagent.proto.commands import (
    ACCEPTED,
    BOOK_BYTES_MAX,
    BOOK_MAX,
    DONE,
    EXPIRED,
    FAILED,
    IDS_MAX,
    LIFE_MAX_S,
    OPEN_MAX,
    OUTPUT_BYTES_MAX,
    REFUSED,
    REST_S,
    VERBS,
    Book,
    answer,
    clip,
    is_script_name,
    parts,
)
from edgeagent.proto.control import ANSWER_DATA_BYTES_MAX, ANSWER_TEXT_BYTES_MAX, check_body
from edgeagent.proto.refusals import ControlDrop, ControlError

WALL_S = 1_800_000_000
ARGS: dict[str, dict[str, Any]] = {
    "reboot-agent": {},
    "collect-logs": {"n": 200},
    "netcheck": {"t": 6},
    "rekey": {},
    "run": {"s": "clean", "a": ["--all"], "t": 60},
    "watch": {"s": 60, "ev": 1},
}


def cmd(number: int, verb: str = "run", *, ends_in_s: int = 600, **changes: Any) -> dict[str, Any]:
    body = {
        "id": number.to_bytes(8, "big"),
        "v": verb,
        "x": WALL_S + ends_in_s,
        "by": "cli:root",
        "a": ARGS.get(verb, {}),
    }
    return check_body("cmd", {**body, **changes})


def test_every_verb_has_arguments_here() -> None:
    assert set(ARGS) == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_command_is_begun_once(verb: str) -> None:
    book = Book(None)
    entry, drop = book.take(WALL_S, cmd(1, verb))
    assert (entry.state, entry.by, drop) == (ACCEPTED, "cli:root", None)
    assert (entry.args == ARGS[verb]) and book.take(WALL_S, cmd(1, verb)) == (entry, ControlDrop.COMMAND_AGAIN)
    entry.settle(WALL_S + 3, DONE)
    assert book.take(WALL_S + 5, cmd(1, verb))[1] is ControlDrop.COMMAND_AGAIN
    assert book.take(WALL_S + 5, cmd(1, "rekey"))[1] is ControlDrop.COMMAND_AGAIN  # the id is what counts
    assert entry.state == DONE


def test_one_that_comes_after_its_end_is_not_begun() -> None:
    book = Book(None)
    for number, wall_s in enumerate((WALL_S + 600, WALL_S + 601.5, WALL_S * 2)):
        entry, drop = book.take(wall_s, cmd(10 + number))
        assert (entry.state, entry.code, drop) == (EXPIRED, "expired", ControlDrop.COMMAND_EXPIRED)
    assert book.take(WALL_S + 599, cmd(1))[1] is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (cmd(1, "format-disk"), "unknown-verb"),
        (cmd(1, "unwatched"), "unknown-verb"),
        (cmd(1, "run", a={}), "bad-arguments"),
        (cmd(1, "run", a={"s": "../x", "a": [], "t": 1}), "bad-arguments"),
        (cmd(1, "run", a={"s": "x", "a": ["y"] * 9, "t": 1}), "bad-arguments"),
        (cmd(1, "run", a={"s": "x", "a": ["y" * 129], "t": 1}), "bad-arguments"),
        (cmd(1, "run", a={"s": "x", "a": ["\x00"], "t": 1}), "bad-arguments"),
        (cmd(1, "run", a={"s": "x", "a": [], "t": 601}), "bad-arguments"),
        (cmd(1, "rekey", a={"now": True}), "bad-arguments"),
        (cmd(1, "watch", a={"s": 121, "ev": 1}), "bad-arguments"),
        (cmd(1, "watch", a={"s": 60, "ev": 0}), "bad-arguments"),
        (cmd(1, ends_in_s=LIFE_MAX_S + 1), "too-far"),
    ],
)
def test_what_is_wrong_is_refused_and_told(body: dict[str, Any], code: str) -> None:
    entry, drop = Book(None).take(WALL_S, body)
    assert (entry.state, entry.code, drop) == (REFUSED, code, ControlDrop.COMMAND_REFUSED)
    said = check_body("answer", answer(entry))
    assert (said["st"], said["c"]) == (REFUSED, code) and said["tx"]


def test_the_owner_says_what_is_allowed() -> None:
    book = Book(frozenset({"netcheck"}))
    assert book.take(WALL_S, cmd(1, "netcheck"))[1] is None
    entry, drop = book.take(WALL_S, cmd(2, "run"))
    assert (entry.code, drop) == ("not-allowed", ControlDrop.COMMAND_REFUSED)
    assert Book(frozenset()).take(WALL_S, cmd(1, "netcheck"))[0].code == "not-allowed"


def test_so_many_may_wait_and_no_more() -> None:
    book = Book(None)
    entries = [book.take(WALL_S, cmd(number))[0] for number in range(OPEN_MAX)]
    assert book.take(WALL_S, cmd(100))[0].code == "busy"
    entries[3].settle(WALL_S, DONE)
    assert book.take(WALL_S, cmd(101))[1] is None


@pytest.mark.parametrize("verb", ["reboot-agent", "rekey"])
def test_a_hub_in_wrong_hands_keeps_no_device_busy(verb: str) -> None:
    book = Book(None)
    first, _ = book.take(WALL_S, cmd(1, verb))
    first.settle(WALL_S, DONE)
    again = Book(None)
    again.load(book.export())  # it was started again
    for each in (book, again):
        assert each.take(WALL_S + REST_S - 1, cmd(2, verb))[0].code == "too-soon"
        assert each.take(WALL_S + REST_S, cmd(3, verb))[1] is None  # what was refused does not count


def test_a_command_is_forgotten_only_when_it_would_be_too_late_for_it() -> None:
    book = Book(None)
    for number in range(BOOK_MAX + IDS_MAX):
        entry, drop = book.take(WALL_S, cmd(number))
        assert drop is None
        entry.settle(WALL_S, DONE)
    assert book.take(WALL_S, cmd(5_000))[0].code == "busy" and book.get(cmd(5_000)["id"]) is None
    again, copy = Book(None), Book(None)
    again.load(book.export())
    copy.load(again.export())
    for each in (book, again, copy):
        for number in range(BOOK_MAX + IDS_MAX):
            assert each.take(WALL_S + 599, cmd(number))[1] is ControlDrop.COMMAND_AGAIN
    entry, drop = book.take(WALL_S + 599, cmd(0))
    assert (entry.state, entry.code) == (FAILED, "again")
    entry, drop = book.take(WALL_S + 700, cmd(5_001, ends_in_s=900))
    assert drop is None and len(book) == BOOK_MAX
    assert book.take(WALL_S + 700, cmd(0))[1] is ControlDrop.COMMAND_EXPIRED


def test_those_that_change_nothing_give_way() -> None:
    book = Book(None)
    for number in range(3 * BOOK_MAX):
        entry, drop = book.take(WALL_S, cmd(number, "collect-logs"))
        assert drop is None
        entry.settle(WALL_S, DONE)
    assert len(book) == BOOK_MAX


def test_after_a_restart_nothing_is_done_again() -> None:
    before = Book(None)
    for number, verb in enumerate(sorted(VERBS)):
        before.take(WALL_S, cmd(number, verb))
    before.take(WALL_S, cmd(50, "nonsense"))
    book = Book(None)
    book.load(before.export())
    known = {entry.verb: (entry.state, entry.code) for entry in book.entries()}
    assert known == {
        "reboot-agent": (DONE, ""),
        "rekey": (FAILED, "interrupted"),
        "run": (FAILED, "interrupted"),
    }
    again = [book.take(WALL_S + 9, cmd(number, verb))[1] for number, verb in enumerate(sorted(VERBS))]
    assert again == [None, None, ControlDrop.COMMAND_AGAIN, ControlDrop.COMMAND_AGAIN, ControlDrop.COMMAND_AGAIN, None]


@given(st.binary(max_size=200) | st.recursive(st.integers(0, 9) | st.binary(max_size=9), st.lists).map(encode))
def test_a_damaged_book_is_refused_whole(data: bytes) -> None:
    book = Book(None)
    with pytest.raises(ControlError):
        book.load(data)
    assert len(book) == 0


def test_a_full_book_fits_its_file() -> None:
    book = Book(None)
    for number in range(BOOK_MAX + IDS_MAX):
        command = cmd((1 << 63) + number, "reboot-agent", by="x" * 128, ends_in_s=600_000)
        entry, drop = book.take(WALL_S + REST_S * number, command)
        assert drop is None
        entry.settle(WALL_S, DONE)
    assert len(book.export()) <= BOOK_BYTES_MAX
    Book(None).load(book.export())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "later", "end", "restart"]), st.integers(0, 30), st.integers(0, 2_000),
            st.sampled_from(["run", "reboot-agent", "watch"]),
        ),
        max_size=80,
    )
)  # fmt: skip
def test_what_must_not_happen_twice_does_not(steps: list[tuple[str, int, int, str]]) -> None:
    book, wall_s, begun, late = Book(None), WALL_S, [], 0
    for what, number, span_s, verb in steps:
        if what == "come":
            body = cmd(number * 3 + ["run", "reboot-agent", "watch"].index(verb), verb, ends_in_s=number * 100)
            entry, drop = book.take(wall_s, body)
            late += body["x"] <= wall_s and drop is None
            if drop is None and entry.is_durable:
                begun.append(body["id"])
        elif what == "later":
            wall_s += span_s
        elif what == "end":
            for entry in book.entries()[: number % 4]:
                if entry.is_open:
                    entry.settle(wall_s, DONE)
        else:
            saved = book.export()
            book = Book(None)
            book.load(saved)
        assert len(book) <= BOOK_MAX and sum(entry.is_open for entry in book.entries()) <= OPEN_MAX
    assert len(begun) == len(set(begun)) and late == 0


@given(st.binary(max_size=40_000))
def test_output_goes_in_parts_and_comes_together(data: bytes) -> None:
    cut = parts(data)
    assert b"".join(cut) == data
    assert all(0 < len(part) <= ANSWER_DATA_BYTES_MAX for part in cut)


def test_output_is_bounded_and_its_last_part_can_be_said() -> None:
    cut = parts(bytes(3 * OUTPUT_BYTES_MAX))
    assert sum(map(len, cut)) == OUTPUT_BYTES_MAX
    entry, _ = Book(None).take(WALL_S, cmd(1))
    check_body("answer", answer(entry, no=len(cut) - 1, d=cut[-1], n=len(cut)))


@given(st.text())
def test_any_text_becomes_one_that_may_be_said(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    clipped = clip(text * 9)
    assert len(clipped.encode()) <= ANSWER_TEXT_BYTES_MAX and clipped.isprintable()
    assert decode(encode(clipped)) == clipped


@pytest.mark.parametrize("name", ["clean", "clean-cache.sh", "_x", "9", "a" * 64])
def test_names_of_scripts(name: str) -> None:
    assert is_script_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "a\n", "a\0", "ä", "a" * 65, None, b"x"])
def test_what_is_no_name_of_a_script(name: object) -> None:
    assert not is_script_name(name)
