"""Where packets go, in a network namespace: to peers, to prefixes behind them, and to prefixes of others."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import re, socket, subprocess
from edgeagent.io.netlink import Netlink
from edgeagent.kernelroutes import KernelRoutes
from edgeagent.policyroutes import PolicyRoutes
from edgeagent.proto.prefixes import parse

def sh(text):
    return subprocess.run(text, shell=True, check=True, capture_output=True, text=True).stdout

for name in ("edge0", "wg"):
    sh(f"ip link add {name} type veth peer name {name}-far; ip link set {name} up; ip link set {name}-far up")
sh("ip link set lo up; ip addr add 100.64.0.1/32 dev edge0; ip -6 addr add fd00::1/128 dev edge0 nodad")
sh("ip route add 100.64.0.0/10 dev edge0; ip -6 route add fd00::/48 dev edge0")

def by(address):
    return re.search(r" dev (\\\\S+)", sh(f"ip route get {address}"))[1]

def ways(text):
    return dict(zip(text.split(), (by(each) for each in text.split())))

netlink = Netlink()
own = (socket.inet_aton("100.64.0.1"), socket.inet_pton(socket.AF_INET6, "fd00::1"))
used = [parse(each) for each in ("10.0.0.0/8", "10.128.0.0/9", "10.7.0.0/16", "fd07::/64")]
PolicyRoutes(netlink, socket.if_nametoindex("edge0")).put(used, own, exit_node=True, allow_lan=True)
routes = KernelRoutes(netlink, socket.if_nametoindex("wg"), lambda size: own[size == 16])
everywhere = "100.64.0.2 fd00::2 10.1.2.3 10.200.0.1 10.7.0.1 fd07::9 192.0.2.1 203.0.113.1 2001:db8::1"
assert set(ways(everywhere).values()) == {"edge0"}

routes.set(b"a", [parse(each) for each in ("100.64.0.2", "fd00::2", "10.0.0.0/8", "fd07::/64")])
assert ways(everywhere) == {
    "100.64.0.2": "wg", "fd00::2": "wg", "10.1.2.3": "wg", "fd07::9": "wg",
    "10.200.0.1": "edge0", "10.7.0.1": "edge0",  # of other routers
    "192.0.2.1": "edge0", "203.0.113.1": "edge0", "2001:db8::1": "edge0",
}
routes.set(b"exit", [parse("100.64.0.3"), (bytes(4), 0), (bytes(16), 0)])
assert ways("192.0.2.1 203.0.113.1 2001:db8::1 fd07::9 10.7.0.1 100.64.0.9") == {
    "192.0.2.1": "wg", "203.0.113.1": "wg", "2001:db8::1": "wg", "fd07::9": "wg", "10.7.0.1": "edge0",
    "100.64.0.9": "edge0",
}
marked = sh("ip route get 192.0.2.1 mark 0x6e000000 || true")
assert " wg " not in marked, marked
sh("ip link set wg down; ip link set wg up")
assert ways("10.1.2.3 192.0.2.1 100.64.0.2") == dict.fromkeys(("10.1.2.3", "192.0.2.1", "100.64.0.2"), "edge0")
routes.put()
assert by("10.1.2.3") == by("192.0.2.1") == "wg"
routes.set(b"a", [])
routes.set(b"exit", [])
assert set(ways(everywhere).values()) == {"edge0"}
assert " wg " not in sh("ip route; ip route show table 5300")
assert " wg " not in sh("ip -6 route show table 5300; ip -6 route show root fd00::/8")
print("seen")
"""


@pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not here")
def test_what_the_kernel_has_goes_past_the_tun() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PROGRAM.replace("\\\\", "\\")],
        capture_output=True,
        text=True,
        timeout=90,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no right to make a network namespace")
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr
