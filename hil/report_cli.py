"""`edgehil report`: a run's report shown, drawn anew, and told to a hub."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from hil import report_file, report_html, report_junit, report_upload
from hil.errors import UploadFailed
from hil.report_text import clean

OK, FAILED = 0, 1
RIG_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EPILOG = """\
examples:
  edgehil report show build/hil/smoke
  edgehil report html build/hil/smoke > smoke.html
  edgehil report upload build/hil/smoke --hub https://hub.example.org --rig bench-1 --token-file rig.token

The token is one of `edgehub users token LOGIN --scope rigs:write`; without --token-file it is read from EDGEHUB_TOKEN.
exit status: 0 ok, 1 failed, 2 usage; `show` ends with 1 for a run that failed
"""


def add(verbs: Any) -> None:
    """The command `report` to the commands of `edgehil`."""
    top = verbs.add_parser(
        "report",
        help="show a run's report, or tell a hub of it",
        description="Reports of runs: shown, drawn anew, told to a hub.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = top.add_subparsers(title="commands", metavar="ACTION", required=True)
    show = _action(actions, "show", "Steps and figures as a table; the exit status is 1 for a run that failed.")
    show.add_argument("--json", action="store_true", help="as report.json has it")
    show.set_defaults(run=_show)
    page = _action(actions, "html", "The page, to standard output; its files are named and not linked.")
    page.set_defaults(run=_html)
    junit = _action(actions, "junit", "JUnit XML, to standard output.")
    junit.set_defaults(run=_junit)
    upload = _action(actions, "upload", "Tell a hub of a run, with its page; told again, it is the same run.")
    upload.add_argument("--hub", metavar="URL", required=True, help="address of the hub's dashboard")
    upload.add_argument("--rig", metavar="NAME", help="what the rig is called there; the report's own without")
    upload.add_argument("--token-file", metavar="FILE", type=Path, help="with the API token (else EDGEHUB_TOKEN)")
    upload.add_argument("--json", action="store_true", help="what became of it, as JSON")
    upload.set_defaults(run=_upload)
    for each in (show, page, junit, upload):
        each.add_argument("folder", metavar="FOLDER", type=Path, help="of a run, as in build/hil/smoke")


def _action(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = actions.add_parser(
        name,
        help=text.rstrip("."),
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return made


def table(told: dict[str, Any]) -> str:
    """Steps, then figures, for a terminal."""
    verdict = {"retried": f"passed with {told['retries']} retries", "failed": "FAILED"}.get(told["verdict"], "passed")
    lines = [f"{clean(told['suite'])}: {verdict}, {told['seconds']:.0f} s, began {clean(told['began'])}", ""]
    lines.append(f"{'STEP':<34} {'OUTCOME':<8} {'AT':>9} {'TOOK':>9} {'LOAD':>6}")
    for step in told["steps"]:
        times = f"{step['at_s']:>7.1f} s {step['seconds']:>7.1f} s {step['load']:>6.1f}"
        lines.append(f"{clean(step['name']):<34} {clean(step['outcome']):<8} {times}")
        if step["outcome"] != "passed":
            lines += [f"    {line}" for line in clean(f"{step.get('error', '')}: {step['said']}", 4_000).splitlines()]
    lines += ["", f"{'FIGURE':<42} {'GUEST':<12} {'VALUE':>10} {'UNIT':<8} {'LIMIT':<8} VERDICT"]
    for row in told["figures"]:
        limit = f"{'≥' if row['least'] else '≤'} {row['limit']:g}" if "limit" in row else ""
        verdict = "" if not limit else "kept" if row["ok"] else "BEYOND IT"
        named = f"{clean(row['what']):<42} {clean(row['guest']):<12}"
        lines.append(f"{named} {row['value']:>10g} {clean(row['unit']):<8} {limit:<8} {verdict}".rstrip())
    return "\n".join(lines)


def _show(options: argparse.Namespace) -> int:
    told = report_file.read(options.folder)
    print(json.dumps(told, indent=1, ensure_ascii=False) if options.json else table(told))
    return FAILED if told["verdict"] == "failed" else OK


def _html(options: argparse.Namespace) -> int:
    print(report_html.render(report_file.read(options.folder), options.folder, links=False))
    return OK


def _junit(options: argparse.Namespace) -> int:
    print(report_junit.render(report_file.read(options.folder)).decode(), end="")
    return OK


def _upload(options: argparse.Namespace) -> int:
    told = report_file.read(options.folder)
    rig = options.rig or told["rig"]
    if not RIG_NAME.fullmatch(rig):
        raise UploadFailed(f"--rig {rig[:64]!r}: a name of lower-case letters, digits and - expected, as in bench-1")
    token = report_upload.token_of(options.token_file)
    done = report_upload.upload(told, options.folder, options.hub, rig, token)
    if options.json:
        print(json.dumps(done._asdict()))
    else:
        print(f"run {done.number} of {rig}{'' if done.new else ' (the hub had it already)'}: {done.url}")
        if done.note:
            print(done.note)
    return OK
