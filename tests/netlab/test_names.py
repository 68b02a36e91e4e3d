"""Names with real agents, hub and resolvers: `dig` on a device, what others get, and the resolvers of the host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Iterator

import pytest

from tests.netlab import Lab, Net, rights, until
from tests.netlab.mesh import Device, Mesh
from tests.netlab.ownetc import OwnEtc

pytestmark = pytest.mark.long

SERVER = "100.100.100.100"


class Site:
    """A hub, and two devices that know each other's names."""

    def __init__(self, lab: Lab) -> None:
        self.net: Net = lab.net("198.51.100.0/24", "2001:db8::/64")
        self.mesh = Mesh(lab, self.net)
        self.mesh.start_hub()
        self.token = self.mesh.token("--uses", "0")
        self.a, self.b = self.join("a"), self.join("b")
        self.dns("search", "lab", "corp.example")

    def join(self, name: str, *options: str) -> Device:
        device = self.mesh.device(name, self.net)
        device.options = list(options)
        device.up(self.token)
        return device

    def dns(self, *words: str) -> None:
        self.mesh.hub.run("edgehub", "dns", *words)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as lab:
        yield Site(lab)


def dig(device: Device, *words: str) -> list[str]:
    """What `dig +short` prints, or the status where that is nothing."""
    command = ("dig", f"@{SERVER}", "+tries=1", "+timeout=6", "+noall", "+answer", "+comments", *words)
    lines = device.host.run(*command, check=False).stdout.splitlines()
    answers = [line.split("\t")[-1].split(" ")[-1] for line in lines if line and not line.startswith(";")]
    status = [line.partition("status: ")[2].partition(",")[0] for line in lines if "status: " in line]
    return answers or status or ["nobody"]


def test_dig(site: Site) -> None:
    a, b = site.a, site.b
    v4, v6 = b.addresses
    assert dig(a, "b.lab") == [v4]
    assert dig(a, "b.lab", "AAAA") == [v6]
    assert dig(a, "+tcp", "b.lab") == [v4]
    assert dig(a, "b") == [v4]
    assert dig(a, "a.lab") == [a.address]
    for address in b.addresses:
        assert dig(a, "-x", address) == ["b.lab."]
        assert dig(a, "+tcp", "-x", address) == ["b.lab."]
    assert dig(a, "nobody.lab") == ["NXDOMAIN"]
    assert dig(a, "b.lab", "MX") == ["NOERROR"]
    assert dig(a, "-x", "100.64.0.0") == ["NXDOMAIN"]
    assert dig(a, "example.com") == ["REFUSED"]
    assert dig(a, "version.bind", "CH", "TXT") == ["REFUSED"]
    assert a.ask("dns", "status")["counters"]["queries"] >= 12


def test_several_queries_on_one_connection_and_junk(site: Site) -> None:
    """RFC 7766, section 6.2.1: they need not be answered in order; what is no DNS ends the connection."""
    question = b"\1b\3lab\0" + struct.pack(">HH", 1, 1)
    queries = b"".join(
        struct.pack(">H", 12 + len(question)) + struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + question
        for number in range(5)
    )
    script = f"""
import socket
with socket.create_connection(({SERVER!r}, 53), 5) as sock:
    sock.settimeout(5)
    sock.sendall({queries!r})
    data = b""
    while len(data) < 5 * {2 + 12 + len(question) + 16}:
        data += sock.recv(4096)
    print(sorted(data[at + 3] for at in range(0, len(data), {2 + 12 + len(question) + 16})))
with socket.create_connection(({SERVER!r}, 53), 5) as sock:
    sock.sendall(b"\\0\\1junk")
    print(sock.recv(10))
crowd = [socket.create_connection(({SERVER!r}, 53), 5) for _ in range(9)]
crowd[8].settimeout(5)
print(crowd[8].recv(10))
"""
    said = site.a.host.run(sys.executable, "-c", script).stdout
    assert said.splitlines() == ["[0, 1, 2, 3, 4]", "b''", "b''"]
    drops = site.a.ask("dns", "status")["drops"]
    assert drops["dns-clients-full"] == 1 and drops["dns-client-bad"] == 1
    until(lambda: site.a.ask("dns", "status")["clients"] == 0, 12, "idle connections are ended")


