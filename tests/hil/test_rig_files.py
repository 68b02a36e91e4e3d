"""Rig files: the examples are good, and what is wrong is said with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.errors import RigFileWrong
from hil.rigs import rigfile
from hil.rigs.device import Device
from hil.rigs.schema import KINDS, table

EXAMPLES = sorted((Path(rigfile.__file__).parent).glob("*.yaml"))
GOOD = """\
targets:
  pump:
    resources:
      RawSerialPort: {port: /dev/ttyUSB7}
    drivers:
      SerialDriver: {}
      ExternalPowerDriver: {cmd_on: relay on, cmd_off: relay off}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "bench.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_good(path: Path, tmp_path: Path) -> None:
    rig = rigfile.load(path)
    assert len(rig.targets) == 3
    for target in rig.targets.values():
        device = Device(rig, target, folder=tmp_path, out=tmp_path, store=tmp_path)
        assert device.power is not None and device.storage is not None
        device.close()


def test_what_is_left_out_has_its_default_and_lists_are_as_good_as_mappings(tmp_path: Path) -> None:
    rig = rigfile.load(write(tmp_path, GOOD))
    target = rig.targets["pump"]
    assert target.bound("SerialDriver").values == {"port": "/dev/ttyUSB7", "speed": 115200}
    assert target.drivers["ExternalPowerDriver"].values["delay"] == 2.0
    assert target.resources["RawSerialPort"].line == 4 and rig.options["hub_url"] == ""
    assert rig.file("cards/a") == tmp_path / "cards/a"
    as_list = GOOD.replace("      SerialDriver: {}\n", "      - SerialDriver: {}\n").replace("      Ext", "      - Ext")
    assert rigfile.load(write(tmp_path, as_list)).targets["pump"].drivers.keys() == target.drivers.keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("targets:", "target:", r"bench\.yaml:1: target: no such key \(is it targets\?\); known are targets, options"),
        ("RawSerialPort", "RawSerialPrt", r":4: targets\.pump\.resources\.RawSerialPrt: no such resource \(is it RawS"),
        ("port: /dev", "prt: /dev", r":4: targets\.pump\.resources\.RawSerialPort\.prt: no such key \(is it port\?\)"),
        ("{port: /dev/ttyUSB7}", "{}", r":4: .*RawSerialPort\.port: is not there, and is needed: its path"),
        ("/dev/ttyUSB7", "7", r":4: .*port: '7' is not text; in quotes it is"),
        ("/dev/ttyUSB7}", "/dev/x, speed: fast}", r":4: .*speed: 'fast' is not a whole number"),
        ("cmd_off: relay off", "cmd_off: x, delay: 2", r":7: .*delay: '2' is not a number with a point, as in 2\.0"),
        ("SerialDriver: {}", "HTTPPowerPort: {}", r":6: .*HTTPPowerPort: is a resource, and stands under `resources`"),
        ("SerialDriver: {}", "SDMuxDriver: {}", r":6: .*wants one resource SDMuxPort; there are 0"),
        ("      SerialDriver: {}\n", "", r":4: .*RawSerialPort: nothing uses it; it wants SerialDriver"),
        (
            "SerialDriver: {}",
            "GuestDriver: {machine: arm64}",
            r":7: .*ExternalPowerDriver: gives Power, as GuestDriver",
        ),
        ("  pump:", "  Pump_1:", r":2: targets\.Pump_1: a target's name is a device's"),
        ("  pump:", "  on:", r":2: targets: the name 'on' is not text to YAML; write it in quotes"),
        ("SerialDriver: {}", "SerialDriver: {}\n      SerialDriver: {}", r":7: .*SerialDriver: is there twice"),
        ("SerialDriver: {}", "SerialDriver: [1]", r":6: .*SerialDriver: wants `name: value` pairs"),
        ("/dev/ttyUSB7", "!template $LG_PORT", r":4: the tag !template: tags are not read"),
        ("/dev/ttyUSB7", "!!python/object:os.system x", r":4: the tag tag:yaml\.org,2002:python/object:os\.system"),
        ("/dev/ttyUSB7", "&a x", r":4: anchors \(&\) and aliases \(\*\) are not read"),
        ("targets:", "--- {}\n---\ntargets:", r":2: a second document"),
        ("{port: /dev/ttyUSB7}", "{port: [}", r"bench\.yaml:4: no YAML: "),
        (GOOD, "", r"bench\.yaml: is empty. It wants `targets:`"),
        (GOOD, "targets: {}", r":1: targets: 0 of them; from 1 to 64 are wanted"),
        (GOOD, GOOD + "options: {hub_url: 'https://h'}\n", r":8: options: hub_url and hub_token_file go together"),
        (GOOD, "targets:\n" + "  a: {}\n" * 5000, "more than 4000 values"),
        (GOOD, "#" * 70_000, r"more than 65536 bytes"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(RigFileWrong, match=said):
        rigfile.load(write(tmp_path, GOOD.replace(old, new)))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RigFileWrong, match=r"none\.yaml: No such file"):
        rigfile.load(tmp_path / "none.yaml")
    with pytest.raises(RigFileWrong, match="byte 2 is no UTF-8"):
        rigfile.load(write(tmp_path, b"a:\xff"))
    with pytest.raises(RigFileWrong, match=r"no rig 'bensh'; known are bench"):
        write(tmp_path, GOOD)
        rigfile.find("bensh", [tmp_path])
    assert rigfile.find("bench", [tmp_path]) == tmp_path / "bench.yaml"


def test_a_pattern_that_is_none_is_found_before_anything_is_opened(tmp_path: Path) -> None:
    text = GOOD + "      UBootDriver: {prompt: '=> ('}\n"
    rig = rigfile.load(write(tmp_path, text))
    with pytest.raises(
        RigFileWrong, match=r":8: targets\.pump\.drivers\.UBootDriver\.prompt: is no regular expression"
    ):
        Device(rig, rig.targets["pump"], folder=tmp_path, out=tmp_path, store=tmp_path)
    guest = rigfile.load(write(tmp_path, "targets: {a: {drivers: {GuestDriver: {machine: vax}}}}"))
    with pytest.raises(RigFileWrong, match="no such machine; known are arm64"):
        Device(guest, guest.targets["a"], folder=tmp_path, out=tmp_path, store=tmp_path)


def test_the_table_of_keys_is_whole() -> None:
    rows = table()
    assert len(rows) == sum(1 + len(kind.keys) for kind in KINDS.values())
    assert all(text for _, _, _, text in rows)
