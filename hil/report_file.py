"""Reports that were written before, read again: to be shown, drawn anew, or told to a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hil.errors import BadReport
from hil.report import VERDICTS, VERSION

BYTES_MAX = 16 << 20
_NUMBER = (int, float)
_ROWS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "steps": {"name": str, "outcome": str, "said": str, "at_s": _NUMBER, "seconds": _NUMBER, "load": _NUMBER},
    "figures": {"what": str, "guest": str, "unit": str, "value": _NUMBER, "at_s": _NUMBER, "ok": bool},
    "series": {"what": str, "guest": str, "unit": str, "points": list},
    "guests": {"name": str, "about": dict, "events": list, "transcript": str},
    "kept": {"name": str, "path": str, "bytes": int},
}
_EVENT: dict[str, type | tuple[type, ...]] = {"at_s": _NUMBER, "what": str, "kind": str}
_FORM: dict[str, type | tuple[type, ...]] = {
    "seconds": _NUMBER,
    "retries": int,
    **dict.fromkeys(("id", "suite", "rig", "verdict", "began"), str),
    **dict.fromkeys(_ROWS, list),
    **dict.fromkeys(("host", "versions"), dict),
}


def read(folder: Path) -> dict[str, Any]:
    """What `Report.told` gave. `folder`: of a run, or its report.json. Raises BadReport."""
    path = folder / "report.json" if folder.is_dir() else folder
    try:
        if path.stat().st_size > BYTES_MAX:
            raise BadReport(f"{path}: more than {BYTES_MAX} bytes: no report is so long")
        told = json.loads(path.read_bytes())
    except OSError as error:
        raise BadReport(f"{path}: {error.strerror}. Give the folder of a run, as in build/hil/smoke") from None
    except (ValueError, RecursionError) as error:
        raise BadReport(f"{path}: no JSON: {error}. A run that was killed may have left it half written") from None
    if not isinstance(told, dict) or told.get("version") != VERSION:
        found = told.get("version") if isinstance(told, dict) else None
        raise BadReport(f"{path}: a report of version {found}, this program knows {VERSION}. Run the suite again")
    if not _fits(told, _FORM) or told["verdict"] not in VERDICTS:
        raise BadReport(f"{path}: not of the form that this program writes. Run the suite again")
    for name, form in _ROWS.items():
        if not all(_fits(row, form) for row in told[name]):
            raise BadReport(f"{path}: {name} are not of the form that this program writes. Run the suite again")
    if not all(_fits(event, _EVENT) for guest in told["guests"] for event in guest["events"]):
        raise BadReport(f"{path}: events are not of the form that this program writes. Run the suite again")
    return told


def _fits(row: object, form: dict[str, type | tuple[type, ...]]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in form.items())