def test_nobody_else_is_answered(site: Site) -> None:
    """Neither a neighbour on the LAN, nor a peer through the tunnel."""
    a, b = site.a, site.b
    stranger = site.mesh.lab.host("stranger", site.net)
    stranger.ip(f"route add {SERVER}/32 via {a.host.address}")
    for tcp in ("+notcp", "+tcp"):
        result = stranger.run("dig", f"@{SERVER}", "+tries=1", "+timeout=1", tcp, "a.lab", check=False)
        assert "ANSWER SECTION" not in result.stdout
    # a peer that has no name server of its own sends what is for that address into the tunnel, to a
    script = (
        "import socket\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sock.settimeout(1)\n"
        f"sock.bind(({b.address!r}, 0))\n"
        f"sock.sendto(b'x' * 30, ({a.address!r}, 53))\n"
    )
    b.host.run(sys.executable, "-c", script)
    b.host.run(sys.executable, "-c", script.replace(a.address, SERVER))
    assert "dns-stranger" not in a.ask("dns", "status")["drops"]


def test_records_split_domains_and_search_reach_the_devices(site: Site) -> None:
    a, b = site.a, site.b
    corp = site.mesh.lab.host("corp", site.net)
    records = ["--address=/www.corp.example/10.20.0.9", "--txt-record=big.corp.example," + ",".join(["x" * 200] * 12)]
    corp.start("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", *records)
    site.dns("record", "add", "db", "CNAME", "b")
    site.dns("record", "add", "printer", "A", "192.168.7.20")
    site.dns("set-split", "corp.example", corp.address)
    for device in (a, b):
        until(lambda device=device: device.ask("dns", "status")["split"], 10, "the map is there")  # type: ignore[misc]
    assert dig(a, "db.lab") == ["b.lab.", b.address]
    assert dig(b, "db.lab", "AAAA") == ["b.lab.", b.addresses[1]]
    assert dig(a, "printer.lab") == ["192.168.7.20"]
    until(lambda: dig(a, "www.corp.example") == ["10.20.0.9"], 10, "dnsmasq answers")
    assert dig(a, "nope.corp.example") in (["NXDOMAIN"], ["REFUSED"])  # whatever dnsmasq says
    assert len("".join(dig(a, "big.corp.example", "TXT"))) > 200  # by TCP, to us and from us
    taken = site.mesh.hub.run("edgehub", "dns", "record", "add", "b", "A", "192.0.2.1", check=False)
    assert taken.returncode == 1 and "has it" in taken.stderr
    site.dns("unset-split", "corp.example")
    site.dns("record", "remove", "printer")
    until(lambda: dig(a, "printer.lab") == ["NXDOMAIN"], 10, "the record is gone")
    assert dig(a, "www.corp.example") == ["REFUSED"]


def test_without_the_peer_and_without_the_hub(site: Site) -> None:
    a, b = site.a, site.b
    assert dig(a, "b.lab") == [b.address]
    b.host.run("edgeagent", "down")
    assert dig(a, "b.lab") == [b.address]  # its address does not depend on whether it is there
    assert site.mesh.server is not None
    site.mesh.server.kill()
    until(lambda: a.ask("status")["hub"]["hub_up"] is False or not a.ask("status")["hub"]["connected"], 20, "no hub")
    assert dig(a, "b.lab") == [b.address]
    assert dig(a, "a.lab") == [a.address]
    assert dig(a, "another.lab") == ["SERVFAIL"]  # not NXDOMAIN: who knows
    b.up()
    site.mesh.start_hub()
    until(lambda: dig(a, "another.lab") == ["NXDOMAIN"], 40, "the hub is asked again")


def test_a_removed_device_knows_no_names(site: Site) -> None:
    out = site.join("out")
    assert dig(out, "b.lab") == [site.b.address]
    site.mesh.hub.run("edgehub", "devices", "remove", "out", "--yes")
    until(lambda: dig(out, "b.lab") == ["REFUSED"], 10, "its broker session is over, and with it what it may ask")


@pytest.mark.parametrize("binds", ["--bind-dynamic", "--bind-interfaces", "--user=root"])
def test_another_name_server_may_listen_everywhere_and_start_again(site: Site, binds: str) -> None:
    """As on OpenWrt, where it is the LAN's: by UDP we are still asked, and it finds all that it wants to bind."""
    device = site.mesh.device(f"beside{binds.strip('-').replace('=', '-')}", site.net)
    words = ("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", binds)
    asking = ("dig", f"@{device.host.address}", "+short", "+tries=1", "+timeout=1", "x.other.example")
    for turn in range(2):
        other = device.host.start(*words, "--address=/other.example/192.0.2.1", "--log-facility=-")
        until(lambda: "192.0.2.1" in device.host.run(*asking, check=False).stdout, 5, "the other one answers")
        if not turn:
            device.up(site.token)
            status = device.ask("dns", "status")
            assert status["port"] == 53 and not status["tcp"]
        assert dig(device, "b.lab") == [site.b.address]
        other.kill()
    assert dig(device, "b.lab") == [site.b.address]


def test_where_the_port_is_taken_another_is_used_and_said(site: Site) -> None:
    device = site.mesh.device("taken", site.net)
    script = (
        "import socket, time\n"
        "socks = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]\n"
        "for sock in socks: sock.bind(('0.0.0.0', 53))\n"
        "socks[1].listen(); print('bound', flush=True); time.sleep(300)\n"
    )
    device.host.start(sys.executable, "-c", script).expect("bound")
    device.up(site.token)
    assert device.ask("dns", "status")["port"] == 5354
    assert dig(device, "-p", "5354", "b.lab") == [site.b.address]
    off = site.join("off", "--dns", "off")
    assert off.ask("dns", "status") == {"mode": "off"} and dig(off, "b.lab") == ["nobody"]


# The host's own resolver


