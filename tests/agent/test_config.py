"""Settings: where they come from, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.config import CONFIG_BYTES_MAX, SETTINGS, ConfigError, load, read_file, to_label
from edgeagent.context import limits_of
from edgeagent.io.proxy import parse_proxy
from edgeagent.proto.limits import CEILING_MIB, PROFILE_NAMES, TABLE, Limits, read_limits
from edgeagent.proto.limits import rows as limit_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "edgeagent.conf"
    path.write_text("")
    return path


def test_defaults(file: Path) -> None:
    settings = load({}, {}, str(file))
    assert (settings.interface, settings.port, settings.mtu, settings.port_fixed) == ("edge0", 51820, 1280, False)
    assert settings.state_dir == "/var/lib/edgeagent" and settings.socket == "/run/edgeagent/agent.sock"
    assert settings.hostname == to_label(os.uname().nodename)


def test_flag_over_environment_over_file_over_default(file: Path) -> None:
    file.write_text("# a comment\n\n port = 1 \nmtu=1400\ninterface = wg7\n")
    environ = {"EDGEAGENT_PORT": "2", "EDGEAGENT_MTU": "1300"}
    settings = load({"port": "3", "mtu": None}, environ, str(file))
    assert (settings.port, settings.mtu, settings.interface, settings.port_fixed) == (3, 1300, "wg7", True)


def test_uplinks_are_a_list_in_an_order(file: Path) -> None:
    assert load({}, {}, str(file)).uplinks == ""
    assert load({"uplinks": "eth0, wwan0"}, {}, str(file)).uplinks == "eth0,wwan0"
    assert load({"uplinks": ""}, {"EDGEAGENT_UPLINKS": "eth1"}, str(file)).uplinks == ""


def test_a_named_file_must_exist_and_the_usual_one_need_not(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.conf")
    with pytest.raises(ConfigError, match="no such file"):
        load({}, {}, missing)
    assert read_file(missing, must_exist=False) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "1e3"),
        ("port", "٣"),
        ("port", "9" * 5000),
        ("mtu", "1279"),
        ("mtu", "9001"),
        ("memory-profile", "tiny"),
        ("limits", "peers"),
        ("limits", "peers=0"),
        ("limits", "peers=1,peers=2"),
        ("limits", "peers=1,"),
        ("limits", "nobody=1"),
        ("limits", "peers=" + "9" * 5000),
        ("limits", "peers=\u0663"),
        ("limits", "flows=4194305"),
        ("limits", "pump_ring_bytes=131072"),
        ("limits", "pump_ring_bytes=300000"),
        ("limits", "message_bytes=1"),
        ("memory-ceiling", "19"),
        ("memory-ceiling", "-1"),
        ("memory-ceiling", "on"),
        ("memory-ceiling", "32.5"),
        ("metered", "eth0,"),
        ("metered", "none,eth0"),
        ("budget", "2MB/day"),
        ("budget", "wwan0=2MB"),
        ("budget", "wwan0=2MB/day;ppp0=1MB/day"),
        ("interface", "a" * 16),
        ("interface", "a/b"),
        ("interface", ".."),
        ("interface", "a b"),
        ("state-dir", "relative/path"),
        ("socket", "/" + "s" * 107),
        ("uplinks", "eth0,eth0"),
        ("uplinks", "eth0,"),
        ("uplinks", "eth0 wwan0"),
        ("uplinks", ",".join(f"eth{number}" for number in range(9))),
        ("hostname", "Upper"),
        ("hostname", "a.b"),
        ("hostname", "-a"),
        ("hostname", "a" * 64),
        ("hostname", "a+b"),
        ("hostname", "a/#"),
        ("log-level", "loud"),
    ],
)
def test_a_wrong_value_is_refused_by_name(file: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("limits", "limit")):
        load({name: text}, {}, str(file))
    with pytest.raises(ConfigError, match=SETTINGS[name][0]):
        load({}, {SETTINGS[name][0]: text}, str(file))
    file.write_text(f"\n{name} = {text}\n")
    with pytest.raises(ConfigError, match=":2"):
        load({}, {}, str(file))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "proxy.example:3128",
        "192.0.2.1:80",
        "[2001:db8::1]:8080",
        "me:Very-Secret@proxy:1",
        "me@site:Very:Secret@1@proxy:65535",
    ],
)
def test_a_proxy_that_is_taken_can_be_used(file: Path, text: str) -> None:
    assert load({}, {"EDGEAGENT_PROXY": text}, str(file)).proxy == text
    assert (parse_proxy(text) is None) == (text == "")


@pytest.mark.parametrize(
    "text",
    [
        "proxy",
        "proxy:0",
        "proxy:65536",
        "proxy:080",
        "proxy:٣",
        "http://proxy:3128",
        "-proxy:1",
        "pro_xy:1",
        "a..b:1",
        "." + "a" * 300 + ":1",
        "[2001:db8::1:1",
        "[:::]:1",
        "[192.0.2.1]:1",
        "2001:db8::1:80",
        "me:Very-Secret@",
        "me@proxy:1",
        ":Very-Secret@proxy:1",
        "me:Very-Secret@proxy:1\r\nHost: x",
        "me:Very Secret@proxy:1",
        "me:Very-Secreté@proxy:1",
    ],
)
def test_a_wrong_proxy_is_refused_and_never_shown(file: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="EDGEAGENT_PROXY: want HOST:PORT") as raised:
        load({}, {"EDGEAGENT_PROXY": text}, str(file))
    assert "Secret" not in str(raised.value)
    file.write_text(f"\nproxy = {text}\n")
    with pytest.raises(ConfigError, match=r":[23]: ") as raised:
        load({}, {}, str(file))
    assert "Secret" not in str(raised.value)


@given(text=st.text(st.sampled_from("ab1.:@[]-_%/ "), max_size=30))
def test_whatever_is_taken_as_a_proxy_is_one(text: str) -> None:
    try:
        taken = load({}, {"EDGEAGENT_PROXY": text}, "/dev/null").proxy
    except ConfigError:
        return
    proxy = parse_proxy(taken)
    assert proxy is None or 0 < proxy.port < 65536


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("port", "name = value"),
        ("poort = 1", "poort.*no such setting"),
        ("port = 1\nport = 1", "given twice"),
        ("x" * (CONFIG_BYTES_MAX + 1), "longer than"),
    ],
)
def test_a_wrong_file(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        load({}, {}, str(file))


@given(data=st.binary(max_size=200))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("conf") / "c"
    path.write_bytes(data)
    try:
        load({}, {}, str(path))
    except ConfigError as error:
        assert len(str(error)) < 600


@given(name=st.text(max_size=80))
def test_the_systems_name_always_becomes_a_label(name: str) -> None:
    assert load({"hostname": to_label(name)}, {}, "/dev/null").hostname == to_label(name)


def test_labels() -> None:
    names = ["Gate-7.example.org", "raspberry pi", "--", "ÄÖ", "a" * 62 + "--b"]
    assert [to_label(name) for name in names] == ["gate-7", "raspberry-pi", "device", "device", "a" * 62]


def test_limits_are_a_profile_and_single_ones_over_it(file: Path) -> None:
    assert vars_of(limits_of(load({}, {}, str(file)))) == Limits.DEFAULTS
    small = limits_of(load({"memory-profile": "small", "limits": "peers=20, flows=2048"}, {}, str(file)))
    assert (small.peers, small.flows, small.records) == (20, 2048, TABLE["records"][1][0])
    file.write_text("memory-profile = large\nlimits = feeds=7\n")
    large = limits_of(load({}, {"EDGEAGENT_LIMITS": "feeds=9"}, str(file)))
    assert (large.feeds, large.records) == (9, TABLE["records"][1][2])


def test_every_profile_is_what_an_operator_may_ask_for() -> None:
    for name, ((low, high), profiles, meaning) in TABLE.items():
        assert meaning and all(low <= value <= high for value in profiles), name
        assert list(profiles) == sorted(profiles), name
        for value in profiles:
            assert read_limits(f"{name}={value}") == {name: value}
    assert set(PROFILE_NAMES) == set(CEILING_MIB)
    assert [row[0] for row in limit_rows()] == ["limit", *TABLE]


def vars_of(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in TABLE}
