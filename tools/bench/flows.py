"""What a table of flows or of peers costs: many new flows beside a TCP stream, and an interface with 64 peers.

One source that sends 10,000 datagrams a second, each of a flow of its own, is what a scanner or a busy resolver is to a
tunnel. How much that takes from a TCP stream is compared with as many datagrams of one flow, which take their part too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from tests.netlab import Host, Lab, LabError, Process, until
from tools.bench import blast, peers
from tools.bench.datapath import context, set_up
from tools.bench.figures import Figure, Note, Options, Row, Say, bench_by_options
from tools.bench.peers import Contender
from tools.bench.procfs import forget_peak, peak_rss_mib, rss_mib
from tools.bench.rounds import Rounds
from tools.bench.tunnel import Gauges, Tunnel, bring_up, configure, parse_iperf, public_key, start

ROUNDS = 3
SECONDS = 4
NEW_FLOWS_PPS = 10_000
AHEAD_S = 1.0  # the blaster runs before the stream does
KINDS = {"one": "all of one flow", "source": "new source ports", "destination": "new target ports"}
PEERS = 64
STREAMS = 4
HUB_IF, HUB_PORT, HUB_ADDRESS = "hub", "51820", "10.78.0.1"
PORT_BASE = 52_000
PINGS_PER_S = 2
SETTLE_S = 2.0
# Only what comes out of a tunnel: the tunnels' own ports are among these
_DISCARD = """\
table ip blast {
    chain input { type filter hook input priority 0; iifname "b-*" udp dport 20000-60000 counter drop; }
}
"""


@bench_by_options
def flows(say: Say, options: Options) -> Iterator[Row]:
    """10,000 new flows a second from one source beside a TCP stream; then 64 peers at one interface."""
    contenders, missing = peers.find(options.only, options.build_all)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    load = os.getloadavg()[0]
    results = Rounds()
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        hosts = (lab.host("left", net), lab.host("right", net))
        hosts[1].run("nft", "-f", "-", input=_DISCARD)  # nobody answers, and no ICMP comes back
        tunnels, absent = set_up(contenders, hosts, say)
        missing += absent
        if not tunnels:
            raise LabError("nobody to measure: " + "; ".join(f"{each.key}: {each.why}" for each in missing))
        there = [tunnel.contender for tunnel in tunnels]
        for number in range(rounds):
            for tunnel in tunnels:
                say(f"{tunnel.contender.name}: new flows, round {number + 1} of {rounds}")
                results.add(number, tunnel.contender.key, _beside(tunnel, seconds))
        notes = list(context(tunnels, missing, load))
    for contender in there:
        say(f"{contender.name}: {PEERS} peers")
        far = next((each for each in contenders if each.key in ("go", "debian")), contender)
        try:
            results.add(0, contender.key, _many_peers(contender, far, seconds))
        except LabError as error:
            notes.append(Note(f"{contender.key}: not {PEERS} peers", str(error).splitlines()[0]))
    yield from _figures(results, there)
    yield Note(
        "how", f"{rounds} rounds of {seconds} s; {NEW_FLOWS_PPS:,} datagrams/s of 64 B beside TCP; {PEERS} peers once"
    )
    yield from notes


def _figures(results: Rounds, contenders: list[Contender]) -> Iterator[Figure]:
    gauges = [("alone", "TCP, 1 stream alone", "Mbit/s", "more")]
    gauges += [(kind, f"TCP kept, {how}", "%", "more") for kind, how in KINDS.items()]
    gauges += [(f"{kind}-arrived", f"arrived, {how}", "%", "more") for kind, how in KINDS.items()]
    gauges += [
        ("peers-rss", f"RSS, {PEERS} peers, idle", "MiB", "less"),
        ("peers-peak", f"RSS, {PEERS} peers, peak under load", "MiB", "less"),
        ("peers-tcp", f"TCP, {STREAMS} of {PEERS} peers", "Mbit/s", "more"),
        ("peers-pings", f"pings answered under it, {PEERS} peers", "%", "more"),
    ]
    ours = [each for each in contenders if each.key in peers.OURS] or contenders[:1]
    basis = peers.reference([each for each in contenders if each not in ours])
    for key, title, unit, better in gauges:
        for each in ours:
            value = results.median(key, each.key)
            its = None if basis is None else results.median(key, basis.key)
            if value is None:
                continue
            peer = "nobody else took part" if basis is None or its is None else (basis.name, its)
            by = None if basis is None else results.ratio(key, each.key, basis.key)
            yield Figure(
                f"{title}: {each.key if each.key in peers.OURS else each.name}",
                value,
                unit,
                peer=peer,
                ratio=by,
                better=better,
            )


# New flows


def _beside(tunnel: Tunnel, seconds: int) -> Gauges:
    """A stream alone, then beside each kind of datagrams: Mbit/s, per cent of it, and per cent of datagrams arrived."""
    sender, receiver = tunnel.hosts
    alone = [tunnel.tcp(seconds)[0]]
    found: Gauges = {}
    beside: dict[str, float] = {}
    for kind in KINDS:
        before = _discarded(receiver)
        span = str(seconds + 2 * AHEAD_S)
        words = ("flows", *tunnel.addresses, str(NEW_FLOWS_PPS), span, kind)
        blaster = sender.start(blast.program(), *words, name=f"flows-{tunnel.contender.key}")
        time.sleep(AHEAD_S)
        beside[kind], _ = tunnel.tcp(seconds)
        blaster.wait(seconds + 10)
        sent, _ = blast.parse_sent(blaster.text())
        found[f"{kind}-arrived"] = 100 * (_discarded(receiver) - before) / sent
    alone.append(tunnel.tcp(seconds)[0])  # before and after: machines drift
    found["alone"] = sum(alone) / 2
    return {**found, **{kind: 100 * mbits / (sum(alone) / 2) for kind, mbits in beside.items()}}


def _discarded(host: Host) -> int:
    text = host.run("nft", "list", "table", "ip", "blast").stdout
    found = re.search(r"counter packets (\d+)", text)
    if found is None:
        raise LabError(f"nft lists no counter: {text}")
    return int(found[1])


# Many peers


def _many_peers(contender: Contender, far: Contender, seconds: int) -> Gauges:
    """A hub of one implementation, and in one other namespace PEERS devices of `far`, an interface each."""
    with Lab() as lab:
        net = lab.net("198.51.100.0/24")
        hub, field = lab.host("hub", net), lab.host("field", net)
        process = start(contender, hub, HUB_IF)
        private = hub.sh("wg genkey").strip()
        configure(hub, HUB_IF, private, HUB_PORT)
        bring_up(hub, HUB_IF, f"{HUB_ADDRESS}/16")
        _populate(field, far, hub, public_key(hub, private))
        addresses = [_address(number) for number in range(PEERS)]
        until(lambda: _answered(hub, addresses, 1) == PEERS, 30, f"answers of {PEERS} peers")
        time.sleep(SETTLE_S)
        idle = rss_mib(process.pid)
        forget_peak(process.pid)
        pinging = hub.start("sh", "-c", _ping_script(addresses, seconds * PINGS_PER_S), name="pings")
        mbits = sum(_streams(hub, field, seconds))
        pinging.wait(seconds + 30)
        answered = sum(map(int, re.findall(r"(\d+) received", pinging.text())))
        share = 100 * answered / (PEERS * seconds * PINGS_PER_S)
        return {"peers-rss": idle, "peers-peak": peak_rss_mib(process.pid), "peers-tcp": mbits, "peers-pings": share}


def _populate(field: Host, far: Contender, hub: Host, hub_key: str) -> None:
    """PEERS interfaces far0, far1 … that all know the hub, and the hub them."""
    words = " ".join(far.command)
    script = f"for n in $(seq 0 {PEERS - 1}); do {words} far$n & done; wait"
    process = field.start("sh", "-c", script, name="field", env={"LOG_LEVEL": "error", **far.env})
    try:
        _configure_all(field, far, hub, hub_key)
    except LabError as error:
        said = " ".join(process.tail(3).split())
        raise LabError(f"{str(error).splitlines()[0]}; {far.name} said: {said or 'nothing'}") from None


def _configure_all(field: Host, far: Contender, hub: Host, hub_key: str) -> None:
    sockets = [field.directory / "run/wireguard" / f"far{number}.sock" for number in range(PEERS)]
    until(lambda: all(socket.exists() for socket in sockets), 60, f"{PEERS} interfaces of {far.name}")
    for number in range(PEERS):
        ifname, address = f"far{number}", _address(number)
        private = field.sh("wg genkey").strip()
        configure(field, ifname, private, str(PORT_BASE + number))
        endpoint = f"{hub.address}:{HUB_PORT}"
        allowed = f"{HUB_ADDRESS}/32"
        field.run("wg", "set", ifname, "peer", hub_key, "endpoint", endpoint, "allowed-ips", allowed)
        bring_up(field, ifname, f"{address}/32")
        # What answers leave by is a matter of their source: each interface has a table of its own
        table = str(1000 + number)
        field.ip(f"route add {HUB_ADDRESS}/32 dev {ifname} table {table}", f"rule add from {address} table {table}")
        key = public_key(field, private)
        endpoint = f"{field.address}:{PORT_BASE + number}"
        hub.run("wg", "set", HUB_IF, "peer", key, "endpoint", endpoint, "allowed-ips", f"{address}/32")


def _address(number: int) -> str:
    return f"10.78.1.{number + 1}"


def _ping_script(addresses: list[str], count: int) -> str:
    each = f"ping -n -q -c{count} -i{1 / PINGS_PER_S:g} -W2"
    return "for a in " + " ".join(addresses) + f"; do {each} $a & done; wait"


def _answered(hub: Host, addresses: list[str], count: int) -> int:
    text = hub.sh(_ping_script(addresses, count))
    return sum(map(int, re.findall(r"(\d+) received", text)))


def _streams(hub: Host, field: Host, seconds: int) -> list[float]:
    """One stream from the hub to each of STREAMS peers, at once."""
    ends: list[tuple[Process, Process]] = []
    for number in range(STREAMS):
        address = _address(number)
        server = field.start("iperf3", "-s", "-1", "--forceflush", "-B", address, name=f"server-{number}")
        server.expect("listening")
        client = hub.start("iperf3", "-J", "-t", str(seconds), "-c", address, name=f"client-{number}")
        ends.append((server, client))
    for server, client in ends:
        client.wait(seconds + 20)
        server.wait()
    return [parse_iperf(client.text())[0] for _, client in ends]