def test_a_plain_file_is_taken_and_comes_back(site: Site) -> None:
    """Forwarding all else to what stood there, without private answers for public names; undone by `down`, after kill
    -9 by the next start or by `dns restore`; and somebody else's file is left alone."""
    lan = site.mesh.lab.host("lan", site.net)
    names = [
        "--address=/good.example/192.0.2.80",
        "--address=/evil.example/192.168.1.1",
        "--address=/nas.lan/192.168.1.2",
    ]
    lan.start("dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", *names)
    device = site.mesh.device("plain", site.net)
    etc = OwnEtc(device.host)
    before = f"# mine\nnameserver {lan.address}\nsearch office.example\noptions timeout:2\n"
    etc.resolv_conf.write_text(before)
    device.words, device.options = etc.words, ["--dns", "file"]
    device.up(site.token)

    def is_ours() -> bool:
        return etc.resolv_conf.read_text().startswith("# edgeagent")

    def getent(name: str) -> str:
        return etc.run("getent", "ahostsv4", name, check=False).stdout.partition(" ")[0]

    until(is_ours, 5, "resolv.conf is ours")
    text = etc.resolv_conf.read_text()
    assert f"nameserver {SERVER}\nsearch lab corp.example office.example\noptions timeout:2\n" in text
    assert getent("b") == getent("b.lab") == site.b.address
    until(lambda: getent("good.example") == "192.0.2.80", 10, "others are asked for others")
    assert getent("nas.lan") == "192.168.1.2"
    assert getent("evil.example") == ""
    status = device.ask("dns", "status")
    assert status["found"] == [lan.address] and status["drops"]["dns-rebind"] >= 1
    assert status["resolver"]["state"] == "done"

    os.kill(device.pid(), signal.SIGKILL)
    until(lambda: device.host.run("edgeagent", "version", "--json").stdout.find('"agent": null') >= 0, 5, "its end")
    assert is_ours()
    etc.run("edgeagent", "dns", "restore")
    assert etc.resolv_conf.read_text() == before and list(etc.path.glob("resolv.conf*")) == [etc.resolv_conf]

    device.up()
    until(is_ours, 5, "resolv.conf is ours")
    os.kill(device.pid(), signal.SIGKILL)
    until(lambda: device.host.run("edgeagent", "version", "--json").stdout.find('"agent": null') >= 0, 5, "its end")
    device.options = ["--dns", "off"]
    device.up()
    assert etc.resolv_conf.read_text() == before

    etc.run("edgeagent", "down")
    device.options = ["--dns", "file"]
    device.up()
    until(is_ours, 5, "resolv.conf is ours")
    etc.run("edgeagent", "down")
    assert etc.resolv_conf.read_text() == before

    device.up()
    until(is_ours, 5, "resolv.conf is ours")
    etc.resolv_conf.write_text("# by a DHCP client\n")
    assert device.ask("dns", "status")["resolver"]["state"].startswith("overwritten")
    etc.run("edgeagent", "down")
    assert etc.resolv_conf.read_text() == "# by a DHCP client\n"


def test_by_itself_it_takes_a_file_that_nobody_manages(site: Site) -> None:
    """In a process namespace in which process 1 is in the same network namespace, as on a machine of its own."""
    device = site.mesh.device("auto", site.net)
    etc = OwnEtc(device.host)
    etc.resolv_conf.write_text("nameserver 198.51.100.99\n")
    token = device.host.directory / "token"
    token.write_text(site.token)
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    etc.start(*alone, "edgeagent", "run", "--join-file", str(token), "--hostname", "auto", name="agent")

    def told() -> bool:
        result = device.host.run("edgeagent", "dns", "status", "--json", check=False)
        return result.returncode == 0 and json.loads(result.stdout)["resolver"]["state"] == "done"

    until(told, 20, "it has joined and taken the file")
    assert device.ask("dns", "status")["resolver"]["way"] == "file"
    assert etc.run("getent", "ahostsv4", "b").stdout.startswith(site.b.address)
    device.host.run("edgeagent", "down")
    assert etc.resolv_conf.read_text() == "nameserver 198.51.100.99\n"


@pytest.mark.parametrize("way", ["resolved", "resolvconf"])
def test_what_stand_ins_of_resolvers_are_told(site: Site, way: str) -> None:
    device = site.mesh.device(f"by-{way}", site.net)
    etc = OwnEtc(device.host)
    etc.resolv_conf.write_text("nameserver 198.51.100.99\n")
    program = {"resolved": "resolvectl", "resolvconf": "resolvconf"}[way]
    if way == "resolvconf":
        etc.run("mkdir", "-p", "/run/resolvconf/interface")
        etc.run(
            "sh", "-c", "printf 'nameserver 198.51.100.99\nsearch office.example\n' >/run/resolvconf/interface/eth0"
        )
    log = etc.stand_in(program, f"[ -t 0 ] || cat >>{device.host.directory}/{program}.in")
    device.words, device.options = etc.words, ["--dns", way]
    device.up(site.token)
    until(lambda: device.ask("dns", "status")["resolver"]["state"] == "done", 5, "it is told")
    said = log.read_text().splitlines()
    if way == "resolved":
        assert said[0] == f"dns edge0 {SERVER}"
        assert said[1].startswith(
            "domain edge0 lab ~64.100.in-addr.arpa ~65.100.in-addr.arpa"
        )  # corp.example is others'
        assert said[1].endswith(".d.f.ip6.arpa") and said[2] == "default-route edge0 no"
        etc.run("edgeagent", "down")
        assert log.read_text().splitlines()[-1] == "revert edge0"
    else:
        assert said == ["-a tun.edge0 -m 0 -x"]
        told = (device.host.directory / "resolvconf.in").read_text()
        assert told == f"nameserver {SERVER}\nsearch lab corp.example office.example\n"
        until(lambda: bool(dig(device, "b.lab")), 5, "an answer")
        assert device.ask("dns", "status")["found"] == ["198.51.100.99"]
        os.kill(device.pid(), signal.SIGKILL)
        until(lambda: device.host.run("edgeagent", "version", "--json").stdout.find('"agent": null') >= 0, 5, "its end")
        etc.run("edgeagent", "dns", "restore")
        assert log.read_text().splitlines()[-1] == "-d tun.edge0"


