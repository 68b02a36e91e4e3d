"""Ids, names and topics: every form that is taken, and everything that would break out of a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import names, topics
from edgeagent.proto.errors import RemoteProtocolError
from tests.control_kit import CLAIM, CRYPTO, DEVICE, NETWORK, NETWORK_KEY, entropy_of

ANY_TEXT = st.text() | st.text(alphabet="+#/\0-az2709. c:[]")


def test_ids_have_their_form() -> None:
    assert names.is_network_id(names.network_id(CRYPTO, NETWORK_KEY))
    assert names.is_device_id(DEVICE.device_id)
    assert names.is_claim_id(names.make_claim_id(entropy_of(3)))
    assert names.device_id(CRYPTO, NETWORK_KEY)[:16] != NETWORK  # a hash for each purpose


@given(ANY_TEXT)
def test_nothing_but_the_exact_form_is_an_id(text: str) -> None:
    for check in (names.is_network_id, names.is_device_id, names.is_claim_id, names.is_host_name, names.is_tag):
        if check(text):
            assert not set(text) & set("+#/\0 \n")
    if names.is_host_port(text):
        host, port = names.split_host_port(text)
        assert host and 1 <= port <= 65535


@pytest.mark.parametrize("text", ["a", "a-b", "9", "a" * 63])
def test_host_names(text: str) -> None:
    assert names.is_host_name(text)
    assert names.is_tag(f"tag:{text}")


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a.b", "a_b", "a" * 64, "a\n", "é", 1, None, b"a"])
def test_not_host_names(text: object) -> None:
    assert not names.is_host_name(text)
    assert not names.is_tag(f"tag:{text}") or not isinstance(text, str)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub.example:8883", ("hub.example", 8883)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_host_port(text: str, parts: tuple[str, int]) -> None:
    assert names.split_host_port(text) == parts
    assert names.is_host_port(text)


@pytest.mark.parametrize(
    "text", ["", "hub", "hub:", ":1", "hub:0", "hub:01", "hub:65536", "hub:1x", "[hub]:1", "[fe80::1%eth0]:1", "h b:1"]
)
def test_not_host_port(text: str) -> None:
    assert not names.is_host_port(text)
    with pytest.raises(RemoteProtocolError, match="hosts: "):
        names.split_host_port(text, "hosts")


def test_topics_are_taken_apart_as_they_are_built() -> None:
    device = DEVICE.device_id
    for built, owner, way, leaf in [
        (topics.up(NETWORK, device, "birth"), device, "u", "birth"),
        (topics.down(NETWORK, device, "map"), device, "d", "map"),
        (topics.feed(NETWORK, device), device, "p", ""),
        (topics.signal(NETWORK, device, "abcd1234"), device, "s", "abcd1234"),
        (topics.join(NETWORK, CLAIM), CLAIM, "u", "join"),
        (topics.admit(NETWORK, CLAIM, device), CLAIM, "d", device),
        (topics.hub_state(NETWORK), "hub", "hub", "state"),
    ]:
        topic = topics.parse(built)
        assert topic is not None
        assert (topic.network, topic.owner, topic.way, topic.leaf) == (NETWORK, owner, way, leaf)
    assert topics.down(NETWORK, device, "map").startswith(topics.down_filter(NETWORK, device)[:-1])
    assert topics.hub_filter(NETWORK) == f"em1/{NETWORK}/+/u/+"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "em1",
        f"em2/{NETWORK}/{DEVICE.device_id}/p",
        f"em1/{NETWORK}/{DEVICE.device_id}/p/",
        f"em1/{NETWORK}/{DEVICE.device_id}/u/map",
        f"em1/{NETWORK}/{DEVICE.device_id}/u/join",
        f"em1/{NETWORK}/{DEVICE.device_id}/d/ask",
        f"em1/{NETWORK}/{DEVICE.device_id}/u/+",
        f"em1/{NETWORK}/+/p",
        f"em1/{NETWORK}/#",
        f"em1/{NETWORK}/hub/p",
        f"em1/{NETWORK}/hub/state/x",
        f"em1/{NETWORK}/{CLAIM}/u/birth",
        f"em1/{NETWORK}/{CLAIM}/p",
        f"em1/{NETWORK}/{CLAIM}/d/map",
        f"em1/{NETWORK.upper()}/{DEVICE.device_id}/p",
        f"em1/{NETWORK}/{DEVICE.device_id}\0/p",
        f"em1/{NETWORK}/{DEVICE.device_id}/u/birth/x",
    ],
)
def test_not_our_topics(topic: str) -> None:
    assert topics.parse(topic) is None


@given(ANY_TEXT)
def test_any_text_is_a_topic_or_none(text: str) -> None:
    assert topics.parse(text) is None
