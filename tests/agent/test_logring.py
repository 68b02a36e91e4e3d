"""The log: bounded, one line a record, and no way out for secrets."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.io import logring
from edgeagent.io.logring import LINE_CHARS_MAX, LogRing

TOKEN = "em1.o2FoZ2h1Yjo4ODgzYW5YIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def logger(ring: LogRing) -> logging.Logger:
    return logring.install(ring, logging.DEBUG)


def test_the_ring_is_bounded(stream: io.StringIO) -> None:
    ring = LogRing(10, stream)
    log = logger(ring)
    for number in range(100):
        log.info("line %d %s", number, "x" * 2000)
    assert len(ring.lines()) == 10
    assert all(len(line) <= LINE_CHARS_MAX for line in ring.lines())
    assert "line 99" in ring.lines(1)[0]
    assert len(stream.getvalue().splitlines()) == 100


def test_tokens_and_hidden_strings_do_not_pass(stream: io.StringIO) -> None:
    ring = LogRing(10, stream)
    ring.hide("correct horse battery")
    log = logger(ring)
    log.error("the token was %s", TOKEN)
    log.error("the password was %r", "correct horse battery")
    try:
        raise RuntimeError(TOKEN)
    except RuntimeError:
        log.exception("and again")
    everything = stream.getvalue() + "\n".join(ring.lines())
    assert TOKEN[4:] not in everything and "horse" not in everything
    assert everything.count("[hidden]") >= 6


@given(text=st.text(max_size=100))
def test_a_record_is_one_printable_line(text: str) -> None:
    ring = LogRing(2, None)
    logger(ring).info("%s", text)
    (line,) = ring.lines()
    assert line.isprintable() and "\n" not in line


def test_a_stream_that_closes_does_no_harm(stream: io.StringIO) -> None:
    ring = LogRing(10, stream)
    stream.close()
    logger(ring).info("still here")
    assert len(ring.lines()) == 1


def test_short_strings_are_not_hidden() -> None:
    ring = LogRing(10, None)
    ring.hide("a")
    assert ring.clean("a cat") == "a cat"
