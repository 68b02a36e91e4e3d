"""A small network laboratory: hosts are network namespaces, the programs in them are the real ones.

    with Lab() as lab:
        lan, wan = lab.net("10.1.0.0/24"), lab.net("198.51.100.0/24")
        router = lab.router("router", lan, wan)
        a, b = lab.host("a", lan), lab.host("b", wan)
        a.run("ping", "-c1", b.address)

`docs/lab.md` tells what a lab leaves alone and how it cleans up.
"""

from __future__ import annotations

from tests.netlab.host import Host, Net, Port
from tests.netlab.lab import Lab
from tests.netlab.process import LabError, LabTimeout, Process, until

__all__ = ["Host", "Lab", "LabError", "LabTimeout", "Net", "Port", "Process", "until"]
