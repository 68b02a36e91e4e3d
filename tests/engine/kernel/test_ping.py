"""`edgeagent ping` where the tunnel is two interfaces: what comes in by another one is no answer."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import subprocess
from edgeagent.io.ping import _Echo

def sh(text):
    for line in text.strip().splitlines():
        subprocess.run(line, shell=True, check=True)

far = subprocess.Popen(["unshare", "--net", "sleep", "60"])
sh(f'''
until [ "$(readlink /proc/{far.pid}/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
ip link set lo up
ip link add edge0 type veth peer name nobody
ip link add edge0-wg address 02:00:00:00:00:01 type veth peer name p0 address 02:00:00:00:00:02 netns {far.pid}
ip link add eth7 type veth peer name p1 netns {far.pid}
ip link set nobody up
ip link set edge0 up
ip addr add 100.64.0.1/32 dev edge0
ip -6 addr add fd00::1/128 dev edge0 nodad
ip link set edge0-wg up
ip link set eth7 up
ip route add 100.64.0.2/32 dev edge0-wg src 100.64.0.1
ip route add 10.0.0.2/32 dev eth7 src 100.64.0.1
ip -6 route add fd00::2/128 dev edge0-wg src fd00::1
ip -6 neigh add fd00::2 lladdr 02:00:00:00:00:02 dev edge0-wg
''')
for words in '''
ip link set p0 up
ip link set p1 up
ip addr add 100.64.0.2/32 dev p0
ip addr add 10.0.0.2/32 dev p1
ip -6 addr add fd00::2/128 dev p0 nodad
ip route add 100.64.0.1/32 dev p0
ip -6 route add fd00::1/128 dev p0
ip -6 neigh add fd00::1 lladdr 02:00:00:00:00:01 dev p0
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.p1.rp_filter=0
'''.strip().splitlines():
    sh(f"nsenter --net=/proc/{far.pid}/ns/net {words}")
for address, answers in (("100.64.0.2", True), ("fd00::2", True), ("127.0.0.1", False)):
    with _Echo(address, "edge0") as echo:
        outcomes = [echo.round_trip(number, 0.7) for number in (1, 2, 3)]
        assert isinstance(outcomes[-1], float) is answers, (address, outcomes)
sh(f"nsenter --net=/proc/{far.pid}/ns/net ip route replace 100.64.0.1/32 dev p1")
with _Echo("10.0.0.2", "edge0") as echo:
    assert echo.round_trip(1, 0.7) == "no answer within 0.7 s"
sh("ip link delete edge0-wg")
with _Echo("10.0.0.2", "eth7") as echo:  # bound, as with the other engines
    assert isinstance(echo.round_trip(1, 2.0), float)
far.kill()
print("seen")
"""


@pytest.mark.skipif(shutil.which("ip") is None, reason="ip is not here")
def test_only_what_comes_by_the_tunnel_is_an_answer() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=90
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no right to make a network namespace")
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr
