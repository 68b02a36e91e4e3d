"""`edgeflash write`, `verify` and `bmap`: images onto cards."""

from __future__ import annotations

import argparse
import sys
from typing import Any

_WRITE = """\
examples:
  edgeflash write cam.img /dev/sdb
  edgeflash write cam.img.xz /dev/sdb /dev/sdc /dev/sdd --yes
  edgeflash write cam.img /dev/sdb --yes --json | jq -c .

The first block is written last, after everything else was read back and compared: a card that is pulled starts nothing.
A block map beside the image (cam.img.bmap) is used: then only what matters is written. docs/flashing.md says more.
"""
_VERIFY = """\
examples:
  edgeflash verify cam.img /dev/sdb
  edgeflash verify cam.img.xz /dev/sdb --json
"""
_BMAP = """\
examples:
  edgeflash bmap create cam.img                  writes cam.img.bmap
  edgeflash bmap copy cam.img.xz /dev/sdb        as write, but not without a block map
"""


def add(verbs: Any) -> None:
    text = "write an image to one or more cards, and verify each by reading it back"
    write = _verb(verbs, "write", _write, text, _WRITE)
    write.add_argument("devices", metavar="DEVICE", nargs="+", help="whole cards: /dev/sdb, /dev/mmcblk0")
    _targets(write)
    write.add_argument("--no-bmap", action="store_true", help="write everything, also where a block map lies beside")
    verify = _verb(verbs, "verify", _verify, "whether a card holds an image", _VERIFY)
    verify.add_argument("devices", metavar="DEVICE", nargs=1, help="the card")
    verify.add_argument("--bmap", metavar="FILE", help="block map of the image (IMAGE.bmap where it is there)")
    verify.add_argument("--no-bmap", action="store_true", help="compare everything, also where a block map lies beside")
    text = "block maps: which blocks of an image matter (bmap 2.0, as bmaptool has them)"
    bmap = verbs.add_parser("bmap", help=text, description=text, allow_abbrev=False)
    actions = bmap.add_subparsers(title="actions", metavar="ACTION", required=True)
    text = "make the block map of an image with holes: what is a hole need not be written"
    create = _verb(actions, "create", _bmap_create, text, _BMAP)
    create.add_argument("-o", "--out", metavar="FILE", help="the block map (IMAGE.bmap)")
    create.add_argument("--force", action="store_true", help="replace one that is there")
    copy = _verb(actions, "copy", _write, "write an image by its block map, and verify it", _BMAP)
    copy.add_argument("devices", metavar="DEVICE", nargs="+", help="whole cards: /dev/sdb, /dev/mmcblk0")
    _targets(copy)
    copy.set_defaults(no_bmap=False, need_bmap=True)


def _verb(verbs: Any, name: str, run: Any, text: str, epilog: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.set_defaults(run=run, need_bmap=False)
    made.add_argument("image", metavar="IMAGE", help=".img, .img.xz or .img.gz")
    made.add_argument("--json", action="store_true", help="progress and result as JSON, one object a line")
    return made


def _targets(made: argparse.ArgumentParser) -> None:
    made.add_argument("--yes", action="store_true", help="do not ask: what is on the cards is lost")
    made.add_argument("--fixed", action="store_true", help="also disks that are not removable, and files")
    made.add_argument("--bmap", metavar="FILE", help="block map of the image (IMAGE.bmap where it is there)")


def _write(options: argparse.Namespace) -> int:
    from pathlib import Path

    from flash.devices import checked
    from flash.errors import FlashError
    from flash.telling import Telling
    from flash.writer import write

    telling = Telling(options.json)
    source = Path(options.image)
    bmap = _bmap(options, source)
    if options.need_bmap and bmap is None:
        raise FlashError(f"{source}: there is no block map beside it. Make one: edgeflash bmap create {source}")
    kind, size = _look_over(source, bmap, telling)
    devices = checked(options.devices, size, options.fixed)
    for device in devices:
        telling.event("target", device=device.path, model=device.model, size=device.size)
        telling.say(f"{device.path}: {device.size / 1e9:.1f} GB {device.model}".rstrip())
    if not options.yes and not _agreed(len(devices)):
        telling.say("edgeflash: nothing was written.")
        return 1
    cards = write(source, kind, size, bmap, devices, telling.progress)
    for card in cards:
        telling.event(
            "card",
            device=card.device.path,
            ok=not card.error,
            error=card.error,
            size=size,
            written_s=round(card.written_s, 3),
            verified_s=round(card.verified_s, 3),
        )
        speed = f"written in {card.written_s:.1f} s, verified in {card.verified_s:.1f} s"
        telling.say(f"edgeflash: {card.error}" if card.error else f"{card.device.path}: {size} bytes {speed}")
    return 1 if any(card.error for card in cards) else 0


def _verify(options: argparse.Namespace) -> int:
    from pathlib import Path

    from flash.devices import look
    from flash.errors import FlashError
    from flash.telling import Telling
    from flash.writer import verify

    telling = Telling(options.json)
    source = Path(options.image)
    bmap = _bmap(options, source)
    kind, size = _look_over(source, bmap, telling)
    device = look(options.devices[0])
    if device.size < size:
        raise FlashError(f"{device.path}: has {device.size} bytes, and the image {size}: this is another image's card.")
    verify(source, kind, size, bmap, device, telling.progress)
    telling.event("verified", device=device.path, size=size)
    telling.say(f"{device.path}: holds {source}, {size} bytes")
    return 0


def _bmap_create(options: argparse.Namespace) -> int:
    from pathlib import Path

    from flash import bmap
    from flash.errors import FlashError
    from flash.source import kind_of, part_file
    from flash.telling import Telling

    telling = Telling(options.json)
    source = Path(options.image)
    if kind_of(source) != "raw":
        raise FlashError(f"{source}: a block map is made of the image before it is compressed: only a file has holes.")
    made = bmap.create(source)
    out = Path(options.out or f"{source}.bmap")
    with part_file(out, options.force, mode=0o644) as file:
        file.write(made.encode())
    telling.event("done", out=str(out), size=made.size, blocks=-(-made.size // made.block), mapped=made.mapped)
    telling.say(f"{out}: {made.mapped} of {-(-made.size // made.block)} blocks matter")
    return 0


def _bmap(options: argparse.Namespace, source: Any) -> Any:
    from pathlib import Path

    from flash import bmap

    path = Path(options.bmap) if options.bmap else None if options.no_bmap else bmap.beside(source)
    return bmap.load(path) if path is not None else None


def _look_over(source: Any, bmap: Any, telling: Any) -> Any:
    from flash.whole import look_over

    return look_over(source, bmap, lambda done, total: telling.progress(str(source), "checking", done, total))


def _agreed(count: int) -> bool:
    from flash.errors import FlashError

    if not sys.stdin.isatty():
        raise FlashError("nobody is here to ask whether the cards may be written. If it is meant, give --yes.")
    sys.stderr.write(f"What is on {'this card' if count == 1 else f'these {count} cards'} is lost. Type yes to go on: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"