def test_what_a_stand_in_of_uci_is_told(site: Site) -> None:
    """With a configuration that it keeps, so that what is undone is what was done."""
    device = site.mesh.device("by-uci", site.net)
    etc = OwnEtc(device.host)
    etc.resolv_conf.write_text("nameserver 127.0.0.1\n")
    (etc.path / "config").mkdir()
    (etc.path / "init.d").mkdir()
    (etc.path / "config/dhcp").write_text("config dnsmasq\n")
    store = device.host.directory / "uci"
    store.mkdir()
    (store / "dhcp.@dnsmasq[0].server").write_text("/theirs/192.0.2.1\n")
    # the verbs that are used, on a file an option
    etc.stand_in(
        "uci",
        f"""
while [ "${{1#-}}" != "$1" ]; do [ "$1" = -d ] && shift; shift; done
cd {store}; option=${{2%%=*}} value=${{2#*=}}
case $1 in
    get) cat "$option" ;;
    add_list) printf '%s\\n' "$value" >>"$option" ;;
    del_list) grep -vxF "$value" "$option" >new || true; mv new "$option" ;;
esac""",
    )
    reloads = device.host.directory / "reloads"
    (etc.path / "init.d/dnsmasq").write_text(f"#!/bin/sh\necho $1 >>{reloads}\n")
    (etc.path / "init.d/dnsmasq").chmod(0o755)

    def option(name: str) -> list[str]:
        return (store / f"dhcp.@dnsmasq[0].{name}").read_text().splitlines()

    device.words, device.options = etc.words, ["--dns", "dnsmasq"]
    device.up(site.token)
    until(lambda: device.ask("dns", "status")["resolver"]["state"] == "done", 10, "it is told")
    assert device.ask("dns", "status")["resolver"]["way"] == "uci"
    servers = option("server")
    assert servers[0] == "/theirs/192.0.2.1" and servers[1].startswith("/lab/64.100.in-addr.arpa/65.100.")
    assert all(server.endswith(f"/{SERVER}") and len(server) < 1_000 for server in servers[1:])
    assert option("rebind_domain") == ["lab"]
    os.kill(device.pid(), signal.SIGKILL)
    until(lambda: device.host.run("edgeagent", "version", "--json").stdout.find('"agent": null') >= 0, 5, "its end")
    assert option("server") == servers
    device.up()  # undone, and done again
    until(lambda: device.ask("dns", "status")["resolver"]["state"] == "done", 10, "it is told")
    assert option("server") == servers
    etc.run("edgeagent", "down")
    assert option("server") == ["/theirs/192.0.2.1"] and option("rebind_domain") == []
    assert reloads.read_text().splitlines() == ["reload"] * 4


