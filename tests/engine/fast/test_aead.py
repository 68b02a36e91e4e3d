"""The AEAD of the C library, every provider and every width of lanes, against libsodium as PyNaCl carries it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeagent.crypto import load
from edgeagent.engine import bakeoff
from edgeagent.engine.fast import build
from tests.engine.fast.aead_kit import TAG, Aead, Aeads, library_path
from tools import OBJECTS

if TYPE_CHECKING:
    from edgeagent.proto.crypto import Crypto

KEY = bytes(range(32, 64))
EDGES = (0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 79, 80, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1420)
EDGES_MAIN = Path(__file__).with_name("aead_edges.c")


@pytest.fixture(scope="session")
def aeads(tmp_path_factory: pytest.TempPathFactory) -> Aeads:
    return Aeads(library_path(tmp_path_factory.mktemp("edgefast")))


@pytest.fixture(scope="module", params=bakeoff.NAMES)
def aead(aeads: Aeads, request: pytest.FixtureRequest) -> Iterator[Aead]:
    """Each provider in turn; those that this machine does not have are skipped, by the reason that is given."""
    try:
        with aeads.provider(request.param) as provider:
            yield provider
    except LookupError as why:
        if request.param in ("lanes", "lanes-128", "portable") or "known-answer" in str(why):
            raise
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def sodium() -> Crypto:
    return load("pynacl")


def text_of(size: int, seed: int = 0) -> bytes:
    return bytes((31 * i + 7 * seed + (i >> 8)) & 255 for i in range(size))


def sealed_by(sodium: Crypto, key: bytes, first: int, texts: list[bytes]) -> list[bytes]:
    return [sodium.seal_transport(key, bytes(16), first + i, text)[16:] for i, text in enumerate(texts)]


def test_names_are_those_that_python_knows(aeads: Aeads) -> None:
    assert sorted(aeads.names()) == sorted(bakeoff.NAMES)


def test_a_name_that_is_none_is_refused_with_a_reason(aeads: Aeads) -> None:
    with pytest.raises(LookupError, match="no provider of this name"), aeads.provider("lanes-1024"):
        pass


def test_a_provider_says_what_it_is(aead: Aead) -> None:
    assert aead.name in bakeoff.NAMES
    assert aead.version


def test_each_size_alone_and_among_equals(aead: Aead, sodium: Crypto) -> None:
    for size in (*EDGES, 1419, 1421, 9000, 65536):
        for count in (1, 2, 17) if size <= 1421 else (1, 3):
            texts = [text_of(size, i) for i in range(count)]
            sealed = sealed_by(sodium, KEY, 77, texts)
            assert aead.seal(KEY, 77, texts) == sealed, f"{count} of {size} B"
            assert aead.open(KEY, range(77, 77 + count), sealed) == texts, f"{count} of {size} B"


@pytest.mark.parametrize("size", [64, 1420])
def test_every_batch(aead: Aead, sodium: Crypto, size: int) -> None:
    texts = [text_of(size, i) for i in range(64)]
    sealed = sealed_by(sodium, KEY, 1, texts)
    for count in range(1, 65):
        assert aead.seal(KEY, 1, texts[:count]) == sealed[:count]
        assert aead.open(KEY, range(1, count + 1), sealed[:count]) == texts[:count]


def test_an_empty_batch_is_nothing(aead: Aead) -> None:
    assert aead.seal(KEY, 0, []) == []
    assert aead.open(KEY, [], []) == []


# About as many messages as fill lanes, of sizes about as different as they may be.
SIZES = st.one_of(st.sampled_from(EDGES), st.integers(0, 300), st.integers(1400, 1440))
TEXTS = st.lists(st.builds(text_of, SIZES, st.integers(0, 255)), min_size=1, max_size=64)
COUNTERS = st.one_of(st.integers(0, 2**64 - 64), st.integers(0, 10_000).map(lambda back: 2**64 - 2**13 - 64 - back))
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(texts=TEXTS, first=COUNTERS, key=st.binary(min_size=32, max_size=32), offset=st.integers(0, 63))
def test_mixed_batches_at_any_address(
    aead: Aead, sodium: Crypto, texts: list[bytes], first: int, key: bytes, offset: int
) -> None:
    sealed = sealed_by(sodium, key, first, texts)
    assert aead.seal(key, first, texts, offset) == sealed
    assert aead.open(key, range(first, first + len(texts)), sealed, offset) == texts


@MANY
@given(
    texts=TEXTS,
    counters=st.lists(st.integers(0, 2**64 - 1), min_size=64, max_size=64),
    forged=st.dictionaries(st.integers(0, 63), st.tuples(st.booleans(), st.integers(0)), max_size=64),
)
def test_a_forged_message_refuses_itself_only(
    aead: Aead, sodium: Crypto, texts: list[bytes], counters: list[int], forged: dict[int, tuple[bool, int]]
) -> None:
    """One bit is another in text, tag or counter of each message that is forged."""
    counters = counters[: len(texts)]
    sealed = [
        sodium.seal_transport(KEY, bytes(16), counter, text)[16:] for counter, text in zip(counters, texts, strict=True)
    ]
    for i, (in_counter, number) in forged.items():
        if i >= len(texts):
            continue
        if in_counter:
            counters[i] ^= 1 << number % 64
        else:
            bit = number % (8 * len(sealed[i]))
            data = bytearray(sealed[i])
            data[bit // 8] ^= 1 << bit % 8
            sealed[i] = bytes(data)
    expected = [None if i in forged else text for i, text in enumerate(texts)]
    assert aead.open(KEY, counters, sealed) == expected


def test_every_bit_of_a_tag_counts(aead: Aead, sodium: Crypto) -> None:
    sealed = sodium.seal_transport(KEY, bytes(16), 5, text_of(40))[16:]
    forged = [
        sealed[:-TAG] + (int.from_bytes(sealed[-TAG:], "little") ^ 1 << bit).to_bytes(TAG, "little")
        for bit in range(128)
    ]
    assert aead.open(KEY, [5] * 64, forged[:64]) == [None] * 64
    assert aead.open(KEY, [5] * 64, forged[64:]) == [None] * 64


def test_keys_that_take_turns(aead: Aead, sodium: Crypto) -> None:
    """Providers that keep a prepared key, or sockets of some, use the right one."""
    keys = [bytes((i,)) * 32 for i in range(7)]
    for counter in range(21):
        key = keys[counter * 3 % 7]
        sealed = sealed_by(sodium, key, counter, [text_of(100)])
        assert aead.seal(key, counter, [text_of(100)]) == sealed
        assert aead.open(keys[(counter * 3 + 1) % 7], [counter], sealed) == [None]
        assert aead.open(key, [counter], sealed) == [text_of(100)]


def test_measuring(aead: Aead) -> None:
    assert 1 < aead.measure(64, 16, 2) < 1e6
    assert aead.measure(64, 0, 2) < 0
    assert aead.measure(64, 65, 2) < 0
    assert aead.measure(65_537, 1, 2) < 0


def test_arithmetic_at_its_edges_and_the_self_test_under_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "aead_edges"
    build.build(program, build.find_compiler(), sanitize="address", mains=[EDGES_MAIN], cache=OBJECTS)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lanes-128: " in done.stdout
    assert "self-test: passes" in done.stdout
