"""`edgeflash batch`: many devices from a table."""

from __future__ import annotations

import argparse
from typing import Any

from flash.cli_image import add_common, order_of

_EPILOG = """\
examples:
  edgeflash batch units.csv --image deb.img.xz --board debian-arm64 --agent edgeagent.pyz --tokens t.json --out images
  edgeflash batch units.csv --image raspios.img.xz --agent edgeagent.deb --hub https://hub.example.org \\
      --api-token-file api.token --devices /dev/sdb /dev/sdc

units.csv: name,board,tags,token-file and any setting of the agent, as in
  name,board,tags,memory-profile
  cam-1,rpi-zero-2-w,tag:camera,small
  gate-1,rpi-4b,tag:gate tag:hall,

Tokens: a column token-file; --tokens with as many as there are units; or from the hub, one for each unit as it is made
(API token of scope tokens:write, see docs/api.md). A run that was stopped goes on where it was: give the same command.
The report has no secrets. docs/flashing.md says more.
"""


def add(verbs: Any) -> None:
    text = "one image or card for each line of a CSV file, every one with its own token; goes on where it was stopped"
    made = verbs.add_parser(
        "batch",
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.set_defaults(run=_run)
    made.add_argument("units", metavar="CSV", help="the units: first line names the columns")
    made.add_argument(
        "--image", metavar="IMAGE", dest="source", required=True, help=".img, .img.xz, .img.gz, directory or tar"
    )
    made.add_argument("--out", metavar="DIR", help="images go here, as NAME.img, and report.json")
    made.add_argument("--devices", metavar="DEVICE", nargs="+", help="instead: the next units go onto these cards")
    made.add_argument("--yes", action="store_true", help="with --devices: do not ask; what is on the cards is lost")
    made.add_argument(
        "--fixed", action="store_true", help="with --devices: also disks that are not removable, and files"
    )
    made.add_argument("--report", metavar="FILE", help="the report (DIR/report.json, or CSV.report.json)")
    made.add_argument("--tokens", metavar="FILE", help="tokens for the units without a token-file; - is standard input")
    made.add_argument("--hub", metavar="URL", help="the hub's dashboard, to make a token for each unit")
    made.add_argument("--hub-ca", metavar="FILE", help="CA certificate of the dashboard, where it is no public one")
    made.add_argument("--api-token-file", metavar="FILE", help="file with the API token for --hub; - is standard input")
    made.add_argument("--expires", metavar="TIME", default="7d", help="how long tokens of --hub work: 24h, 7d, 4w (7d)")
    add_common(made, one_board=False)


def _run(options: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from flash import units as table
    from flash.batch import Batch, Report
    from flash.batch import table as as_table
    from flash.devices import checked
    from flash.errors import FlashError
    from flash.source import kind_of
    from flash.telling import Telling

    if bool(options.out) == bool(options.devices):
        raise FlashError("give --out DIR for images, or --devices for cards.")
    if options.tokens and options.hub:
        raise FlashError("--tokens and --hub: give one of them.")
    telling = Telling(options.json)
    path, source = Path(options.units), Path(options.source)
    kind_of(source)
    units, files = table.read(path, options.board or "")
    orders = {board: order_of(options, board) for board in sorted({unit.board for unit in units})}
    folder = Path(options.out) if options.out else path.parent
    if options.out:
        _make_folder(folder)
    report = Report(Path(options.report) if options.report else _report_path(options, path))
    todo = []
    for unit in units:
        digest = unit.digest(_identity(source))
        out = folder / f"{unit.name}.img" if options.out else None
        if options.force or not report.is_done(unit, digest, out):
            todo.append((unit, digest))
    used = report.claims([unit.name for unit, _ in todo])
    token_for = _tokens(options, path, [unit for unit, _ in todo], files, used, time.time())
    devices = checked(options.devices, 1, options.fixed) if options.devices else []
    if devices and not options.yes:
        raise FlashError("what is on the cards will be lost. If it is meant, give --yes.")
    batch = Batch(orders, report, telling, folder)
    failed = 0
    try:
        if todo:
            batch.unpack(source)
        if devices:
            failed = batch.cards(todo, devices, token_for)
        else:
            failed = sum(not batch.image(unit, folder / f"{unit.name}.img", digest, token_for) for unit, digest in todo)
    finally:
        batch.clean()
    left = max(0, len(todo) - len(devices)) if devices else 0
    telling.event("done", report=str(report.path), made=len(todo) - failed - left, failed=failed, left=left)
    if not options.json:
        print(as_table(report, units))
    if left:
        telling.say(f"{left} units are to do: put in the next cards and give the same command")
    return 1 if failed else 0


def _tokens(options: argparse.Namespace, path: Any, units: Any, files: Any, used: set[str], wall_s: float) -> Any:
    """unit -> its token. All that are there already are checked before the first image is made."""
    from flash import tokens
    from flash.errors import FlashError
    from flash.hubapi import Hub
    from flash.units import give_tokens

    given = {}
    for unit in units:
        if unit.name in files:
            try:
                given[unit.name] = tokens.read_token(str(files[unit.name]))
            except FlashError as error:
                raise FlashError(f"{path}:{unit.line}: {unit.name}: {error}") from None
    without = [unit for unit in units if unit.name not in given]
    if options.tokens and without:
        found = tokens.read_tokens(options.tokens)
        # A run that goes on gets the same file again, and what is in an image already is no other device's
        found = [token for token in found if tokens.decode(token, options.tokens, 0.0).claim not in used]
        if len(found) < len(without):
            raise FlashError(
                f"{options.tokens}: has {len(found)} unused tokens, and {len(without)} units need one. Make more."
            )
        given |= {unit.name: token for unit, token in zip(without, found, strict=False)}
    give_tokens(path, units, given, wall_s)
    hub = None
    if options.hub:
        if not options.api_token_file:
            raise FlashError("--hub: needs --api-token-file, with an API token of the scope tokens:write.")
        hub = Hub(options.hub, tokens.read_file(options.api_token_file).decode("utf-8", "replace"), options.hub_ca)
    elif without and not options.tokens:
        names = ", ".join(unit.name for unit in without[:5])
        raise FlashError(f"{path}: no token for {names}. Give --tokens FILE, --hub URL, or a column token-file.")
    expires_s = _seconds(options.expires)

    def token_for(unit: Any) -> str:
        if not unit.token:
            assert hub is not None
            give_tokens(path, [unit], {unit.name: hub.create_token(unit.tags, expires_s)}, wall_s)
        token: str = unit.token
        return token

    return token_for


def _seconds(text: str) -> int:
    from flash.errors import FlashError

    unit = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}.get(text[-1:], 0)
    if not unit or not text[:-1].isascii() or not text[:-1].isdecimal() or not 0 < int(text[:-1]) <= 10_000:
        raise FlashError(f"--expires {text[:20]!r}: want a number and m, h, d or w, as 7d.")
    return int(text[:-1]) * unit


def _report_path(options: argparse.Namespace, path: Any) -> Any:
    from pathlib import Path

    return Path(options.out) / "report.json" if options.out else path.with_name(f"{path.name}.report.json")


def _make_folder(folder: Any) -> None:
    from flash.errors import FlashError

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FlashError(f"{folder}: {error.strerror}.") from None


def _identity(source: Any) -> str:
    """Of an image, without reading it: a run goes on only with the same."""
    about = source.stat()
    return f"{source.resolve()} {about.st_size} {about.st_mtime_ns}"
