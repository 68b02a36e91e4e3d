"""Random disturbances as a script: drawn from a seed, played, shrunk when it fails, and kept in `corpus` as a case.

python -m tests.sim.chaos SEED …        play these seeds
python -m tests.sim.chaos 1-500         or a range; a failing one is shrunk and written to tests/sim/corpus
python -m tests.sim.chaos FILE          play a case of the corpus
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeagent.proto.errors import EdgeError
from edgeagent.proto.token import Token
from hub.core.model import HubError
from tests.sim.device import SimDevice
from tests.sim.mesh import Mesh
from tests.sim.net import Conditions

CORPUS = Path(__file__).parent / "corpus"
DEVICES_MIN, DEVICES_MAX = 3, 6
ACTIONS_MIN, ACTIONS_MAX = 10, 40
SPAN_S = 3_600.0
# After the last disturbance: a dead connection is noticed (1.5 × 300 s), the longest wait before the next (300 s), and
# what a peer that was given up needs to be asked for again.
RECOVERY_S = 900.0
AFTERWARDS_S = 120.0
STALLED_S = 30.0  # until a connection that nothing passed on sends again
NEWCOMERS_MAX, REMOVALS_MAX = 3, 2

# What a run ends with that does not hold: an invariant, or a machine that breaks
FAILURES = (AssertionError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, EdgeError, HubError)

Step = dict[str, Any]


class Script:
    """A seed for the dice of the run, a number of devices, and what is done to them when."""

    def __init__(self, seed: int, devices: int, steps: list[Step]) -> None:
        self.seed = seed
        self.devices = devices
        self.steps = steps

    def encode(self) -> str:
        lines = ",\n".join(f"    {json.dumps(step)}" for step in self.steps)
        return f'{{\n  "seed": {self.seed},\n  "devices": {self.devices},\n  "steps": [\n{lines}\n  ]\n}}\n'

    @classmethod
    def decode(cls, text: str) -> Script:
        fields = json.loads(text)
        return cls(fields["seed"], fields["devices"], fields["steps"])


def draw(seed: int) -> Script:
    """A script out of nothing but the seed."""
    dice = random.Random(f"chaos/{seed}")
    devices = dice.randint(DEVICES_MIN, DEVICES_MAX)
    names = [f"d{number}" for number in range(1, devices + 1)]
    steps: list[Step] = []
    for _ in range(dice.randint(ACTIONS_MIN, ACTIONS_MAX)):
        drawn = _ACTIONS[dice.choices(range(len(_ACTIONS)), [weight for weight, _, _ in _ACTIONS])[0]]
        arguments = drawn[2](dice, names)
        steps.append({"at": round(dice.uniform(0.0, SPAN_S), 3), "do": drawn[1], **arguments})
    steps.sort(key=lambda step: float(step["at"]))
    return Script(seed, devices, steps)


def play(script: Script) -> Mesh:
    """Run a script to its end and through the recovery after it. Raises SimFailure."""
    return Play(script).run()


class Play:
    """One run. `_do_…` are the actions of a script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.mesh = Mesh(script.seed)
        self.removed: list[SimDevice] = []
        self._chance = self.mesh.world.stream("chaos")
        self._moves = 0
        self._tokens: list[Token] = []

    def run(self) -> Mesh:
        mesh, world = self.mesh, self.mesh.world
        for _ in range(self.script.devices):
            mesh.add_device()
        self._tokens = [mesh.hub.create_token() for _ in range(NEWCOMERS_MAX)]
        self._chatter()
        began = world.now
        for step in self.script.steps:
            world.run_until(max(world.now, began + step["at"]))
            arguments = {name: value for name, value in step.items() if name not in ("at", "do")}
            world.note(f"chaos: {step['do']} {arguments}")
            getattr(self, f"_do_{step['do']}")(**arguments)
        self._recover()
        return mesh

    # Actions

    def _do_reboot(self, device: str, off_s: float) -> None:
        self._of(device).reboot(off_s=off_s)

    def _do_restart(self, device: str, down_s: float) -> None:
        self._of(device).restart(down_s=down_s)

    def _do_stop(self, device: str, down_s: float) -> None:
        stopped = self._of(device)
        stopped.stop()
        self.mesh.world.after(down_s, stopped.start)

    def _do_fuse(self, device: str, steps: int) -> None:
        self._of(device).flash.fuse.left = steps

    def _do_move(self, device: str) -> None:
        self._moves += 1
        self._of(device).move_to(self.mesh.address(1_000 + self._moves))

    def _do_kick(self, device: str) -> None:
        self.mesh.broker.kick(self._of(device).device_id)

    def _do_isolate(self, device: str, for_s: float) -> None:
        host = self._of(device).host
        self.mesh.net.isolate(host)
        self.mesh.world.after(for_s, lambda: self.mesh.net.restore(host))

    def _do_cut(self, a: str, b: str, for_s: float) -> None:
        stations = self.mesh.net.stations
        self.mesh.net.cut(stations[a], stations[b])
        self.mesh.world.after(for_s, lambda: self.mesh.net.mend(stations[a], stations[b]))

    def _do_weather(self, loss: float, duplicate: float, reorder: float, jitter_s: float, for_s: float) -> None:
        self.mesh.internet.conditions = Conditions(loss=loss, duplicate=duplicate, reorder=reorder, jitter_s=jitter_s)
        self.mesh.world.after(for_s, self._fair_weather)

    def _do_broker(self, down_s: float, state: str) -> None:
        if self.mesh.broker.is_up:
            self.mesh.broker.restart(down_s=down_s, state=state)

    def _do_broker_saves(self) -> None:
        self.mesh.broker.save()

    def _do_broker_repeats(self, share: float) -> None:
        self.mesh.broker.duplicate = share

    def _do_broker_wills(self, delay_s: float, on_takeover: bool) -> None:
        self.mesh.broker.will_delay_s = delay_s
        self.mesh.broker.wills_on_takeover = on_takeover

    def _do_slow_agents(self, wake_up_s: float) -> None:
        """Datagrams gather while the agents do something else."""
        self.mesh.net.wake_up_s = wake_up_s

    def _do_hub(self, down_s: float) -> None:
        if self.mesh.hub.is_up:
            self.mesh.hub.restart(down_s=down_s)

    def _do_hub_fuse(self, steps: int) -> None:
        self.mesh.hub.fuse.left = steps

    def _do_join(self) -> None:
        if self._tokens:
            self.mesh.add_device(token=self._tokens.pop())

    def _do_remove(self, device: str) -> None:
        removed = self._of(device)
        row = self.mesh.hub.device(removed.device_id) if removed.device_id else None
        if row is not None and row.name is not None and len(self.removed) < REMOVALS_MAX:
            self.mesh.remove(removed, after_s=float("inf"))
            self.removed.append(removed)

    def _do_lose_file(self, device: str, file: str) -> None:
        """A damaged file is as good as none; the agent finds out at its next start."""
        loser = self._of(device)
        loser.flash.remove(file)
        if file == "cache":
            loser.on_start = lambda: self.mesh.audit.forget(loser.device_id)

    # The rest of a run

    def _chatter(self) -> None:
        """Packets between two devices of the mesh, every now and then, for ever."""
        devices = [device for device in self.mesh.devices.values() if device.is_running]
        if len(devices) > 1:
            sender, receiver = self._chance.sample(devices, 2)
            self.mesh.traffic.send(sender, receiver, family=self._chance.choice((4, 6)))
        self.mesh.world.after(self._chance.uniform(0.1, 5.0), self._chatter)

    def _fair_weather(self) -> None:
        self.mesh.internet.conditions = Conditions()

    def _recover(self) -> None:
        """Everything is mended; then all who are members reach one another, and who was removed reaches nobody."""
        mesh, world = self.mesh, self.mesh.world
        mesh.net.heal()
        self._fair_weather()
        mesh.hub.fuse.left = None
        if not mesh.hub.is_up:
            mesh.hub.start(mesh.broker)
        if not mesh.broker.is_up:
            mesh.broker.start(state="kept")
        for device in mesh.devices.values():
            device.flash.fuse.left = None
            if not device.host.up:
                device.power_on()
            device.start()
        world.note("chaos: mended")
        mended = world.now
        members = [device for device in mesh.devices.values() if device not in self.removed]
        world.wait_for(lambda: all(device.connected for device in members), RECOVERY_S, "all members are connected")
        mesh.wait_reach(mesh.pairs(members), RECOVERY_S - (world.now - mended))
        for device in self.removed:
            mesh.traffic.removed_at[device.name] = world.now + STALLED_S
        world.run_for(AFTERWARDS_S)
        mesh.finish()
        mesh.check_settled()

    def _of(self, name: str) -> SimDevice:
        return self.mesh.devices[name]


