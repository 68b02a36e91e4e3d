"""What the simulator costs: real seconds for a virtual hour of a full mesh, with everything audited.

python -m tests.sim.figure [DEVICES]
"""

from __future__ import annotations

import sys
import time

from tests.sim.mesh import Mesh

HOUR_S = 3_600.0


def main(arguments: list[str]) -> None:
    """One line an interval between packets: from every device to every other and back."""
    devices = int(arguments[0]) if arguments else 12
    for every_s in (10.0, 60.0, None):
        mesh = Mesh(1)
        joined = mesh.joined(devices)
        mesh.wait_all_reach()
        if every_s is not None:
            for place, a in enumerate(joined):
                for b in joined[place + 1 :]:
                    mesh.talk(a, b, every_s=every_s)
        steps, sent, began = mesh.world.steps, mesh.traffic.count, time.perf_counter()
        mesh.world.run_for(HOUR_S)
        took_s = time.perf_counter() - began
        traffic = "idle" if every_s is None else f"a packet each way each {every_s:g} s"
        print(
            f"{devices} devices, {traffic}: {took_s:.2f} s for a virtual hour "
            f"({mesh.world.steps - steps} steps, {mesh.traffic.count - sent} packets)"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
