"""Settings: where they come from, and what is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.config import CONFIG_BYTES_MAX, SETTINGS, ConfigError, load, read_file, to_label


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
    with pytest.raises(ConfigError, match=f"--{name}"):
        load({name: text}, {}, str(file))
    with pytest.raises(ConfigError, match=SETTINGS[name][0]):
        load({}, {SETTINGS[name][0]: text}, str(file))
    file.write_text(f"\n{name} = {text}\n")
    with pytest.raises(ConfigError, match=":2"):
        load({}, {}, str(file))


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
