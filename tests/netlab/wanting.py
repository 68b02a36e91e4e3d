"""A hub whose maps say what a file tells, `<state>/wanted.json`: {device name: {"up": {…}, "se": {…}}}, and the root of updates.

It stands where a rollout would, so that the device's side is tried with nothing but a hub.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import hub.core.on_routes as on_routes
from hub.cli import main
from hub.core.model import Device
from hub.core.store import Tx

STATE = Path(os.environ.get("EDGEHUB_STATE", "/var/lib/edgehub"))
told = on_routes.for_map


def wanting(tx: Tx, device: Device) -> dict[str, Any]:
    fields = told(tx, device)
    root = STATE / "updates/metadata/1.root.json"
    if root.exists():
        fields["ur"] = [1, sha256(root.read_bytes()).digest()]
    wanted = STATE / "wanted.json"
    if wanted.exists():
        fields |= json.loads(wanted.read_text()).get(device.name, {})
    return fields


if __name__ == "__main__":
    on_routes.for_map = wanting
    sys.exit(main())
