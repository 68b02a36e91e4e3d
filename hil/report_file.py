"""Reports that were written before, read again: to be shown, drawn anew, or told to a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hil.errors import BadReport
from hil.report import VERSION

BYTES_MAX = 16 << 20
_FORM: dict[str, type] = {
    **dict.fromkeys(("id", "suite", "rig", "verdict", "began"), str),
    **dict.fromkeys(("steps", "figures", "series", "guests", "kept"), list),
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
    for name, kind in _FORM.items():
        if not isinstance(told.get(name), kind):
            raise BadReport(f"{path}: no {name} in it, or one of another form. Run the suite again")
    return told
