"""`edgeagent crypto`: how fast each AEAD is on this device, and which one the agent uses for what."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeagent.engine import bakeoff
from edgeagent.engine.fast import library
from edgeagent.io.keystore import Keystore, StateError, StateFile
from edgeagent.proto.errors import EdgeError
from edgeagent.status import table

if TYPE_CHECKING:
    from edgeagent.config import Settings


class AeadError(EdgeError):
    """Nothing to show; the text says why and what to do."""


def crypto(settings: Settings, *, as_json: bool, anew: bool) -> None:
    """Print the table, measured now where it has to be, and store it where that may be done. Raises AeadError."""
    path = library.path()
    if path is None:
        raise AeadError(f"no C library: {library.why_missing()}. Without it PyNaCl seals everything: edgeagent doctor")
    if (wrong := library.fault(path)) is not None:
        raise AeadError(f"{path}: {wrong}")
    keystore = Keystore(settings.state_dir)
    stored = None
    with suppress(StateError):  # not ours to read, or damaged: it is measured again
        stored = keystore.load(StateFile.AEAD)
    try:
        result, body = bakeoff.choose(path, stored, anew=anew)
        if not result.rows:  # EDGEAGENT_AEAD needed no table, people do
            result.rows, body = bakeoff.measure(path), None
    except bakeoff.AeadUnavailable as error:
        raise AeadError(str(error)) from None
    if body is not None:
        _store(keystore, body)
    print(json.dumps(as_data(result)) if as_json else show(result))


def _store(keystore: Keystore, body: bytes) -> None:
    """Only into a state directory that is there, and that no agent is running on."""
    if not os.path.isdir(keystore.directory):
        return
    try:
        keystore.open()
        keystore.save(StateFile.AEAD, body)
    except (StateError, OSError):
        return
    finally:
        keystore.close()


def as_data(result: bakeoff.Result) -> dict[str, Any]:
    """For --json: nanoseconds a message, and Mbit/s of its text."""
    return {
        "small": result.small,
        "large": result.large,
        "why": result.why,
        "providers": [
            {
                "name": row.name,
                "version": row.version or None,
                "why_not": row.why or None,
                "measured": [
                    {"bytes": size, "batch": batch, "ns": ps / 1000, "mbit_s": _mbit_s(size, ps)}
                    for (size, batch), ps in row.ps.items()
                ],
            }
            for row in result.rows
        ],
    }


def show(result: bakeoff.Result) -> str:
    parts = [f"used: {result.small} for small messages, {result.large} for large ones ({result.why})"]
    for size in bakeoff.SIZES:
        heads = [head for batch in bakeoff.BATCHES for head in ("ALONE ns" if batch == 1 else f"×{batch} ns", "Mbit/s")]
        rows: list[tuple[str, ...]] = [(f"{size:,} B", *heads, "VERSION")]
        present = sorted((row for row in result.rows if row.ps), key=lambda row: row.ps[size, bakeoff.BATCHES[-1]])
        for row in present:
            cells = [
                f"{_cell(size, row.ps[size, batch], unit)}" for batch in bakeoff.BATCHES for unit in ("ns", "Mbit/s")
            ]
            rows.append((row.name, *cells, row.version))
        parts.append(table(rows))
    if absent := [f"{row.name}: {row.why}" for row in result.rows if not row.ps]:
        parts.append("not there:\n" + "\n".join(f"  {line}" for line in absent))
    return "\n\n".join(parts)


def _cell(size: int, ps: int, unit: str) -> str:
    return f"{ps / 1000:,.0f}" if unit == "ns" else f"{_mbit_s(size, ps):,.0f}"


def _mbit_s(size: int, ps: int) -> float:
    return round(size * 8e6 / max(ps, 1), 1)
