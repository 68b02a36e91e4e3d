"""The two ends of a tunnel, both told by `ip` and `wg` what to do: the kernel's in a guest, the agent's on the host."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hil.errors import CommandFailed, NotReached
from hil.guests.build import Built
from hil.guests.packages import Archive
from hil.machines import Machine
from hil.net.host import HostPlace
from hil.net.world import HOST_ADDRESS
from hil.programs import Program, run, until
from hil.qemu import Guest

PORT = 51820
TALK_PORT = 5201
TALK = Path(__file__).with_name("talk.py")
COMMAND_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 300.0
STREAM_TIMEOUT_S = 300.0
# In a guest: Python alone takes seconds to start.
SERVE = (
    f"python3 /root/talk.py serve {TALK_PORT} >/root/talk.log 2>&1 & "
    "until grep -q listening /root/talk.log; do sleep 1; done"
)


def keys(folder: Path, name: str) -> tuple[Path, str]:
    """(file with a new private key, public key); the file is for its owner only."""
    path = folder / f"{name}.key"
    public = run(["sh", "-c", 'umask 077; wg genkey >"$0"; wg pubkey <"$0"', str(path)], COMMAND_TIMEOUT_S)
    return path, public.strip()


def preshared(folder: Path) -> Path:
    path = folder / "preshared.key"
    run(["sh", "-c", 'umask 077; wg genpsk >"$0"', str(path)], COMMAND_TIMEOUT_S)
    return path


def disk(machine: Machine, built: Built, store: Path, files: dict[str, Path], out: Path) -> Path:
    """A copy of the guest's root with `wg` in it, and with `files` by their paths there."""
    archive = Archive(store, machine.release, machine.arch).one("wireguard-tools")
    with tempfile.TemporaryDirectory(prefix="edgehil-") as name:
        run(["dpkg-deb", "--extract", str(archive), name], COPY_TIMEOUT_S)
        run(["cp", "--sparse=always", str(built.root), str(out)], COPY_TIMEOUT_S)
        put(out, {"/usr/bin/wg": Path(name) / "usr/bin/wg", **files})
    return out


def put(image: Path, files: dict[str, Path]) -> None:
    """Write files into an ext4 image; those of /usr/bin may be run, the others are for root only."""
    with tempfile.NamedTemporaryFile("w", prefix="edgehil-", suffix=".debugfs") as script:
        for target, source in files.items():
            mode = "0100755" if target.startswith("/usr/bin/") else "0100600"
            script.write(f"write {source} {target}\nsif {target} mode {mode}\nsif {target} uid 0\nsif {target} gid 0\n")
        script.flush()
        run(["debugfs", "-w", "-f", script.name, str(image)], COPY_TIMEOUT_S)
    for target in files:
        if "Inode:" not in run(["debugfs", "-R", f"stat {target}", str(image)], COPY_TIMEOUT_S):
            raise CommandFailed(f"debugfs did not write {target} into {image.name}")


