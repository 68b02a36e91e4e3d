"""The filter language: what it means, against a plain reading of it in Python, and what it refuses."""

from __future__ import annotations

import fnmatch
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.core.filters import TERMS_MAX, TEXT_MAX, Term, parse, seconds, version_key
from hub.core.model import Device, DeviceState, HubError, Kind
from hub.store import devices
from hub.store.sqlite import SqliteStore
from tests.hub.kit import WALL_S, load_crypto, make_network, make_postgres, make_sqlite, seeded

H, D = 3_600, 86_400


def make(number: int, **fields: Any) -> Device:
    return Device(
        **{
            "id": f"d-{number:026d}",
            "state": DeviceState.ACTIVE,
            "claim": "c-x",
            "device_key": number.to_bytes(32, "big"),
            "box_key": b"",
            "node_key": b"",
            "created_s": WALL_S - number * H,
            "name": f"box-{number}",
            "v4": 0x64400000 + number,
            "v6": b"\xfd" + number.to_bytes(15, "big"),
            **fields,
        }
    )


FLEET = [
    make(1, name="gate-1", tags=("tag:camera", "tag:site-a"), online=True, version="0.2.1", last_seen_s=WALL_S - 60),
    make(2, name="gate-2", tags=("tag:camera",), version="0.10", last_seen_s=WALL_S - 10 * D, user="ada"),
    make(
        3,
        name="front-door",
        tags=("tag:cam",),
        online=True,
        version="0.1.9",
        user="eve",
        facts={"os": "OpenWrt", "board": "rpi-4b"},
    ),
    make(4, name="cam", state=DeviceState.PENDING, version="", v4=None, v6=None),
    make(5, name="cam-10", state=DeviceState.EXPIRED, version="0.2", not_after=WALL_S - D),
    make(6, name=None, state=DeviceState.REMOVED),
    make(7, name="a-b", version="1.0rc1", not_after=WALL_S + 5 * D, tags=("tag:camera",), last_seen_s=WALL_S - 2 * H),
    make(8, name="axb", version="0.2.0", facts={"board": "100% pure"}),
    make(9, name="fra-1", kind=Kind.RELAY),
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    network = make_network(load_crypto(), seeded(0))
    if request.param == "sqlite":
        made: Any = make_sqlite(tmp_path_factory.mktemp("filters") / "hub.db", network)
    else:
        server = request.getfixturevalue("postgres_server")
        made = make_postgres(server.url(server.database(request.getfixturevalue("postgres_tables"))), network)
    with closing(made) as store:
        with store.write() as tx:
            for device in FLEET:
                tx.add_device(device)
        yield store


def found(store: SqliteStore, text: str, **options: Any) -> list[int]:
    with store.read() as tx:
        page = devices.find(tx.connection, parse(text), WALL_S, **options)
    assert page.total >= len(page.rows)
    return [int(row.id[2:]) for row in page.rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {1, 2, 3, 4, 5, 7, 8}),
        ("gate", {1, 2}),
        ("GATE", {1, 2}),
        ("tag:camera", {1, 2, 7}),
        ("tag:tag:camera", {1, 2, 7}),
        ("tag:cam", {3}),
        ("tag:camera -tag:site-a", {2, 7}),
        ("tag:site-a,cam", {1, 3}),
        ("-tag:camera", {3, 4, 5, 8}),
        ("online:yes", {1, 3}),
        ("online:no tag:camera", {2, 7}),
        ("state:pending", {4}),
        ("state:removed", {6}),
        ("-state:active", {4, 5, 6}),
        ("name:cam", {4}),
        ("name:cam*", {4, 5}),
        ("name:CAM*", {4, 5}),
        ("name~GATE", {1, 2}),
        ("fact~openWRT", {3}),
        ("name:*door", {3}),
        ("name~a-b", {7}),
        ("name:a_b", set()),
        ("name:a%b", set()),
        ("version:<0.2", {3}),
        ("version:<=0.2", {3, 5, 8}),
        ("version:>0.2", {1, 2, 7}),
        ("version:>=1", {7}),
        ("version:0.2", {5}),
        ("version~rc", {7}),
        ("user:ada", {2}),
        ("user:ada,eve", {2, 3}),
        ("seen:<1h", {1}),
        ("seen:>7d", {2, 3, 4, 5, 8}),
        ("seen:never", {3, 4, 5, 8}),
        ("joined:<3h", {1, 2}),
        ("expires:<7d", {5, 7}),
        ("expires:never state:active", {1, 2, 3, 8}),
        ("address:100.64.0.1", {1}),
        ("address:100.64.0.0/29", {1, 2, 3, 5, 7}),
        ("100.64.0.8", {8}),
        ("address:fd00::/8", {1, 2, 3, 5, 7, 8}),
        ("fact~openwrt", {3}),
        ('fact~"100% pure"', {8}),
        ("fact~100_", set()),
        ("board:rpi-4b", {3}),
        ("board:rpi-4", set()),
        ("board:rpi-*,*pure", {3, 8}),
        ("board~4B", {3}),
        ("board:OpenWrt", set()),  # another fact
        ("-board:rpi-4b", {1, 2, 4, 5, 7, 8}),
        ("id:d-00000000000000000000000001", {1}),
    ],
)
def test_what_it_finds(store: SqliteStore, text: str, expected: set[int]) -> None:
    assert set(found(store, text)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour:red", "colour: is no field"),
        ("tag:", "needs a value"),
        ("tag:No", "is no tag"),
        ("online:maybe", "yes or no"),
        ("state:good", "state:good"),
        ("seen:5", "write seen:<5"),
        ("seen:<soon", "a time like"),
        ("expires:<9999999999d", "a time like"),
        ("version:<new", "a version like"),
        ("name:<x", "Only versions and times"),
        ("address:here", "an address or a prefix"),
        ("tag~x", "has no meaning"),
        ('"open', "quotation mark"),
        ('name:"a"b"', "quotation mark"),
        ("x" * (TEXT_MAX + 1), "at most"),
        ("a " * (TERMS_MAX + 1), "Use fewer"),
        ("tag:" + ",".join("abcdefghijklmnopq"), "at most"),
    ],
)
def test_what_it_refuses(text: str, said: str) -> None:
    with pytest.raises(HubError, match=said.replace("|", r"\|")):
        parse(text)


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("abz:~-<>=,*\"% _\\'\x00é0.7d"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        terms = parse(text)
    except HubError:
        return
    assert len(terms) <= TERMS_MAX


_VALUES = {
    "tag": st.sampled_from(["camera", "cam", "site-a", "x"]),
    "online": st.sampled_from(["yes", "no"]),
    "state": st.sampled_from([state.value for state in DeviceState]),
    "name": st.sampled_from(["gate*", "*", "cam", "a_b", "a%b", "*-*"]),
    "user": st.sampled_from(["ada", "e*", "eve"]),
    "version": st.sampled_from(["<0.2", ">=0.2.1", "0.2", "<=1", ">0.9"]),
    "seen": st.sampled_from(["<1h", ">7d", "<=10d", "never"]),
    "expires": st.sampled_from(["<7d", ">1d", "never"]),
}


@st.composite
def one_term(draw: st.DrawFn) -> str:
    field = draw(st.sampled_from(sorted(_VALUES)))
    return f"{draw(st.sampled_from(['', '-']))}{field}:{draw(_VALUES[field])}"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(one_term(), max_size=4))
