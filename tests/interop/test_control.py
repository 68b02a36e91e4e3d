"""edge-wireguard as wg(8), wg-quick(8) and init systems see it."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess

import pytest

from tests.interop.kit import EDGE, GO, READY_S, End, connected, outer, two_ends, two_hosts
from tests.netlab import Host, Lab, until


def pids(host: Host) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def commands(host: Host) -> str:
    """The command lines of all that runs in the host."""
    found = []
    for pid in pids(host):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                found.append(cmdline.read().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return "\n".join(found)


def test_wg_sees_what_it_has_set(lab: Lab) -> None:
    edge, go = two_ends(lab)
    config = lab.directory / "wg0.conf"
    config.write_text(
        f"[Interface]\nListenPort = 4711\nFwMark = 0x99\nPrivateKey = {edge.private_key}\n\n"
        f"[Peer]\nPublicKey = {go.public_key}\nPresharedKey = {go.private_key}\n"
        "AllowedIPs = 10.0.0.0/8, fd00::/8\nEndpoint = [2001:db8::2]:51820\nPersistentKeepalive = 25\n"
    )
    for command in ("setconf", "syncconf", "setconf"):
        edge.host.run("wg", command, "wg0", str(config))
        shown = edge.host.run("wg", "showconf", "wg0").stdout
        assert re.sub(r"\s+", " ", shown).strip() == re.sub(r"\s+", " ", config.read_text()).strip()
    edge.host.run("wg", "addconf", "wg0", str(config))
    dump = edge.host.run("wg", "show", "wg0", "dump").stdout.splitlines()
    assert dump[0].split("\t") == [edge.private_key, edge.public_key, "4711", "0x99"]
    assert dump[1].split("\t")[:4] == [go.public_key, go.private_key, "[2001:db8::2]:51820", "10.0.0.0/8,fd00::/8"]
    edge.set(
        "peer", go.public_key, "allowed-ips", "10.1.0.0/16", "persistent-keepalive", "off", "endpoint", "192.0.2.9:9"
    )
    assert edge.shows("allowed-ips") == {go.public_key: "10.1.0.0/16"}
    assert edge.shows("persistent-keepalive") == {go.public_key: "off"}
    assert edge.endpoint_of(go) == "192.0.2.9:9"
    edge.set("peer", go.public_key, "remove")
    assert edge.shows("endpoints") == {}
    edge.set("private-key", "/dev/null")
    assert "(none)" in edge.host.run("wg", "show", "wg0", "private-key").stdout


def test_the_same_answer_as_wireguard_go(lab: Lab) -> None:
    """`wg show dump` of both, configured alike."""
    ends = two_ends(lab)
    shown = []
    for end in ends:
        script = (
            f"peer {'A' * 42}8= allowed-ips 10.0.0.0/8,fd00::/8,10.0.0.1/32 endpoint 192.0.2.7:7 persistent-keepalive 3"
        )
        end.set("listen-port", "4000", "fwmark", "7", *script.split())
        lines = end.host.run("wg", "show", "wg0", "dump").stdout.splitlines()
        fields = lines[1].split("\t")
        fields[3] = ",".join(sorted(fields[3].split(",")))  # wireguard-go walks a trie, we keep the order
        shown.append([lines[0].split("\t")[2:], fields[:4], fields[7:]])
    assert shown[0] == shown[1]


def test_twenty_thousand_allowed_ips(lab: Lab) -> None:
    edge, go = two_ends(lab)
    ips = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(20_000)]
    config = lab.directory / "many.conf"
    lines = "\n".join(f"AllowedIPs = {', '.join(ips[at : at + 500])}" for at in range(0, len(ips), 500))
    config.write_text(f"[Peer]\nPublicKey = {go.public_key}\n{lines}\n")
    edge.host.run("wg", "setconf", "wg0", str(config))
    assert sorted(edge.shows("allowed-ips")[go.public_key].split()) == sorted(ips)


def test_wg_quick_up_and_down(lab: Lab) -> None:
    a, b = two_hosts(lab)
    far = End(b, GO, 2)
    near_key = a.run("wg", "genkey").stdout.strip()
    near_public = a.run("wg", "pubkey", input=near_key).stdout.strip()
    config = lab.directory / "wgq0.conf"
    config.write_text(
        f"[Interface]\nPrivateKey = {near_key}\nAddress = 10.9.0.1/24, fd09::1/64\nMTU = 1380\n"
        f"[Peer]\nPublicKey = {far.public_key}\nEndpoint = {outer(far)}\nAllowedIPs = 10.9.0.0/24, fd09::/64\n"
    )
    config.chmod(0o600)
    far.set("peer", near_public, "allowed-ips", "10.9.0.1/32,fd09::1/128")
    far.up()
    quick = f"WG_QUICK_USERSPACE_IMPLEMENTATION={EDGE} wg-quick"
    a.sh(f"{quick} up {config} 2>&1")
    assert "mtu 1380" in a.sh("ip link show wgq0")
    until(lambda: a.ping("10.9.0.2") is not None and a.ping("fd09::2") is not None, READY_S, "the peer")
    assert EDGE in commands(a)
    a.sh(f"{quick} down {config} 2>&1")
    until(lambda: EDGE not in commands(a), READY_S, "the end of the process")
    assert not os.path.exists(a.directory / "run/wireguard/wgq0.sock")
    assert "wgq0" not in a.sh("ip link")
    a.sh(f"{quick} up {config} 2>&1")
    until(lambda: a.ping("10.9.0.2") is not None, READY_S, "the peer again")
    a.sh(f"{quick} down {config} 2>&1")
    until(lambda: EDGE not in commands(a), READY_S, "the end of the process")


def test_the_command_returns_when_the_interface_is_ready(lab: Lab) -> None:
    host = lab.host("a")
    host.run(EDGE, "wg0")
    host.run("wg", "show", "wg0")
    mode = os.stat(host.directory / "run/wireguard/wg0.sock").st_mode
    assert stat.S_IMODE(mode) == 0o700 and stat.S_ISSOCK(mode)
    (pid,) = pids(host)
    os.kill(pid, signal.SIGTERM)
    until(lambda: pids(host) == [], READY_S, "the end of the process")
    assert not os.path.exists(host.directory / "run/wireguard/wg0.sock")
    assert "wg0" not in host.sh("ip link")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(lab: Lab, number: signal.Signals) -> None:
    edge, _ = connected(lab)
    edge.process.signal(number)
    assert edge.process.wait() == 0
    assert not os.path.exists(edge.socket)
    assert "wg0" not in edge.host.sh("ip link")


def test_removing_the_socket_ends_it(lab: Lab) -> None:
    edge, _ = two_ends(lab)
    os.unlink(edge.socket)
    assert edge.process.wait(5) == 0
    assert "wg0" not in edge.host.sh("ip link")


def test_removing_the_interface_ends_it(lab: Lab) -> None:
    edge, _ = connected(lab)
    edge.host.ip("link del wg0")
    assert edge.process.wait(5) == 0
    assert not os.path.exists(edge.socket)


def test_what_cannot_be_is_said(lab: Lab) -> None:
    edge, _ = two_ends(lab)
    host = edge.host
    for words, said in (
        ((EDGE, "wg0"), "busy"),
        ((EDGE, "-f", "wg0"), "busy"),
        ((EDGE, "a-name-that-is-too-long"), "1 to 15"),
        ((EDGE,), "Usage"),
        ((EDGE, "-x"), "Usage"),
        ((EDGE, "a", "b"), "Usage"),
    ):
        failed = host.run(*words, check=False)
        assert failed.returncode == (2 if said == "Usage" else 1), (words, failed)
        assert said in failed.stderr
    assert "edge-wireguard" in host.run(EDGE, "--version").stdout
    assert edge.process.running


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(lab: Lab) -> None:
    host = lab.host("a")
    process = host.start(EDGE, "-f", "wg0")
    socket_path = host.directory / "run/wireguard/wg0.sock"
    until(socket_path.exists, READY_S, "the socket")
    process.kill()
    assert socket_path.exists()
    process = host.start(EDGE, "-f", "wg0")
    until(lambda: host.run("wg", "show", "wg0", check=False).returncode == 0, READY_S, "an answer")
    host.ip("link set wg0 name other0")
    failed = host.run(EDGE, "-f", "wg0", check=False)
    assert failed.returncode == 1 and "another process" in failed.stderr
    assert process.running


def test_many_clients(lab: Lab) -> None:
    """Some hold a connection and say nothing; wg is served all the same."""
    edge, _ = two_ends(lab)
    held = []
    try:
        for _ in range(40):
            client = socket.socket(socket.AF_UNIX)
            client.connect(edge.socket)
            client.sendall(b"set=1\nlisten_port=7\n")
            held.append(client)
        assert "51820" in edge.host.run("wg", "show", "wg0", "listen-port").stdout
        assert edge.process.running
    finally:
        for client in held:
            client.close()


def test_secrets_are_not_said(lab: Lab) -> None:
    edge, go = connected(lab)
    logged = edge.process.text()
    for secret in (edge.private_key, go.private_key):
        assert secret not in logged
    assert "Handshake" in logged or "handshake" in logged
