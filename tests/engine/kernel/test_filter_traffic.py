"""The filter before real packets: the kernel's interface is one end of a cable between two network namespaces."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, socket, subprocess, time
from types import SimpleNamespace
from edgeagent.engine.kernel.guard import Guard
from edgeagent.engine.kernel.ruleset import ALIVE, table_name
from edgeagent.io.forwarding import nft
from edgeagent.io.nftelements import NftElements
from edgeagent.proto.allowedips import AllowedIPs
from edgeagent.proto.policy import Slice
from tests.policy_kit import ME4, ME6, PEER4, PEER6, FakePeer
import logging

WG, CLONE_NEWNET = "edge0-wg", 0x40000000
LAN = (bytes((192, 168, 7, 0)), 24)
libc = ctypes.CDLL(None, use_errno=True)
ours = os.open("/proc/self/ns/net", os.O_RDONLY)
assert libc.unshare(CLONE_NEWNET) == 0
theirs = os.open("/proc/self/ns/net", os.O_RDONLY)

def enter(namespace):
    assert libc.setns(namespace, CLONE_NEWNET) == 0

def sh(text):
    for line in text.strip().splitlines():
        subprocess.run(line, shell=True, check=True)

enter(ours)
there = subprocess.Popen(["sleep", "60"])
enter(theirs)
far = subprocess.Popen(["sleep", "60"])
enter(ours)
sh(f'''
ip link set lo up
ip link add {WG} address 02:00:00:00:00:01 type veth peer name p0 address 02:00:00:00:00:02
ip link set p0 netns {far.pid}
ip addr add 100.64.0.1/10 dev {WG}
ip -6 addr add fd00::1/48 dev {WG} nodad
ip link set {WG} up
ip route add 192.168.7.0/24 dev {WG}
ip -6 neigh add fd00::2 lladdr 02:00:00:00:00:02 dev {WG}
''')
enter(theirs)
sh('''
ip link set lo up
ip link set p0 up
ip addr add 100.64.0.2/10 dev p0
ip addr add 100.64.0.3/10 dev p0
ip addr add 192.168.7.9/24 dev p0
ip -6 addr add fd00::2/48 dev p0 nodad
ip -6 neigh add fd00::1 lladdr 02:00:00:00:00:01 dev p0
''')
enter(ours)

def made(namespace, address, port=0, kind=socket.SOCK_STREAM):
    enter(namespace)
    new = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    enter(ours)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    new.settimeout(0.4)
    new.bind((address, port))
    if kind == socket.SOCK_STREAM and port:
        new.listen(5)
    return new

def connected(sender, to, listener):
    try:
        sender.connect(to)
    except OSError:
        sender.close()
        return None
    return sender, listener.accept()[0]

def passes(one, other, data=b"data"):
    try:
        one.send(data)
        other.settimeout(0.4)
        return other.recv(100) == data
    except OSError:
        return False

class Port:
    def __init__(self):
        self.elements, self.whole = NftElements(table_name(WG)), 0
        self.refuses = False
    def let_in(self, text):
        self.whole += 1
        nft(text)
    def change_filter(self, gone, new):
        self.elements.change(gone, new)
    def renew_filter(self, lasts_s=180):
        self.elements.renew(ALIVE, WG.encode().ljust(16, b"\\0"), lasts_s)

def policy(inbound, outbound):
    networks = [(bytes((100, 64, 0, 0)), 10), (bytes.fromhex("fd00") + bytes(14), 48)]
    return Slice({"v": 1, "u": "", "in": inbound, "out": outbound}, [], [ME4, ME6], networks)

inbound = [[["tag:web"], ["me"], [[6, 80, 80], [1, 0, 0]]], [[[*LAN]], ["me"], [[6, 22, 22]]]]
outbound = [[["tag:web"], [[17, 53, 53]]], [[[*LAN]], [[6, 443, 443]]]]
web, other = FakePeer("web", [PEER4, PEER6], ["tag:web"]), FakePeer("other", [bytes((100, 64, 0, 3))], [])
routes = AllowedIPs(100)
routes.insert(*LAN, other)
device = SimpleNamespace(own=frozenset((ME4, ME6)), firewall=SimpleNamespace(policy=policy(inbound, outbound)),
                         peers={b"w": web, b"o": other}, allowed_ips=routes)
port = Port()
guard = Guard(WG, port, logging.getLogger("t"))
guard.begin(device)
assert guard.look(0.0, device) == frozenset()

www, www6, ssh, odd = (made(ours, at, number) for at, number in
                       (("0.0.0.0", 80), ("::", 8080), ("0.0.0.0", 22), ("0.0.0.0", 81)))
www6.close()
www6 = made(ours, "fd00::1", 80)
# Who may begin what, from there
for source, to, listener, want in (
    ("100.64.0.2", 80, www, True), ("100.64.0.2", 81, odd, False), ("100.64.0.2", 22, ssh, False),
    ("100.64.0.3", 80, www, False), ("192.168.7.9", 22, ssh, True), ("192.168.7.9", 80, www, False),
):
    pair = connected(made(theirs, source), ("100.64.0.1", to), listener)
    assert (pair is not None and passes(*pair) and passes(*pair[::-1])) is want, (source, to)
pair6 = connected(made(theirs, "fd00::2"), ("fd00::1", 80), www6)
assert pair6 is not None and passes(*pair6)
for source, status in (("100.64.0.2", 0), ("100.64.0.3", 1)):
    words = f"nsenter --net=/proc/{far.pid}/ns/net ping -c1 -W1 -I {source} 100.64.0.1"
    assert subprocess.run(words.split(), capture_output=True).returncode == status

# From here
names, odd_names = made(theirs, "100.64.0.2", 53, socket.SOCK_DGRAM), made(theirs, "100.64.0.2", 54, socket.SOCK_DGRAM)
asks = made(ours, "100.64.0.1", 0, socket.SOCK_DGRAM)
asks.connect(("100.64.0.2", 53))
assert passes(asks, names)
names.connect(asks.getsockname())
assert passes(names, asks)
refused = made(ours, "100.64.0.1", 0, socket.SOCK_DGRAM)
refused.connect(("100.64.0.2", 54))
assert not passes(refused, odd_names)
https = made(theirs, "192.168.7.9", 443)
behind = connected(made(ours, "100.64.0.1"), ("192.168.7.9", 443), https)
assert behind is not None and passes(*behind) and passes(*behind[::-1])
assert connected(made(ours, "100.64.0.1"), ("192.168.7.9", 444), made(theirs, "192.168.7.9", 444)) is None

# What one peer may not any more ends at once both ways, for nobody else, and without nft
pair = connected(made(theirs, "100.64.0.2"), ("100.64.0.1", 80), www)
assert pair is not None and passes(*pair) and port.whole == 1
web.record = SimpleNamespace(**{**vars(web.record), "tags": []})
assert guard.look(1.0, device) == frozenset() and port.whole == 1
assert not passes(*pair) and not passes(*pair6)
try:
    pair[1].send(b"answer")
    time.sleep(0.1)
    pair[1].send(b"answer")
    raise AssertionError("our end has not heard of it")
except OSError:
    pass
assert not passes(asks, names) and not passes(names, asks)
assert passes(*behind)
web.record = SimpleNamespace(**{**vars(web.record), "tags": ["tag:web"]})
assert guard.look(2.0, device) == frozenset() and port.whole == 1
assert passes(asks, names) and passes(names, asks)

# Behind a peer, too
device.firewall.policy = policy(inbound, outbound[:1])
assert guard.look(3.0, device) == frozenset() and port.whole == 2
assert not passes(*behind[::-1]) and not passes(*behind)
assert passes(names, asks)

# Nobody renews it
port.renew_filter(1)
assert passes(asks, names)
time.sleep(2.5)
assert not passes(asks, names) and not passes(names, asks)
guard._renew(100.0)
while True:
    asks.settimeout(0.2)
    try:
        asks.recv(100)
    except OSError:
        break
assert passes(names, asks)

# It is another than we left it
device.peers.pop(b"o")
nft(f"flush map inet {table_name(WG)} in4")
web.record = SimpleNamespace(**{**vars(web.record), "tags": []})
assert guard.look(200.0, device) == frozenset() and port.whole == 3
there.kill(), far.kill()
print("seen")
"""


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not here")
def test_who_gets_through() -> None:
    words = ["unshare", "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if "unshare failed" in done.stderr or "unshare: " in done.stderr:
        pytest.skip("no right to make a network namespace")
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr
