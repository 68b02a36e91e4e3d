"""The service files: that they are well-formed, and call what there is."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeagent.ceiling import BESIDE_KIB
from edgeagent.proto.limits import CEILING_MIB
from relay.config import SETTINGS
from relay.core.limits import RelayLimits

DIST = Path(__file__).parents[2] / "edgeagent" / "dist"
UNIT = DIST / "edgeagent.service"
INIT = DIST / "edgeagent.init"
ROOT = Path(__file__).parents[2]
BYTE_CODE = ROOT / "tools" / "package" / "files" / "edgeagent-bytecode.service"
RELAY, HUB = ROOT / "relay" / "edgerelay.service", ROOT / "hub" / "edgehub.service"


def unit(path: Path = UNIT) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)  # DeviceAllow comes once a device
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_both_run_the_foreground_agent() -> None:
    assert unit()["Service"]["ExecStart"] == "/usr/bin/edgeagent run"
    assert "procd_set_param command /usr/bin/edgeagent run" in INIT.read_text()


def test_the_unit_does_not_repeat_what_cannot_succeed() -> None:
    assert unit()["Service"]["RestartPreventExitStatus"].split() == ["2"]
    assert unit()["Service"]["StateDirectoryMode"] == "0700"


def test_the_capabilities_are_the_few_it_needs() -> None:
    bounding = unit()["Service"]["CapabilityBoundingSet"].split()
    assert bounding == ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]


def test_the_unit_lets_resolv_conf_be_replaced() -> None:
    """Of two lines about the same path systemd takes the stricter one, so `full` is not undone by ReadWritePaths."""
    assert unit()["Service"]["ProtectSystem"] == "yes"
    assert not {"ReadOnlyPaths", "InaccessiblePaths"} & set(unit()["Service"])


def test_what_bounds_the_memory_from_outside_leaves_room_for_the_ceilings_inside() -> None:
    service = unit()["Service"]
    high, most = (int(service[name].removesuffix("M")) for name in ("MemoryHigh", "MemoryMax"))
    assert CEILING_MIB["normal"] + BESIDE_KIB // 1024 <= high < most
    found = re.search(r'data="(\d+) (\d+)"', INIT.read_text())
    assert found is not None and found[1] == found[2]
    assert int(found[1]) >= max(CEILING_MIB.values()) << 20


def test_a_relay_has_time_to_drain_and_files_for_all_members() -> None:
    parser = unit(RELAY)
    assert int(parser["Service"]["TimeoutStopSec"]) > 2 * int(SETTINGS["drain"][2] or 0)
    assert int(parser["Service"]["LimitNOFILE"]) > 2 * RelayLimits().members
    assert parser["Service"]["ExecStart"].split()[1:] == ["serve", "--config", "/etc/edgerelay/relay.toml"]


def test_a_hub_is_given_a_low_port_by_what_its_comment_says() -> None:
    text = HUB.read_text()
    assert text.index("CapabilityBoundingSet=\n") < text.index("#CapabilityBoundingSet=CAP_NET_BIND_SERVICE")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("path", [UNIT, BYTE_CODE, RELAY, HUB], ids=lambda path: path.stem)
def test_systemd_accepts_the_unit(tmp_path: Path, path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(re.sub("ExecStart=.*", "ExecStart=/bin/true", path.read_text()))
    result = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert path.name not in result.stderr, result.stderr


def test_the_init_script_is_shell() -> None:
    subprocess.run(["sh", "-n", INIT], check=True)
