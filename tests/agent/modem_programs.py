"""Fake `mmcli` and `uqmi`: programs that write what a file beside them says, and note what they were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PROGRAM = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"$here/asked"
test -e "$here/hang" && exec sleep 600
test -e "$here/flood" && exec yes garbage
key=$(echo "$*" | tr -c 'A-Za-z0-9\\n' _)
test -e "$here/$key" || { echo "error: couldn't find the ModemManager process in the bus" >&2; exit 1; }
cat "$here/$key"
"""
MODEM = "/org/freedesktop/ModemManager1/Modem/0"
BEARER = "/org/freedesktop/ModemManager1/Bearer/1"
UQMI = "-s -t 5000 -d /dev/cdc-wdm0"


class FakeProgram:
    """An executable `name` in `directory`; `says` chooses an answer for a list of arguments."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.path = directory / name
        self.path.write_text(_PROGRAM)
        self.path.chmod(0o755)

    def says(self, arguments: str, answer: Any) -> None:
        key = "".join(char if char.isascii() and char.isalnum() else "_" for char in arguments)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.directory / key).write_text(text)

    @property
    def asked(self) -> list[str]:
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []


def fake_mmcli(directory: Path, uplink: str = "wwan0", registration: str = "home", rsrp: str = "-97.00") -> FakeProgram:
    """As ModemManager 1.20 writes it, of one modem."""
    fake = FakeProgram(directory, "mmcli")
    fake.says("-L -J", {"modem-list": [MODEM]})
    generic = {
        "access-technologies": ["lte"],
        "bearers": [BEARER],
        "manufacturer": "QUALCOMM INCORPORATED",
        "model": "EC25",
        "ports": ["cdc-wdm0 (qmi)", "ttyUSB2 (at)", f"{uplink} (net)"],
        "primary-port": "cdc-wdm0",
        "state": "connected",
        "unlock-required": "sim-pin2",
    }
    network = {"operator-code": "26201", "operator-name": "Testnet", "registration-state": registration}
    fake.says(f"-m {MODEM} -J", {"modem": {"3gpp": network, "generic": generic}})
    lte = {"rsrp": rsrp, "rsrq": "-11.00", "rssi": "-66.00", "snr": "12.40"}
    nothing = dict.fromkeys(("rsrp", "rsrq", "snr"), "--")
    fake.says(
        f"-m {MODEM} --signal-get -J", {"modem": {"signal": {"lte": lte, "5g": nothing, "refresh": {"rate": "60"}}}}
    )
    fake.says(
        f"-m {MODEM} --get-cell-info -J",
        {
            "modem": {
                "generic": {"cell-info": ["cell type: lte, serving: yes, earfcn: 1300", "cell type: lte, serving: no"]}
            }
        },
    )
    fake.says(f"-b {BEARER} -J", {"bearer": {"properties": {"apn": "internet.test"}}})
    return fake


def fake_uqmi(directory: Path) -> FakeProgram:
    fake = FakeProgram(directory, "uqmi")
    fake.says(f"{UQMI} --get-signal-info", {"type": "lte", "rssi": -66, "rsrq": -11, "rsrp": -97, "snr": 12.4})
    system = {
        "registration": "registered",
        "plmn_mcc": 262,
        "plmn_mnc": 1,
        "plmn_description": "Testnet",
        "roaming": True,
    }
    fake.says(f"{UQMI} --get-serving-system", system)
    fake.says(f"{UQMI} --get-cell-location-info", {"intrafrequency_lte_info": {"channel": 1300, "band": 3}})
    fake.says(f"{UQMI} --get-profile-settings 3gpp,1", {"apn": "internet.test", "pdp-type": "ipv4"})
    return fake
