"""From a source image and a payload to a new image, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from boards.schema import Board, System
from flash import formats
from flash.agent import Agent
from flash.errors import FlashError
from flash.ext4 import Entry
from flash.image import Image
from flash.payload import Payload, check_settings
from flash.source import Progress, kind_of, make_rootfs, no_progress, part_file, unpack

DIRECT = "direct"


class Order:
    """What all images of one run have in common. `init` empty: what the board's systems say, as found in the image."""

    __slots__ = ("agent", "board", "init", "library", "network_config", "rootfs_bytes", "settings", "source", "system")

    def __init__(
        self,
        *,
        source: Path,
        board: Board,
        agent: Agent | None,
        init: str = "",
        system: str = "",
        settings: Mapping[str, str] | None = None,
        library: bytes = b"",
        network_config: bytes = b"",
        rootfs_bytes: int = 0,
    ) -> None:
        self.source = source
        self.board = board
        self.agent = agent
        self.init = init
        self.system = system
        self.settings = dict(settings or {})
        self.library = library
        self.network_config = network_config
        self.rootfs_bytes = rootfs_bytes
        check_settings(self.settings)


class Made:
    """`written`: paths in the image; `size` bytes."""

    __slots__ = ("init", "size", "system", "written")

    def __init__(self, init: str, system: str, size: int, written: list[str]) -> None:
        self.init = init
        self.system = system
        self.size = size
        self.written = written


def make_image(
    order: Order,
    target: Path,
    token: str,
    *,
    hostname: str = "",
    settings: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Made:
    """Raises FlashError; `target` is then as it was before."""
    kind = kind_of(order.source)
    with part_file(target, force) as file:
        if kind in ("dir", "tar"):
            size = make_rootfs(order.source, kind, file, order.rootfs_bytes)
        else:
            size = unpack(order.source, kind, file, progress)
        image = Image(file)
        chosen, system = choose(order, image)
        payload = payload_of(order, system, token, hostname, settings, chosen.name)
        written = formats.apply(chosen, image, payload)
    return Made(chosen.name, system.name, size, written)


def payload_of(
    order: Order, system: System, token: str, hostname: str, settings: Mapping[str, str] | None, init: str
) -> Payload:
    if order.network_config and init != "cloud-init-nocloud":
        raise FlashError(f"--network-config: is read by cloud-init only, and this image is set up by {init}.")
    return Payload(
        board=order.board,
        system=system,
        agent=order.agent,
        token=token,
        hostname=hostname,
        settings={**order.settings, **(settings or {})},
        library=order.library,
        network_config=order.network_config,
    )


def choose(order: Order, image: Image) -> tuple[formats.Format, System]:
    """The format that the board and the image agree on. FlashError when there is none, or more than one."""
    systems = systems_of(order)
    if order.init:
        allowed = {system.init for system in systems} | {DIRECT}
        chosen = formats.get(order.init)
        if chosen.name not in allowed:
            raise FlashError(f"--init {order.init}: {order.board.id} takes {', '.join(sorted(allowed - {'none'}))}.")
        fitting = [system for system in systems if system.init == order.init] or systems
        return chosen, _matching(order, fitting, image)
    found: dict[str, list[System]] = {}
    why = {}
    for system in systems:
        chosen = formats.get(DIRECT if system.init == "none" else system.init)
        if missing := chosen.missing(image):
            why[chosen.name] = missing
        else:
            found.setdefault(chosen.name, []).append(system)
    if len(found) == 1:
        name, fitting = next(iter(found.items()))
        return formats.get(name), _matching(order, fitting, image)
    if found:
        raise FlashError(
            f"the image can be set up in more than one way: say which: --init {' or '.join(sorted(found))}."
        )
    told = "; ".join(f"{name}: {text}" for name, text in why.items())
    hint = (
        ""
        if formats.get(DIRECT).missing(image)
        else " What is written straight into it needs no support: --init direct."
    )
    raise FlashError(f"the image does not understand any init format of {order.board.id}: {told}.{hint}")


def systems_of(order: Order) -> list[System]:
    """Of the board, those that --system names a part of."""
    wanted = order.system.lower()
    found = [system for system in order.board.systems if wanted in system.name.lower()]
    if not found:
        names = "; ".join(system.name for system in order.board.systems)
        raise FlashError(f"--system {order.system!r}: {order.board.id} has none of that name. It has: {names}.")
    return found


def write_overlay(order: Order, target: Path, token: str, hostname: str) -> list[str]:
    """A directory for the image builder of OpenWrt (FILES=…), whose images have a root that cannot be written to."""
    system = next((system for system in systems_of(order) if system.init == "uci-defaults"), None)
    if system is None:
        raise FlashError(f"--overlay: is for OpenWrt's image builder, and {order.board.id} has no OpenWrt.")
    if order.agent is None:
        raise FlashError("--overlay: needs the agent: --agent FILE.")
    entries = formats.UciDefaults().files(payload_of(order, system, token, hostname, None, "uci-defaults"))
    if target.exists():
        raise FlashError(f"{target}: is there already. Name another directory.")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(mode=0o700)
        for path, entry in sorted(entries.items()):
            _put(part / path.lstrip("/"), entry)
        part.rename(target)
    except OSError as error:
        raise FlashError(f"{part}: {error.strerror}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(entries)


def _put(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=entry.mode)
    path.write_bytes(entry.data)


def _matching(order: Order, systems: list[System], image: Image) -> System:
    """The one of equal init format whose ABI is the image's; the first one's reason when none is."""
    refusal: FlashError | None = None
    for system in systems:
        try:
            image.check_fits(order.board, system)
        except FlashError as error:
            refusal = refusal or error
            continue
        agent = order.agent
        if agent is None or agent.kind in ("zipapp", system.package) or system is systems[-1]:
            return system
    assert refusal is not None
    raise refusal