def test_the_database_agrees_with_a_plain_reading(store: SqliteStore, texts: list[str]) -> None:
    terms = parse(" ".join(texts))
    anywhere = any(term.field == "state" for term in terms)
    expected = {
        int(device.id[2:])
        for device in FLEET
        if device.kind is Kind.DEVICE
        and (anywhere or device.state is not DeviceState.REMOVED)
        and all(_fits(device, term) is not term.negated for term in terms)
    }
    assert set(found(store, " ".join(texts))) == expected


def _fits(device: Device, term: Term) -> bool:
    return any(_fits_one(device, term, value) for value in term.values)


def _fits_one(device: Device, term: Term, value: str) -> bool:
    if term.field == "tag":
        return value in device.tags
    if term.field == "online":
        return device.online is (value == "yes")
    if term.field == "state":
        return device.state.value == value
    if term.field in ("name", "user"):
        text = (device.name or "") if term.field == "name" else device.user
        return fnmatch.fnmatchcase(text, value)
    if term.field == "version":
        if term.op == "=":
            return device.version == value
        ours, theirs = (list(version_key(text)) + [0] * 6 for text in (device.version, value))
        return bool(device.version) and _compared(ours[:6], term.op, theirs[:6])
    then = device.last_seen_s if term.field == "seen" else device.not_after
    if value == "never":
        return then == 0
    if term.field == "seen":
        return _compared(WALL_S - then, term.op, seconds(value))
    return then > 0 and _compared(then - WALL_S, term.op, seconds(value))


def _compared(a: Any, op: str, b: Any) -> bool:
    return bool({"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[op])


@pytest.mark.parametrize("sort", [sign + name for name in devices.SORTS for sign in ("", "-")])
def test_pages_make_the_whole_in_order(store: SqliteStore, sort: str) -> None:
    with store.read() as tx:
        whole = devices.find(tx.connection, (), WALL_S, sort=sort)
        paged: list[str] = []
        after = ""
        while True:
            page = devices.find(tx.connection, (), WALL_S, sort=sort, after=after, limit=2)
            assert page.total == whole.total == 7
            paged += [row.id for row in page.rows]
            after = page.next
            if not after:
                break
    assert paged == [row.id for row in whole.rows] and len(set(paged)) == 7


def test_sorts_and_marks_that_make_no_sense(store: SqliteStore) -> None:
    for options in ({"sort": "colour"}, {"after": "x"}, {"after": "WzEsMl0"}, {"after": "bnVsbA"}, {"after": "é"}):
        with pytest.raises(HubError):
            found(store, "", **options)


def test_a_mark_that_somebody_made_up_is_no_error_of_ours(store: SqliteStore) -> None:
    made = devices._pack(5, "d-")
    assert len(found(store, "", sort="online", after=made)) == 2


def test_lists_are_answered_from_the_index(tmp_path: Path) -> None:
    """10,000 rows of the table itself would be ten times as much to read."""
    with closing(make_sqlite(tmp_path / "hub.db", make_network(load_crypto(), seeded(0)))) as store, store.read() as tx:
        where = devices.conditions(tx.connection, parse("tag:camera online:no name~gate user:ada"), WALL_S)
        from sqlalchemy import select

        from hub.store.schema import device

        query = select(device.c.id, device.c.name).where(*where).order_by(device.c.name)
        text = str(query.compile(tx.connection, compile_kwargs={"literal_binds": True}))
        plan = " ".join(
            str(row) for row in tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text.replace('%', '%%')}")
        )
    assert "COVERING INDEX ix_device_list" in plan, plan
