"""What the command line of `edgeagent` may say: verbs, options, help."""

from __future__ import annotations

import argparse

from edgeagent import cli_join, cli_verbs
from edgeagent.version import VERSION

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

UP_TIMEOUT_S = 60.0
CHECK_TIMEOUT_S = 6.0

_EPILOG = """\
examples:
  edgeagent up --join-file token.txt    join a network and stay in it
  edgeagent up --hub https://hub.example.org
                                        join by a link that somebody approves in the dashboard
  edgeagent up                          start again after a stop
  edgeagent status                      what this device is doing
  edgeagent ping gw-2                   is it there, how far, by which path
  edgeagent netcheck                    what this device's network lets through
  edgeagent doctor                      what of this device is right, and what to do about the rest
  edgeagent peers --json | jq .         the same as data

exit status: 0 ok, 1 failed, 2 usage, 3 not running, 4 refused by the hub, 5 timed out
"""


class _Listed(argparse.Action):
    """Collects what an option is given, before the verb and after it, into one text with ',' between."""

    _values = ""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, _option: object = None) -> None:
        self._values = f"{self._values},{values}".lstrip(",")
        setattr(namespace, self.dest, self._values)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeagent",
        description="The device agent of an edge mesh: joins this device to a private WireGuard network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # The same options before and after the verb: SUPPRESS keeps the later one from blotting out the earlier.
    group = common.add_argument_group("where the agent is")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="settings, lines of name = value (/etc/edgeagent.conf)",
    )
    group.add_argument(
        "--state-dir",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="keys and cache (/var/lib/edgeagent; EDGEAGENT_STATE)",
    )
    group.add_argument(
        "--socket",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="local API (/run/edgeagent/agent.sock; EDGEAGENT_SOCKET)",
    )
    group.add_argument("--interface", metavar="NAME", default=argparse.SUPPRESS, help="network interface (edge0)")
    group.add_argument("--port", metavar="N", default=argparse.SUPPRESS, help="UDP port (51820; 0: any)")
    group.add_argument(
        "--mtu", metavar="BYTES", default=argparse.SUPPRESS, help="largest packet inside the tunnel (1280)"
    )
    group.add_argument(
        "--uplinks",
        metavar="LIST",
        default=argparse.SUPPRESS,
        help="interfaces to reach others by, the best first (all)",
    )
    group.add_argument(
        "--port-mapping",
        metavar="on|off",
        default=argparse.SUPPRESS,
        help="ask routers to open the UDP port: PCP, NAT-PMP, UPnP (on)",
    )
    group.add_argument(
        "--metered",
        metavar="NAMES",
        default=argparse.SUPPRESS,
        help="interfaces whose bytes cost money, comma separated, * for any characters (auto: modems)",
    )
    group.add_argument(
        "--budget",
        metavar="RULES",
        default=argparse.SUPPRESS,
        help="what metered interfaces may take: wwan0=2MB/day,60MB/month",
    )
    group.add_argument(
        "--modem",
        metavar="LIST",
        default=argparse.SUPPRESS,
        help="who is asked about modems: off, mmcli, or devices such as /dev/ttyUSB2, /dev/cdc-wdm0=wwan0 (auto)",
    )
    group.add_argument(
        "--memory-profile",
        metavar="PROFILE",
        default=argparse.SUPPRESS,
        help="how large tables may become: small, normal, large (normal)",
    )
    group.add_argument(
        "--engine",
        metavar="ENGINE",
        default=argparse.SUPPRESS,
        help="what moves the packets: kernel, fast, pure, or no agent without it; auto: the best of them here (auto)",
    )
    group.add_argument(
        "--limit",
        dest="limits",
        metavar="NAME=VALUE",
        action=_Listed,
        default=argparse.SUPPRESS,
        help="one of these ceilings, as in peers=32; may be repeated",
    )
    group.add_argument(
        "--memory-ceiling",
        metavar="MIB",
        default=argparse.SUPPRESS,
        help="MiB that the agent stays below; off (auto: by --memory-profile)",
    )
    group.add_argument(
        "--dns",
        metavar="MODE",
        default=argparse.SUPPRESS,
        help="how programs here get the network's names: auto, resolved, resolvconf, dnsmasq, file (/etc/resolv.conf); "
        "server: answer at 100.100.100.100, change nothing; off (auto)",
    )
    group.add_argument(
        "--allow-commands",
        metavar="VERBS",
        default=argparse.SUPPRESS,
        help="what the hub may tell this device to do: all, none, or a list (all)",
    )
    group.add_argument(
        "--scripts",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="programs that the hub may run here (/etc/edgeagent/scripts)",
    )
    group.add_argument(
        "--watchdog",
        metavar="DEVICE",
        default=argparse.SUPPRESS,
        help="the board's watchdog: auto, off, /dev/watchdog[,SECONDS] (auto: as the board's description says)",
    )
    group.add_argument(
        "--trial",
        metavar="S",
        default=argparse.SUPPRESS,
        help="seconds in which a version that an update brought must show that it is sound (600)",
    )
    group.add_argument(
        "--lock",
        metavar="KEYS",
        default=argparse.SUPPRESS,
        help="keys of the network's lock to trust, comma separated (those of the token, or the first that are named)",
    )
    group.add_argument(
        "--log-level", metavar="LEVEL", default=argparse.SUPPRESS, help="debug, info, warning, error (info)"
    )
    for action in group._group_actions:
        parser._add_action(action)
    parser.add_argument(
        "--version", action="version", version=f"edgeagent {VERSION}", help="print this command's version"
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False, **more)
        sub.set_defaults(run=run)
        return sub

    def as_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="data instead of text")

    def join_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--join-file", metavar="FILE", help="file with the join token; - is standard input")
        sub.add_argument("--hostname", metavar="NAME", help="host name to ask for (this system's)")

    def route_options(sub: Any) -> None:
        sub.add_argument(
            "--advertise-routes",
            metavar="LIST",
            help="offer to route these prefixes for others, as in 192.168.7.0/24,fd00:7::/64; empty: none. "
            "10.77.1.0/24=192.168.7.0/24: under another prefix, where several sites have the same; 192.168.7.0/24@3: "
            "under IPv6 addresses, as that of site 3 (1 to 65535; needs tayga)",
        )
        sub.add_argument(
            "--accept-routes",
            metavar="yes|no",
            choices=("yes", "no"),
            help="use what others route, once approved (yes)",
        )

    up = verb(
        "up",
        cli_join.up,
        "start the agent in the background if none runs, join when a token is given, wait until the address is there",
        epilog="EDGEAGENT_TOKEN may hold the token. A token on the command line can be read by other users of this "
        "system while the command runs; the background process gets it through a socket, never in its arguments.",
    )
    up.add_argument("--join", metavar="TOKEN", help="join token (em1.…)")
    join_options(up)
    up.add_argument(
        "--hub",
        metavar="URL",
        help="instead of a token: the hub's dashboard (https://hub.example.org); shows a link to approve the device by",
    )
    up.add_argument(
        "--hub-ca", metavar="FILE", help="certificate (PEM) that the dashboard's is signed with (the system's)"
    )
    up.add_argument(
        "--timeout", metavar="S", type=float, default=UP_TIMEOUT_S, help=f"seconds to wait ({UP_TIMEOUT_S:.0f})"
    )
    offer = up.add_argument_group("routes", "what is said here is kept; what is not stays as it was (edgeagent routes)")
    route_options(offer)
    offer.add_argument(
        "--no-snat",
        dest="snat",
        action="store_const",
        const="off",
        help="leave sources as they are; the prefixes need a route back",
    )
    offer.add_argument(
        "--advertise-exit-node",
        dest="offers_exit",
        action="store_const",
        const="on",
        help="offer to be an exit node: the way to the internet for others",
    )
    offer.add_argument("--exit-node", metavar="NAME", help="send everything through this device; off: no longer")
    offer.add_argument(
        "--exit-node-allow-lan", action="store_true", help="but not what is for this device's own networks"
    )
    as_json(up)

    verb("down", cli_join.down, "stop the agent; the device stays a member of its network")
    status = verb("status", cli_verbs.status, "what this device is doing")
    status.add_argument("--log", action="store_true", help="add the newest log lines")
    status.add_argument(
        "--memory",
        action="store_true",
        help="instead: every table, queue and ring with its ceiling and what gave way, and the process beside its own",
    )
    as_json(status)
    as_json(verb("peers", cli_verbs.peers, "the peers that this device knows now"))
    ping = verb("ping", cli_verbs.ping, "send echo requests through the tunnel and say by which path the answers came")
    ping.add_argument("target", metavar="NAME|IP", help="host name or address of a device of this network")
    ping.add_argument("-c", "--count", metavar="N", type=int, default=4, help="how many (4)")
    ping.add_argument("-i", "--interval", metavar="S", type=float, default=1.0, help="seconds between them (1)")
    ping.add_argument(
        "-W", "--timeout", metavar="S", type=float, default=5.0, help="seconds to wait for each answer (5)"
    )
    as_json(ping)
    ip = verb("ip", cli_verbs.ip, "this device's addresses in the network")
    family = ip.add_mutually_exclusive_group()
    family.add_argument("-4", dest="family", action="store_const", const=4, help="IPv4 only")
    family.add_argument("-6", dest="family", action="store_const", const=6, help="IPv6 only")
    whois = verb("whois", cli_verbs.whois, "whose address or name it is")
    whois.add_argument("target", metavar="IP|NAME", help="address or host name of a device of this network")
    as_json(whois)
    as_json(
        verb(
            "policy",
            cli_verbs.policy,
            "who may reach this device and whom it may reach, as the network's policy has it, and what was refused",
            epilog="Enforced here, on what others send: a packet that no rule admits is dropped, unless it belongs to "
            "a flow that one did or that this device began. Without a policy everything may pass.",
        )
    )
    routes = verb(
        "routes",
        cli_verbs.routes,
        "what this device routes for others, and what it uses of theirs; `set` changes it",
        epilog="An operator approves what is offered: edgehub routes approve NAME. Kept until it is changed.\n\n"
        "examples:\n  edgeagent routes list\n  edgeagent routes set --advertise-routes 192.168.7.0/24,fd00:7::/64\n"
        "  edgeagent routes set --snat off\n  edgeagent routes set --advertise-routes ''",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    routes.add_argument("action", choices=("list", "set"), nargs="?", default="list", help="show (default), or change")
    route_options(routes)
    routes.add_argument(
        "--snat", metavar="on|off", choices=("on", "off"), help="put this device's address in place of the source (on)"
    )
    routes.add_argument(
        "--advertise-exit-node",
        dest="offers_exit",
        metavar="on|off",
        choices=("on", "off"),
        help="offer to be an exit node (off)",
    )
    as_json(routes)
    leave = verb(
        "exit-node",
        cli_verbs.exit_node,
        "send everything to the internet through another device, or no longer",
        epilog="While it is on, nothing leaves past the exit node, also when that is down.\n\n"
        "examples:\n  edgeagent exit-node set gw-1\n  edgeagent exit-node set gw-1 --allow-lan\n"
        "  edgeagent exit-node off",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    leave.add_argument("action", choices=("set", "off", "show"), nargs="?", default="show", help="show (default)")
    leave.add_argument("name", metavar="NAME", nargs="?", help="host name of the exit node")
    leave.add_argument("--allow-lan", action="store_true", help="this device's own networks stay reachable")
    as_json(leave)
    as_json(
        verb(
            "ledger",
            cli_verbs.ledger,
            "what was sent and received, by uplink and cause, and how much of budgets is used",
        )
    )
    as_json(
        verb(
            "modem",
            cli_verbs.modem,
            "what the modems of this device say: technology, band, signal, registration, operator, APN, roaming, bytes",
            epilog="Asks the running agent, which asks its modems every 5 minutes, and every minute while "
            "somebody looks at the device in the dashboard. What it asks, and how: docs/cellular.md.\n\n"
            "examples:\n  edgeagent modem\n  edgeagent modem --json | jq '.modems[0].rsrp_dbm'\n"
            "  edgeagent up --modem /dev/ttyUSB2",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    dns = verb(
        "dns",
        cli_verbs.dns,
        "the name server of this device: what it answers, and which resolver of this host was told of it; or restore "
        "that resolver after a crash",
        epilog="status asks the running agent. restore takes back what an agent that died has left, in resolv.conf for "
        "one; the next start of the agent does it too.",
    )
    dns.add_argument("what", metavar="status|restore", choices=("status", "restore"), help="what to do")
    as_json(dns)
    as_json(
        verb(
            "commands",
            cli_verbs.commands,
            "what the hub told this device to do of late, who asked for it there, and what became of it",
            epilog="What the hub may tell is the setting allow-commands; programs that it may run are those in the "
            "directory scripts. docs/commands.md has more.",
        )
    )
    check = verb(
        "netcheck",
        cli_verbs.netcheck,
        "what this device's network lets through: UDP, NAT behaviour, MTU and latency of each relay, who opens ports",
        epilog="Asks from sockets of its own, whether the agent runs or not. The relays are those of the running "
        "agent, else of the network that this device has joined. Exit status 0: a relay can be reached, by UDP or TLS.",
    )
    check.add_argument(
        "--relay",
        metavar="HOST:TLSPORT[:UDPPORT[:STUNPORT]]",
        action="append",
        default=[],
        help="a relay to ask, instead of the network's; may be repeated (UDP 3478, second port 3479; 0: none)",
    )
    check.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=CHECK_TIMEOUT_S,
        help=f"seconds for all of it ({CHECK_TIMEOUT_S:.0f})",
    )
    as_json(check)
    as_json(
        verb(
            "doctor",
            cli_verbs.doctor,
            "what of this device is right and what is not, what that means, and what to do about it",
            epilog="Needs neither a running agent nor root, and says what it could not look at. Exit status 0: nothing "
            "failed; a warning is no failure.",
        )
    )
    as_json(
        verb(
            "board",
            cli_verbs.board,
            "which board this is, what told it, and what its slice (board.json) says",
            epilog="A slice is /etc/edgeagent/board.json, or board.json in the state directory; it comes with images "
            "and packages. Its ceilings are defaults: what you set wins. docs/boards.md has more.",
        )
    )
    image = verb(
        "image",
        cli_verbs.image,
        "images of the whole system, by RAUC, SWUpdate, Mender or sysupgrade, whichever is here",
        epilog="edgeagent image: is the booted system on trial? edgeagent image install /tmp/board.raucb: write one, "
        "which the next boot tries. edgeagent image keep: the booted one is good. Exit status 4: there is no such "
        "program here.",
    )
    image.add_argument("what", nargs="?", choices=("status", "install", "keep"), default="status", help="(status)")
    image.add_argument("file", nargs="?", metavar="FILE", help="the image to install")
    as_json(image)
    crypto = verb(
        "crypto",
        cli_verbs.crypto,
        "how fast each implementation of ChaCha20-Poly1305 is on this device, and which one the agent uses for what",
        epilog="Measures when nothing is stored, or the kernel, the processor or a library is another than then. "
        "EDGEAGENT_AEAD=NAME makes the agent use the one of that name.",
    )
    crypto.add_argument("--measure", action="store_true", help="measure again, for about half a second")
    as_json(crypto)
    as_json(verb("version", cli_verbs.version, "version of this command and of the running agent"))
    run = verb(
        "run",
        cli_join.run,
        "be the agent, in the foreground, logging to standard error (for service managers)",
        epilog="Joins when --join-file or EDGEAGENT_TOKEN gives a token and the device is no member yet.",
    )
    join_options(run)
    return parser