def shrink(script: Script, fails: Callable[[Script], bool]) -> Script:
    """The same failure with fewer steps: pieces are left out, large ones first, while it still fails."""
    size = len(script.steps)
    while size > 0:
        start = 0
        while start < len(script.steps):
            shorter = Script(script.seed, script.devices, script.steps[:start] + script.steps[start + size :])
            if fails(shorter):
                script = shorter
            else:
                start += size
        size //= 2
    return script


Draw = Callable[[random.Random, list[str]], Step]


def _one(dice: random.Random, names: list[str]) -> Step:
    return {"device": dice.choice(names)}


def _seconds(dice: random.Random, most: float) -> float:
    """Short ones as often as long ones."""
    return float(round(most ** dice.random(), 2))


def _cut(dice: random.Random, names: list[str]) -> Step:
    a, b = dice.sample([*names, "broker", "hub"], 2)
    return {"a": a, "b": b, "for_s": _seconds(dice, 1_500.0)}


def _weather(dice: random.Random, names: list[str]) -> Step:
    return {
        "loss": round(dice.uniform(0.0, 0.4), 2),
        "duplicate": round(dice.uniform(0.0, 0.3), 2),
        "reorder": round(dice.uniform(0.0, 0.3), 2),
        "jitter_s": round(dice.uniform(0.0, 0.5), 2),
        "for_s": _seconds(dice, 900.0),
    }


