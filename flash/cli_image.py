"""`edgeflash image`: one image for one device."""

from __future__ import annotations

import argparse
from typing import Any

_EPILOG = """\
examples:
  edgehub token create --tag tag:camera > cam.token
  edgeflash image raspios.img.xz -o cam.img --board rpi-zero-2-w --agent edgeagent.deb --token-file cam.token
  edgehub token create | edgeflash image deb.img -o gate.img --board debian-arm64 --agent edgeagent.pyz --token-file -
  edgeflash image rootfs.tar -o dev.img --board qemu-arm64 --init direct --agent agent.pyz --token-file t --set dns=off
  edgeflash image --overlay files --board glinet-gl-mt300n-v2 --agent edgeagent.ipk --token-file t

What goes in is checked against the board and the image first; docs/flashing.md has the formats.
"""


def add(verbs: Any) -> None:
    text = "put agent, join token and settings into a copy of an image; no root is needed, the source is not changed"
    made = verbs.add_parser(
        "image",
        help=text,
        description=text,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.set_defaults(run=_run)
    made.add_argument(
        "source", metavar="IMAGE", nargs="?", help=".img, .img.xz, .img.gz, or a root file system: directory or tar"
    )
    made.add_argument("-o", "--out", metavar="FILE", help="the new image")
    made.add_argument(
        "--overlay", metavar="DIR", help="instead of an image: a directory for OpenWrt's image builder (FILES=DIR)"
    )
    made.add_argument(
        "--token-file", metavar="FILE", required=True, help="file with the join token; - is standard input"
    )
    made.add_argument("--hostname", metavar="NAME", default="", help="host name of the device")
    add_common(made)


def add_common(made: argparse.ArgumentParser, one_board: bool = True) -> None:
    """What one image and many have in common."""
    made.add_argument("--agent", metavar="FILE", help="the agent: .deb, .ipk, .apk or zipapp (none: the image has it)")
    made.add_argument("--library", metavar="FILE", help="libedgefast.so for the board, with a zipapp")
    made.add_argument(
        "--init",
        metavar="FORMAT",
        default="",
        help="init format, where board and image leave a choice; direct: files straight into an ext4 root",
    )
    made.add_argument("--system", metavar="NAME", default="", help="which of the board's systems: a part of its name")
    made.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="a setting of the agent; repeatable"
    )
    made.add_argument("--network-config", metavar="FILE", help="cloud-init's network configuration, for images with it")
    made.add_argument(
        "--size", metavar="SIZE", default="", help="of the file system made of a directory or tar: 900M, 2G"
    )
    made.add_argument("--force", action="store_true", help="replace what is there under the new name")
    text = "the board: edgeflash boards list, or a file" if one_board else "the board of units whose column is empty"
    made.add_argument("--board", metavar="ID", required=one_board, help=text)
    made.add_argument("--json", action="store_true", help="progress and result as JSON, one object a line")


def order_of(options: argparse.Namespace, board_id: str) -> Any:
    """The flash.make.Order of the options."""
    from pathlib import Path

    from boards import catalogue, schema
    from flash.agent import load
    from flash.make import Order
    from flash.tokens import read_file

    board = schema.load(Path(board_id)) if board_id.endswith(".toml") else catalogue.get(board_id)
    return Order(
        source=Path(options.source or "/"),
        board=board,
        agent=load(Path(options.agent)) if options.agent else None,
        init=options.init,
        system=options.system,
        settings=settings_of(options.set),
        library=read_file(options.library) if options.library else b"",
        network_config=read_file(options.network_config) if options.network_config else b"",
        rootfs_bytes=size_of(options.size),
    )


def settings_of(given: list[str]) -> dict[str, str]:
    from flash.errors import FlashError

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise FlashError(f"--set {text[:60]!r}: want NAME=VALUE.")
        found[name.strip()] = value.strip()
    return found


def size_of(text: str) -> int:
    """Bytes of 900M or 2G; 0 for an empty text."""
    from flash.errors import FlashError

    if not text:
        return 0
    number, unit = text[:-1], text[-1:].upper()
    if unit not in ("M", "G") or not number.isascii() or not number.isdecimal() or not 1 <= int(number) <= 999_999:
        raise FlashError(f"--size {text[:20]!r}: want a number and M or G, as 900M.")
    return int(number) << (20 if unit == "M" else 30)


def _run(options: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from flash import make, tokens
    from flash.errors import FlashError
    from flash.telling import Telling

    if bool(options.overlay) == bool(options.out and options.source):
        raise FlashError("give IMAGE and --out FILE, or --overlay DIR.")
    telling = Telling(options.json)
    order = order_of(options, options.board)
    text = tokens.read_token(options.token_file)
    now = time.time()
    token = tokens.decode(text, options.token_file, now)
    if token.not_after and token.not_after - now < tokens.SHORT_LIFE_S:
        telling.say(
            f"note: the token works for {(token.not_after - now) / 3600:.0f} hours more; the device has to join by then"
        )
    if options.overlay:
        files = make.write_overlay(order, Path(options.overlay), text, options.hostname)
        telling.event("done", out=options.overlay, init="uci-defaults", written=files)
        telling.say(f"{options.overlay}: {len(files)} files. Build: make image … FILES={options.overlay}")
        return 0
    target = Path(options.out)
    made = make.make_image(
        order,
        target,
        text,
        hostname=options.hostname,
        force=options.force,
        progress=lambda done, total: telling.progress(options.out, "unpacking", done, total),
    )
    telling.event(
        "done",
        out=options.out,
        board=order.board.id,
        init=made.init,
        size=made.size,
        claim=token.claim,
        written=made.written,
    )
    telling.say(f"{options.out}: {made.size} bytes, for {order.board.name}, set up by {made.init}, token {token.claim}")
    for line in made.written:
        telling.say(f"  {line}")
    return 0
