"""What the programs of a device may load, and how large they are then: a budget, so that it is noticed when spent.

What a whole running agent takes is a figure of `./dev bench agent`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from edgeagent.proto.firewall import Firewall
from edgeagent.proto.policy import Slice
from tests.policy_kit import ME6, PEER6, FakePeer, udp

# Each costs memory or start time on a device and has a cheaper answer: ARCHITECTURE.md, "Parts".
FORBIDDEN = (
    "asyncio",
    "concurrent.futures",
    "cryptography",
    "boards",
    "dataclasses",
    "email",
    "flash",
    "http",
    "hub",
    "inspect",
    "multiprocessing",
    "pydantic",
    "pyroute2",
    "relay",
    "rich",
    "scapy",
    "sqlalchemy",
    "structlog",
    "tests",
    "tools",
    "typer",
    "unittest",
    "urllib.request",
    "xml",
)

# MiB of VmRSS after the import, above the bare interpreter's (8.5 to 10, by how it was built); of the daemon, above one
# that has loaded OpenSSL, too (4.6 MiB more with 3.0, 5.4 with 3.5). paho-mqtt takes 3 of it.
BUDGET_MIB = {
    "edgeagent.cli": 3.0,
    "edgeagent.wireguard": 5.5,
    "edgeagent.daemon": 9.7,
}
OPENSSL = ("_hashlib", "_ssl")

# What the daemon does without until somebody asks it something, or for good; 1.1 MiB.
NOT_BY_DAEMON = (
    "cbor2", "datetime", "edgeagent.enrolment", "edgeagent.modems", "edgeagent.requests", "ipaddress", "json",
    "platform", "termios",
)  # fmt: skip
BY_POLICY = {"edgeagent.proto.firewall", "edgeagent.proto.conntrack", "edgeagent.proto.heads", "edgeagent.proto.policy"}
POLICY_MIB = 0.5
MODEM_MIB = 0.8
CONNECTION_BYTES = 480  # with its place in the tables; of IPv6

# What the fast engine adds: the daemon's whole price for it, but for the pump's own memory.
BY_FAST = {
    "_ctypes", "ctypes", "ctypes._endian", "edgeagent.aeadjob", "edgeagent.engine.bakeoff",
    "edgeagent.engine.fast.binding", "edgeagent.engine.fast.engine", "edgeagent.engine.fast.records",
}  # fmt: skip
FAST_MIB = 1.0

PROBE = """
import sys
for module in sys.argv[1:]:
    __import__(module)
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")), *sorted(sys.modules))
"""


@pytest.mark.parametrize("module", sorted(BUDGET_MIB))
def test_the_import_stays_within_its_budget(module: str) -> None:
    loaded, rss_mib = footprint(module)
    assert breaches(loaded) == []
    if module == "edgeagent.daemon":
        assert [name for name in NOT_BY_DAEMON if name in loaded] == []
    before = OPENSSL if module == "edgeagent.daemon" else ()
    taken_mib = rss_mib - footprint(*before)[1]
    assert taken_mib <= BUDGET_MIB[module], f"{module} takes {taken_mib:.1f} MiB above {before or 'the interpreter'}"


def test_the_fast_engine_adds_little() -> None:
    parts = ("edgeagent.daemon", "edgeagent.aeadjob", "edgeagent.engine.fast.engine")
    loaded, rss_mib = footprint(*parts)
    daemon, daemon_mib = footprint(parts[0])
    assert breaches(loaded) == []
    assert set(loaded) - set(daemon) <= BY_FAST
    taken_mib = rss_mib - daemon_mib
    assert taken_mib <= FAST_MIB, f"the fast engine takes {taken_mib:.1f} MiB"


def test_a_policy_is_paid_for_by_who_has_one() -> None:
    loaded, rss_mib = footprint("edgeagent.daemon", "edgeagent.proto.policy", "edgeagent.proto.firewall")
    daemon, daemon_mib = footprint("edgeagent.daemon")
    assert set(loaded) - set(daemon) == BY_POLICY
    taken_mib = rss_mib - daemon_mib
    assert taken_mib <= POLICY_MIB, f"a policy takes {taken_mib:.1f} MiB"


def test_a_modem_is_paid_for_by_who_has_one() -> None:
    daemon, daemon_mib = footprint("edgeagent.daemon")
    for driver, more in (("modem_at", {"termios"}), ("modem_programs", {"json", "edgeagent.io.child"})):
        loaded, rss_mib = footprint("edgeagent.daemon", "edgeagent.modems", f"edgeagent.io.{driver}")
        assert breaches(loaded) == []
        assert more <= set(loaded) - set(daemon)
        taken_mib = rss_mib - daemon_mib
        assert taken_mib <= MODEM_MIB, f"modems by {driver} take {taken_mib:.1f} MiB"


def test_a_full_table_of_connections_has_a_price() -> None:
    """A `normal` device is full at 0.8 MiB."""
    peer: Any = FakePeer("p", [PEER6], [])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = Firewall(
            0.0, Slice({"v": 1, "u": "", "in": [], "out": [[["*"], [[0, 0, 65535]]]]}, (), (), ()), 2048, None
        )
        for port in range(3000):
            table.outbound(0.0, peer, udp(ME6, PEER6, 1000 + port, 53))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(table.flows) == 2048
    assert taken <= 2048 * CONNECTION_BYTES, f"{taken / 2048:.0f} bytes a connection"


def test_a_breach_is_found() -> None:
    loaded, _ = footprint("asyncio")
    assert "asyncio" in breaches(loaded)
    assert breaches(["http.client"]) == ["http"]
    assert breaches(["https", "emails"]) == []


def footprint(*modules: str) -> tuple[list[str], float]:
    """The modules loaded, and MiB of resident memory, of an interpreter that has imported `modules`.

    The least of three runs counts: compiling what changed since the last one takes memory that a device never spends,
    and how the kernel maps files around a fault differs by 0.2 MiB from run to run.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-c", PROBE, *modules]
    least_kib = sys.maxsize
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
        assert done.returncode == 0, done.stderr
        rss_kib, *loaded = done.stdout.split()
        least_kib = min(least_kib, int(rss_kib))
    return loaded, least_kib / 1024


def breaches(loaded: list[str]) -> list[str]:
    """The forbidden ones among `loaded`, a package counting with what is in it."""
    return [name for name in FORBIDDEN if any(module == name or module.startswith(name + ".") for module in loaded)]