class End:
    """`number` N makes the addresses 10.9.0.N and fd09::N of its interface."""

    def __init__(self, number: int, interface: str, public: str) -> None:
        self.number = number
        self.interface = interface
        self.public = public

    @property
    def v4(self) -> str:
        return f"10.9.0.{self.number}"

    @property
    def v6(self) -> str:
        return f"fd09::{self.number}"

    def do(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What a shell command says at this end. Raises CommandFailed."""
        raise NotImplementedError

    def configure(self, key: str) -> None:
        """Port, private key (a file) and addresses, and up."""
        name = self.interface
        self.do(f"wg set {name} listen-port {PORT} private-key {key}")
        self.do(
            f"ip addr add {self.v4}/24 dev {name}; ip addr add {self.v6}/64 dev {name} nodad; ip link set {name} up"
        )

    def add(self, other: End, psk: str, endpoint: str = "") -> None:
        words = f"preshared-key {psk} allowed-ips {other.v4}/32,{other.v6}/128"
        if endpoint:
            words += f" endpoint {endpoint}"
        self.do(f"wg set {self.interface} peer {other.public} {words}")

    def remove(self, other: End) -> None:
        self.do(f"wg set {self.interface} peer {other.public} remove")

    def shows(self, what: str, other: End) -> list[str]:
        """Of `wg show INTERFACE WHAT` the words behind the other's key."""
        for line in self.do(f"wg show {self.interface} {what}").splitlines():
            key, *words = line.split()
            if key == other.public:
                return words
        raise CommandFailed(f"wg show {self.interface} {what}: no peer {other.public}")

    def handshake_at(self, other: End) -> int:
        """Seconds since the epoch by this end's clock; 0 for never."""
        return int(self.shows("latest-handshakes", other)[0])

    def ping(self, address: str, count: int, every_s: float = 0.2, size: int = 56) -> int:
        """How many of them were answered."""
        said = self.do(
            f"ping -n -c {count} -i {every_s} -s {size} -W 5 {address} || true", 60.0 + count * (every_s + 5)
        )
        return sum("bytes from" in line for line in said.splitlines())

    def stream(self, way: str, address: str, count: int) -> dict[str, Any]:
        """`send` to the other end's server, or `receive` from it: what talk.py says of it."""
        said = self.do(f"{self._talk} {way} {address} {TALK_PORT} {count}", STREAM_TIMEOUT_S)
        told: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        if not told["ok"] or told["bytes"] != count:
            raise NotReached(f"{way} {count} bytes: what came is not what was sent: {said.strip()}")
        return told

    def offload(self, on: bool) -> None:
        """GSO and TSO of its interface."""
        self.do(f"{self._talk} offload {self.interface} {'on' if on else 'off'}")

    _talk = "talk.py"


class KernelEnd(End):
    """In a guest whose console has a root shell."""

    _talk = "python3 /root/talk.py"

    def __init__(self, guest: Guest, number: int, public: str, interface: str = "wg0") -> None:
        super().__init__(number, interface, public)
        self.guest = guest

    def make(self) -> None:
        self.do(f"ip link add {self.interface} type wireguard")

    def do(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        return self.guest.console.shell(command, timeout_s)

    def serve(self) -> None:
        self.do(SERVE, 120.0)


class HostEnd(End):
    """`edge-wireguard` in the host's place. `engine` is what EDGEAGENT_ENGINE is to be."""

    def __init__(self, place: HostPlace, folder: Path, number: int, public: str, engine: str) -> None:
        super().__init__(number, "wg0", public)
        self._place = place
        self._folder = folder
        self._engine = engine
        self._program: Program | None = None
        self._server: Program | None = None
        self._starts = 0
        self._talk = f"{sys.executable} -I {TALK}"

    def start(self) -> None:
        """A new interface, which knows nothing of an earlier one's sessions."""
        self.stop()
        self._starts += 1
        # /run is its own: `wg` finds the interface there, whoever runs this, and no other one of the host's
        script = 'mount -t tmpfs hil /run && exec "$0" -f "$1"'
        program = str(Path(sys.executable).with_name("edge-wireguard"))
        env = {**os.environ, "EDGEAGENT_ENGINE": self._engine, "LOG_LEVEL": "verbose"}
        words = ["unshare", "--mount", "sh", "-c", script, program, self.interface]
        self._program = made = self._place.start(f"edge-wireguard-{self._engine}-{self._starts}", *words, env=env)

        def ready() -> bool:
            if made.code is not None:
                raise NotReached(f"edge-wireguard ended with {made.code}: {made.tail()}")
            return "Device started" in made.tail()

        until(ready, COMMAND_TIMEOUT_S, lambda: NotReached(f"edge-wireguard does not start: {made.tail()}"))

    def stop(self) -> None:
        for each in (self._server, self._program):
            if each is not None:
                each.stop()
        self._server = self._program = None

    def serve(self) -> None:
        self._server = made = self._place.start(
            f"talk-{self._engine}-{self._starts}", *self._talk.split(), "serve", str(TALK_PORT)
        )
        until(lambda: "listening" in made.tail(), COMMAND_TIMEOUT_S, lambda: NotReached(f"talk.py: {made.tail()}"))

    def do(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        if self._program is None:
            raise NotReached("edge-wireguard does not run")
        enter = ["nsenter", "--target", str(self._program.pid), "--mount", "--"]
        return self._place.run(*enter, "sh", "-c", command, timeout_s=timeout_s)


def endpoint_of_host() -> str:
    return f"{HOST_ADDRESS}:{PORT}"
