"""4via6: prefixes and names of hosts behind routers whose IPv4 networks are alike."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.proto import prefixes, via
from edgeagent.proto.prefixes import Prefix

SITES = st.integers(1, 65_535)
OCTETS = st.binary(min_size=4, max_size=4)


@st.composite
def insides(draw: st.DrawFn) -> Prefix:
    length = draw(st.integers(0, 32))
    return prefixes.mask(draw(OCTETS), length), length


def test_the_prefix_is_what_its_rule_gives() -> None:
    assert via.NETWORK[0][:6] == b"\xfd" + hashlib.sha256(b"edgeagent 4via6").digest()[:5]
    assert prefixes.to_text(via.NETWORK) == "fd2e:966:3c02::/48"


@given(SITES, insides())
def test_prefixes_are_embedded_as_rfc_6052_has_it(site: int, inside: Prefix) -> None:
    shown = via.embed(site, inside)
    assert via.split(shown) == (site, inside) and via.holds(shown, inside)
    network = IPv6Network(prefixes.to_text(shown))
    v4 = IPv4Network(prefixes.to_text(inside))
    assert int(network.network_address) & 0xFFFFFFFF == int(v4.network_address)
    assert network.num_addresses == v4.num_addresses
    assert shown[0][8] == 0  # bits 64 to 71, section 2.2
    assert via.to_text(shown) == f"{v4} via {site}"
    assert via.read(via.to_text(shown)) == via.read(f"{v4}@{site}") == shown


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("192.168.1.0/24@7", "fd2e:966:3c02::7:c0a8:100/120"),
        ("192.168.1.0/24 via 7", "fd2e:966:3c02::7:c0a8:100/120"),
        ("192.168.1.0/24  via  65535", "fd2e:966:3c02::ffff:c0a8:100/120"),
        ("10.1.2.3@1", "fd2e:966:3c02::1:a01:203/128"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("fd00:7::/64", "fd00:7::/64"),
    ],
)
def test_what_is_written(text: str, prefix: str) -> None:
    assert prefixes.to_text(via.read(text)) == prefix


@pytest.mark.parametrize(
    "text",
    [
        *(
            "192.168.1.0/24@0",
            "192.168.1.0/24@65536",
            "192.168.1.0/24@07",
            "192.168.1.0/24@",
            "@7",
            "192.168.1.0/24via7",
        ),
        *("192.168.1.1/24@7", "192.168.1.0/33@7", "fd00::/64@7", "192.168.1.0/24@7@8", "192.168.1.0/24@٧", "via"),
        "1" * 1_000 + "@7",
    ],
)
def test_what_is_written_wrongly(text: str) -> None:
    with pytest.raises(ValueError, match=r"want|behind the prefix") as caught:
        via.read(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fd2e:966:3c02::7:c0a8:100/120", None),
        ("fd2e:966:3c02::7:a00:0/104", None),
        ("fd00:7::/64", None),
        ("192.168.1.0/24", None),
        ("fd2e:966:3c02::/48", "only IPv4 prefixes of sites"),
        ("fd2e::/16", "only IPv4 prefixes of sites"),
        ("fd2e:966:3c02::c0a8:100/120", "only IPv4 prefixes of sites"),  # site 0
        ("fd2e:966:3c02:0:1:7:c0a8:100/120", "only IPv4 prefixes of sites"),
        ("fd2e:966:3c02::7:0:0/96", "a default route"),
        ("fd2e:966:3c02::7:7f00:0/104", "loopback"),
        ("fd2e:966:3c02::7:a9fe:a9fe/128", "link-local"),
        ("64:ff9b::/96", "RFC 6052"),
        ("64:ff9b::c0a8:100/120", "RFC 6052"),
    ],
)
def test_who_may_route_it(text: str, why: str | None) -> None:
    said = via.why_not(prefixes.parse(text))
    assert said is None if why is None else why in str(said)


@given(SITES, OCTETS)
def test_names_lead_to_addresses_and_back(site: int, host: bytes) -> None:
    label = f"{str(IPv4Address(host)).replace('.', '-')}-via-{site}"
    address = via.address_of(label)
    assert address == via.embed(site, (host, 32))[0] and via.label_of(address) == label


@pytest.mark.parametrize(
    "label",
    [
        *("192-168-1-20", "192-168-1-20-via", "192-168-1-20-via-0", "192-168-1-20-via-65536", "192-168-1-20-via-7-1"),
        *("192-168-1-256-via-7", "192-168-01-20-via-7", "192-168-1-via-7", "192.168.1.20-via-7", "x192-168-1-20-via-7"),
        *("192-168-1-20-via-07", "192-168-1-20-via-7\n", "192-168-1-20-VIA-7", "١92-168-1-20-via-7", ""),
    ],
)
def test_other_names_are_none(label: str) -> None:
    assert via.address_of(label) is None


@given(st.text(max_size=80) | st.from_regex(r"[0-9]{1,4}(-[0-9]{1,4}){2,4}-via-[0-9]{0,6}", fullmatch=True))
def test_no_name_breaks_the_reader(label: str) -> None:
    address = via.address_of(label)
    assert address is None or (via.label_of(address) == label and prefixes.holds(via.NETWORK, address))


@given(st.text(max_size=80) | st.from_regex(r"[0-9./]{5,20} ?(@|via) ?[0-9]{0,6}", fullmatch=True))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = via.read(text)
    except ValueError:
        return
    assert via.read(via.to_text(found) or prefixes.to_text(found)) == found


@given(st.binary(min_size=16, max_size=16), st.integers(0, 128))
def test_no_prefix_of_others_is_taken_for_a_site_s(address: bytes, length: int) -> None:
    prefix = (prefixes.mask(address, length), length)
    assert via.to_text(prefix) == "" and via.label_of(address) is None
    assert IPv6Address(address) not in IPv6Network(prefixes.to_text(via.NETWORK))