def _broker(dice: random.Random, names: list[str]) -> Step:
    return {"down_s": _seconds(dice, 600.0), "state": dice.choice(("kept", "kept", "lost"))}


_ACTIONS: list[tuple[int, str, Draw]] = [
    (8, "reboot", lambda dice, names: {**_one(dice, names), "off_s": _seconds(dice, 900.0)}),
    (6, "restart", lambda dice, names: {**_one(dice, names), "down_s": _seconds(dice, 300.0)}),
    (3, "stop", lambda dice, names: {**_one(dice, names), "down_s": _seconds(dice, 300.0)}),
    (8, "fuse", lambda dice, names: {**_one(dice, names), "steps": dice.randint(1, 40)}),
    (10, "move", _one),
    (3, "kick", _one),
    (5, "isolate", lambda dice, names: {**_one(dice, names), "for_s": _seconds(dice, 1_500.0)}),
    (10, "cut", _cut),
    (5, "weather", _weather),
    (6, "broker", _broker),
    (2, "broker_repeats", lambda dice, names: {"share": round(dice.uniform(0.0, 0.5), 2)}),
    (2, "broker_wills", lambda dice, names: {"delay_s": _seconds(dice, 300.0), "on_takeover": dice.random() < 0.5}),
    (2, "slow_agents", lambda dice, names: {"wake_up_s": round(dice.uniform(0.0, 0.2), 3)}),
    (5, "hub", lambda dice, names: {"down_s": _seconds(dice, 900.0)}),
    (5, "hub_fuse", lambda dice, names: {"steps": dice.randint(1, 60)}),
    (4, "join", lambda dice, names: {}),
    (2, "remove", _one),
    (2, "lose_file", lambda dice, names: {**_one(dice, names), "file": dice.choice(("cache", "clock"))}),
]


def main(arguments: list[str]) -> int:
    """Exit code 1 when a run failed."""
    failed = played = 0
    for argument in arguments:
        path = Path(argument)
        if path.suffix == ".json":
            play(Script.decode(path.read_text()))
            continue
        first, _, last = argument.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            failed += _try(seed)
            played += 1
    print(f"{played} seeds, {failed} failed")
    return 1 if failed else 0


def _try(seed: int) -> bool:
    """True when it failed; then the shortest script that still does is in the corpus."""
    script = draw(seed)
    try:
        play(script)
    except FAILURES as failure:
        print(f"seed {seed}: {type(failure).__name__}: {_last_line(failure)}", flush=True)
        kind = _kind(failure)
    else:
        return False

    def fails(shorter: Script) -> bool:
        try:
            play(shorter)
        except FAILURES as other:
            return _kind(other) == kind
        return False

    script = shrink(script, fails)
    path = CORPUS / f"seed-{seed}.json"
    path.write_text(script.encode())
    print(f"  {len(script.steps)} steps: {path}")
    return True


def _kind(failure: Exception) -> str:
    """What failed, without names and numbers: a shorter script must fail in the same way."""
    return type(failure).__name__ + re.sub(r"[a-z0-9]{24}|\w*\d\w*|[({\[].*", "", _last_line(failure))


def _last_line(failure: Exception) -> str:
    return str(failure).rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
