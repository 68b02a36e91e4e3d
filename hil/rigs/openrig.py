"""A rig that is worked with: its devices, and what surrounds them. All of it goes when the rig is left."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from hil.errors import HilError, NotReached
from hil.net.switch import Switch
from hil.programs import until
from hil.rig import Rig
from hil.rigs.device import Device
from hil.rigs.external import call
from hil.rigs.hubs import OwnHub, RemoteHub, RigHub
from hil.rigs.rigfile import RigFile, TargetFile

IMAGE_TIMEOUT_S = 600.0
ONLINE_TIMEOUT_S = 900.0
POLL_S = 1.0


class OpenRig:
    """`with OpenRig(file, out, store) as rig`: `devices` by name, in the file's order.

    `surroundings`: with hub, relay and network, for a suite; without, only what the drivers do. `only`: of the devices,
    these. `out` gets logs.
    """

    def __init__(
        self,
        file: RigFile,
        out: Path,
        store: Path,
        *,
        surroundings: bool = True,
        only: Sequence[str] = (),
        pcap: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.file = file
        self.out = out
        self.devices: dict[str, Device] = {}
        self._store = store
        self._surroundings = surroundings
        self._only = only
        self._pcap = pcap
        self._say = say
        self._stack = ExitStack()
        self._hub: RigHub | None = None

    @property
    def hub(self) -> RigHub:
        if self._hub is None:
            raise HilError(f"{self.file.path}: was opened without its hub")
        return self._hub

    def __enter__(self) -> OpenRig:
        with ExitStack() as stack:
            # Unix sockets want short paths.
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgehil-rig-")))
            stack.callback(self._keep)
            switch = self._surround(stack) if self._surroundings else None
            for name, target in self.file.targets.items():
                if self._only and name not in self._only:
                    continue
                nets = self._plug(stack, switch, target) if switch is not None else ()
                device = Device(
                    self.file, target, folder=self.folder, out=self.out, store=self._store, nets=nets, say=self._say
                )
                stack.callback(device.close)
                self.devices[name] = device
            if unknown := [name for name in self._only if name not in self.devices]:
                known = ", ".join(self.file.targets)
                raise HilError(f"{self.file.path}: no target {unknown[0]!r}; known are {known}")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def image(self, name: str) -> Path:
        """An image for a device, with a join token of its own, as an operator makes one. Raises HilError."""
        device = self.devices[name]
        options = device.target.options
        folder = self.folder / "images"
        folder.mkdir(exist_ok=True)
        made, token = folder / f"{name}.img", folder / f"{name}.token"
        agent: Path | None
        if device.guest is not None:
            source, init = device.guest.built.root, "direct"
            agent = (
                self.file.file(options["agent"])
                if options["agent"]
                else device.guest.package(self.out / "packages" / name)
            )
        else:
            where = f"{self.file.path}: targets.{name}.options"
            if missing := [key for key in ("board", "image") if not options[key]]:
                raise HilError(f"{where}: {' and '.join(missing)} wanted, to make an image for it")
            source, init = self.file.file(options["image"]), options["init"]
            agent = self.file.file(options["agent"]) if options["agent"] else None
        token.touch(mode=0o600)
        token.write_text(self.hub.token() + "\n", encoding="ascii")
        words = ["image", str(source), "-o", str(made), "--force", "--board", device.board, "--hostname", name]
        words += ["--token-file", str(token), *(["--init", init] if init else [])]
        words += ["--agent", str(agent)] if agent is not None else []
        try:
            call("edgeflash", words, IMAGE_TIMEOUT_S)
        finally:
            token.unlink()
        return made

    def flash(self, name: str) -> str:
        """A new image for a device, written to what it starts from; it is off afterwards."""
        image = self.image(name)
        try:
            return self.devices[name].flash(image)
        finally:
            image.unlink()  # a guest's is hundreds of MiB

    def wait_online(self, names: Sequence[str], timeout_s: float = ONLINE_TIMEOUT_S) -> None:
        """Until the hub lists them online. Raises NotReached."""

        def missing() -> list[str]:
            listed = self.hub.devices()
            return [name for name in names if not listed.get(name, {}).get("online")]

        def late() -> NotReached:
            return NotReached(f"not online within {timeout_s:g} s: {', '.join(missing())}")

        until(lambda: not missing(), timeout_s, late, POLL_S)

    def _surround(self, stack: ExitStack) -> Switch | None:
        """Hub and network: edgehil's own, where the file names no hub."""
        options = self.file.options
        if options["hub_url"]:
            self._hub = RemoteHub(options["hub_url"], self.file.file(options["hub_token_file"]))
            return None
        for name, target in self.file.targets.items():
            if "GuestDriver" not in target.drivers and "SwitchPort" not in target.resources:
                raise HilError(
                    f"{self.file.path}:{target.line}: targets.{name}: has no SwitchPort, so it is not in edgehil's own "
                    "network. Name the hub of its network: options: hub_url, hub_token_file"
                )
        rig = stack.enter_context(Rig(self.out, pcap=self._pcap))
        self._say("hub and relay")
        rig.hub.start()
        rig.hub.start_relay()
        self._hub = OwnHub(rig.hub)
        return rig.switch

    def _keep(self) -> None:
        """Logs of guests."""
        for path in self.folder.rglob("*.log"):
            target = self.out / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def _plug(self, stack: ExitStack, switch: Switch, target: TargetFile) -> tuple[str, ...]:
        """A port of the switch for it; what follows -netdev, for a guest."""
        if guest := target.drivers.get("GuestDriver"):
            return (switch.plug(target.name, switch.home(guest.values["nat"])),)
        port = target.resources["SwitchPort"]
        switch.plug(target.name, switch.home(port.values["nat"]))
        path = self.file.file(port.values["path"])
        if path.is_symlink():
            path.unlink()  # of a run that was killed
        try:
            path.symlink_to(switch.path(target.name))
        except OSError as error:
            raise HilError(f"{self.file.path}:{port.line}: targets.{target.name}: {path}: {error.strerror}") from None
        stack.callback(path.unlink, missing_ok=True)
        return ()
