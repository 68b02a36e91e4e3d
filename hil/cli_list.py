"""`edgehil list` and `edgehil doctor`: what there is, what rig files are made of, what is missing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hil import cli_suites
from hil.errors import HilError
from hil.machines import MACHINES

OK, FAILED, USAGE = range(3)
HERE = Path(__file__).parent
SUITES = HERE / "suites"


def add(verbs: Any) -> None:
    """The commands of this file."""
    listing = verb(
        verbs, "list", _list, "machines, suites and rigs; with --strategy or --keys what rig files are made of"
    )
    listing.add_argument(
        "--strategy",
        metavar="NAME",
        nargs="?",
        const="all",
        help="its tables: board, board-without-loader, guest, or a rig's",
    )
    listing.add_argument("--keys", action="store_true", help="what may stand in a rig file")
    doctor = verb(verbs, "doctor", _doctor, "what is missing on this host, or for a rig, and how to mend it")
    doctor.add_argument("--rig", metavar="RIG", help="also for this rig: a name, or a file")


def verb(verbs: Any, name: str, run: Any, text: str, as_json: bool = True) -> argparse.ArgumentParser:
    """A command that looks for rig files."""
    made: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
    made.set_defaults(run=run)
    made.add_argument(
        "--rigs", metavar="DIR", type=Path, help="where rig files are (EDGEHIL_RIGS; rigs, ~/.config/edgehil/rigs)"
    )
    if as_json:
        made.add_argument("--json", action="store_true", help="data instead of text")
    return made


def folders(options: argparse.Namespace) -> list[Path]:
    """Where rig files are looked for by name."""
    given = (
        [options.rigs]
        if options.rigs
        else [Path(each) for each in os.environ.get("EDGEHIL_RIGS", "").split(":") if each]
    )
    return [*given, Path("rigs"), Path("~/.config/edgehil/rigs").expanduser(), HERE / "rigs"]


def suites() -> list[str]:
    """Names of those for rigs."""
    return sorted(path.stem for path in SUITES.glob("*.py") if path.stem != "__init__")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _list(options: argparse.Namespace) -> int:
    from hil.rigs import reserve, rigfile, schema

    if options.strategy:
        return _strategies(options)
    if options.keys:
        rows = schema.table()
        told = [dict(zip(("kind", "key", "default", "meaning"), row, strict=True)) for row in rows]
        shown = [(kind if not key else f"  {key}", default, text) for kind, key, default, text in rows]
        print(json.dumps(told, indent=1) if options.json else _table(shown))
        return OK
    machines: list[dict[str, Any]] = [
        {
            "machine": each.name,
            "board": each.board,
            "release": each.release,
            "kernel_release": each.kernel_release or each.release,
            "debian": each.debian,
            "options": " ".join(each.options),
            "program": shutil.which(each.program),
            "package": each.needs,
        }
        for each in MACHINES
    ]
    rigs: list[dict[str, Any]] = []
    for folder in folders(options):
        for path in sorted(folder.glob("*.yaml")):
            row: dict[str, Any] = {"rig": path.stem, "file": str(path), "targets": [], "error": ""}
            try:
                row["targets"] = list(rigfile.load(path).targets)
                row["reserved"] = reserve.Lock(path, reserve.RESERVED).holder()
            except HilError as error:
                row["error"] = str(error)
            rigs.append(row)
    if options.json:
        print(json.dumps({"machines": machines, "rigs": rigs, "suites": suites()}, indent=1))
        return OK
    print(
        _table(
            [
                (
                    each["machine"],
                    each["board"],
                    each["debian"],
                    each["options"],
                    each["program"] or f"not here: package {each['package']}",
                )
                for each in machines
            ]
        )
    )
    print(f"\nsuites for rigs: {', '.join(suites())}; for guests without a rig file: {', '.join(cli_suites.SUITES)}\n")
    print(
        _table(
            [
                (row["rig"], row["error"] or ", ".join(row["targets"]), row["file"], reserve.told(row.get("reserved")))
                for row in rigs
            ]
        )
    )
    return OK


def _strategies(options: argparse.Namespace) -> int:
    from hil.rigs import strategy

    tables = (
        _known_tables()
        if options.strategy in ("all", "board", "board-without-loader", "guest")
        else _tables_of_rig(options)
    )
    if options.strategy in tables:
        tables = {options.strategy: tables[options.strategy]}
    head = ("from", "to", "does", "expects", "within")
    if options.json:
        told = {
            name: [dict(zip(head, row, strict=True)) for row in strategy.text(rows)] for name, rows in tables.items()
        }
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return OK
    print(
        "\n\n".join(
            f"{name}\n{_table([tuple(word.upper() for word in head), *strategy.text(rows)])}"
            for name, rows in tables.items()
        )
    )
    return OK


def _known_tables() -> dict[str, list[Any]]:
    """With U-Boot's defaults, and a login as Debian has it."""
    from hil.rigs import schema, strategy

    def nothing(_: float) -> None:
        raise AssertionError("a table that is only shown")

    steps = strategy.Steps(nothing, nothing, nothing, nothing, nothing)
    loader = {name: key.default for name, key in schema.KINDS["UBootDriver"].keys.items()}
    shell = {"login_prompt": " login: ", "prompt": "# ", "username": "root", "login_timeout": 60}
    agent_s = float(str(schema.KINDS["BoardStrategy"].keys["agent_timeout"].default))
    return {
        "board": strategy.rows(steps, loader=loader, shell=shell, agent_s=agent_s),
        "board-without-loader": strategy.rows(steps, loader=None, shell=shell, agent_s=agent_s),
        "guest": strategy.rows(steps, loader=None, shell=None, agent_s=agent_s, guest=True),
    }


def _tables_of_rig(options: argparse.Namespace) -> dict[str, list[Any]]:
    from hil.rigs import rigfile
    from hil.rigs.openrig import OpenRig

    file = rigfile.load(rigfile.find(options.strategy, folders(options)))
    with OpenRig(file, Path(), options.store, surroundings=False) as rig:
        return {name: device.strategy.table for name, device in rig.devices.items()}


def _doctor(options: argparse.Namespace) -> int:
    from hil.rigs import doctor, rigfile

    checks = [] if options.rig else list(doctor.of_host())
    if options.rig:
        path = rigfile.find(options.rig, folders(options))
        with tempfile.TemporaryDirectory(prefix="edgehil-") as name:
            checks += doctor.of_rig(rigfile.load(path), Path(name), options.store)
    if options.json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
    else:
        for check in checks:
            print(f"{'ok' if check.ok else 'NO':<3} {check.about:<14} {check.said}")
            if not check.ok:
                print(f"    {'':<14} → {check.mend}")
    return OK if all(check.ok for check in checks) else FAILED