def test_a_real_dnsmasq_with_our_file(site: Site) -> None:
    device = site.mesh.device("by-dnsmasq", site.net)
    etc = OwnEtc(device.host)
    etc.resolv_conf.write_text("nameserver 127.0.0.1\n")
    (etc.path / "dnsmasq.d").mkdir()
    start = (
        f"dnsmasq --conf-file=/dev/null --conf-dir=/etc/dnsmasq.d --no-hosts --no-resolv --stop-dns-rebind "
        f"--listen-address=127.0.0.1 --bind-interfaces --pid-file={device.host.directory}/dnsmasq.pid"
    )
    # the service manager's part
    etc.stand_in("systemctl", f"pid={device.host.directory}/dnsmasq.pid; kill $(cat $pid); sleep 0.3; {start}")
    etc.run("sh", "-ec", start)
    device.words, device.options = etc.words, ["--dns", "dnsmasq"]
    device.up(site.token)
    until(lambda: device.ask("dns", "status")["resolver"]["state"] == "done", 10, "it is told")

    def ask(*words: str) -> str:
        return etc.run("dig", "@127.0.0.1", "+short", "+tries=1", "+timeout=3", *words, check=False).stdout.strip()

    until(lambda: ask("b.lab") == site.b.address, 10, "dnsmasq asks us")
    assert ask("b.lab", "AAAA") == site.b.addresses[1]  # a private address, past its protection against rebinding
    assert ask("-x", site.b.address) == "b.lab."
    etc.run("edgeagent", "down")
    assert list((etc.path / "dnsmasq.d").iterdir()) == []
    until(lambda: ask("b.lab") == "", 5, "it asks us no more")
    etc.run("sh", "-ec", f"kill $(cat {device.host.directory}/dnsmasq.pid)")


RESOLVED = next(
    (path for path in ("/usr/lib/systemd/systemd-resolved", "/lib/systemd/systemd-resolved") if os.path.exists(path)),
    os.environ.get("EDGEMESH_RESOLVED", ""),
)


@pytest.mark.skipif(
    not (RESOLVED and shutil.which("dbus-daemon")),
    reason="no systemd-resolved here (its package would take over this machine's resolv.conf, so it is not asked for)",
)
def test_a_real_systemd_resolved(site: Site) -> None:
    device = site.mesh.device("with-resolved", site.net)
    etc = OwnEtc(device.host)
    etc.resolv_conf.write_text("nameserver 127.0.0.53\n")
    passwd = etc.path / "passwd"
    if "systemd-resolve:" not in passwd.read_text():
        passwd.write_text(passwd.read_text() + "systemd-resolve:x:0:0::/:/bin/false\n")
    bus = device.host.directory / "bus.conf"
    bus.write_text(
        "<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>"
        '<policy context="default"><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/></policy>'
        "</busconfig>"
    )
    etc.run("mkdir", "-p", "/run/dbus", "/run/systemd/resolve")
    etc.start("dbus-daemon", "--nofork", f"--config-file={bus}", name="dbus")
    until(lambda: etc.run("test", "-S", "/run/dbus/system_bus_socket", check=False).returncode == 0, 5, "the bus")
    etc.start(RESOLVED, name="resolved")
    until(lambda: etc.run("resolvectl", "status", check=False).returncode == 0, 10, "systemd-resolved")
    device.words, device.options = etc.words, ["--dns", "resolved"]
    device.up(site.token)
    until(lambda: device.ask("dns", "status")["resolver"]["state"] == "done", 10, "it is told")

    def ask(*words: str) -> str:
        return etc.run("dig", "@127.0.0.53", "+short", "+tries=1", "+timeout=4", *words, check=False).stdout.strip()

    until(lambda: ask("b.lab") == site.b.address, 10, "systemd-resolved asks us")
    assert ask("b.lab", "AAAA") == site.b.addresses[1]
    assert ask("-x", site.b.address) == "b.lab."
    assert json.dumps(site.b.address)[1:-1] in etc.run("resolvectl", "query", "b").stdout
    etc.run("edgeagent", "down")
    assert ask("b.lab") == ""
