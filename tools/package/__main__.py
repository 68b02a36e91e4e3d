"""`python -m tools.package`: the packages, and how large they are."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from boards.schema import BoardError
from edgeagent.engine.fast.build import BuildError
from edgeagent.status import table
from edgeagent.version import VERSION
from tools.package import contents
from tools.package.nfpm import PackageError, package
from tools.package.targets import FORMATS, abis, chosen, library

WHAT = (*FORMATS, "zipapp", "all")
BUDGET_BYTES = 1 << 20  # of a device's flash, without Python
_EPILOG = """\
examples:
  python -m tools.package deb --arch arm64 --arch armhf
  python -m tools.package ipk --arch mipsel_24kc --board glinet-gl-mt300n-v2
  python -m tools.package zipapp --arch aarch64-glibc --out /tmp/made
  python -m tools.package all --json

The same sources, Zig and SOURCE_DATE_EPOCH make the same bytes. Zig takes a minute for the first
build for a machine.
"""


class Made(NamedTuple):
    """`bytes` of the file; `library_bytes` of the C library in it, `unpacked_bytes` what the device's flash holds."""

    path: str
    form: str
    arch: str
    bytes: int
    unpacked_bytes: int
    library_bytes: int


def make(what: str, names: list[str], out: Path, board: str | None) -> list[Made]:
    """Raises ValueError, BuildError, PackageError, BoardError."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    bare = len(contents.zipapp(None))
    for form in FORMATS if what == "all" else (what,) if what in FORMATS else ():
        for target in chosen(names, form):
            built = library(target.abi)
            path = package(target, form, built, out, board)
            size = built.stat().st_size
            made.append(Made(str(path), form, target.name, path.stat().st_size, bare + size, size))
    if what in ("all", "zipapp"):
        wanted = {target.abi for form in FORMATS for target in chosen(names, form)}
        for abi in (abi for abi in abis() if abi in wanted):
            built = library(abi)
            path = out / f"edgeagent-{VERSION}-{abi}.pyz"
            path.write_bytes(contents.zipapp(built))
            path.chmod(0o755)
            size = path.stat().st_size
            made.append(Made(str(path), "zipapp", abi, size, size, built.stat().st_size))
    return made


def show(made: Sequence[Made]) -> str:
    rows: list[tuple[str, ...]] = [("FILE", "FOR", "BYTES", "ON FLASH", "C LIBRARY", "OF 1 MIB")]
    rows += [
        (
            Path(each.path).name,
            each.arch,
            f"{each.bytes:,}",
            f"{each.unpacked_bytes:,}",
            f"{each.library_bytes:,}",
            f"{100 * each.unpacked_bytes / BUDGET_BYTES:.0f} %",
        )
        for each in made
    ]
    return table(rows, right=range(2, 6))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.package",
        description="Build packages of the lean agent: .deb for Debian, .ipk and .apk for OpenWrt, and one zipapp.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=WHAT, help="which kind, or all")
    parser.add_argument(
        "--arch",
        action="append",
        default=[],
        help="architecture of the package manager, or ABI as in aarch64-musl (all)",
    )
    parser.add_argument("--out", type=Path, default=contents.ROOT / "dist" / "packages", help="folder (dist/packages)")
    parser.add_argument(
        "--board", metavar="ID", help="put that board's slice into packages, as /etc/edgeagent/board.json"
    )
    parser.add_argument("--json", action="store_true", help="data instead of a table")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("ziglang") is None:
        print("package: no Zig. Install it: pip install 'edgemesh[tools]'", file=sys.stderr)
        return 1
    try:
        made = make(options.what, options.arch, options.out, options.board)
    except ValueError as error:
        print(f"package: {error}", file=sys.stderr)
        return 2
    except (BuildError, PackageError, BoardError, OSError) as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    print(json.dumps([each._asdict() for each in made]) if options.json else show(made))
    if large := [each.path for each in made if each.unpacked_bytes > BUDGET_BYTES]:
        print(f"package: larger than {BUDGET_BYTES} bytes on flash: {', '.join(large)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
