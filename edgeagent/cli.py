"""The command line `edgeagent`. What a verb needs is imported when the verb runs, so that `status` stays quick."""

from __future__ import annotations

import argparse
import json
import os
import sys

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from edgeagent.config import Settings

OK, FAILED, USAGE, NOT_RUNNING, REFUSED, TIMED_OUT = range(6)
_EXIT_OF_CODE = {"usage": USAGE, "refused": REFUSED, "timeout": TIMED_OUT}
UP_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 6.0
TOKEN_CHARS_MAX = 8_192

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


class CommandError(Exception):
    """Ends the command; `what: why. What next.`"""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except CommandError as error:
        print(f"edgeagent: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status


class _Listed(argparse.Action):
    """Collects what an option is given, before the verb and after it, into one text with ',' between."""

    _values = ""

    def __call__(self, _parser: object, namespace: argparse.Namespace, values: object, _option: object = None) -> None:
        self._values = f"{self._values},{values}".lstrip(",")
        setattr(namespace, self.dest, self._values)


def _parser() -> argparse.ArgumentParser:
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
        "--memory-profile",
        metavar="PROFILE",
        default=argparse.SUPPRESS,
        help="how large tables may become: small, normal, large (normal)",
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
            "10.77.1.0/24=192.168.7.0/24: under another prefix, where several sites have the same",
        )
        sub.add_argument(
            "--accept-routes",
            metavar="yes|no",
            choices=("yes", "no"),
            help="use what others route, once approved (yes)",
        )

    up = verb(
        "up",
        _up,
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

    verb("down", _down, "stop the agent; the device stays a member of its network")
    status = verb("status", _status, "what this device is doing")
    status.add_argument("--log", action="store_true", help="add the newest log lines")
    status.add_argument(
        "--memory",
        action="store_true",
        help="instead: every table, queue and ring with its ceiling and what gave way, and the process beside its own",
    )
    as_json(status)
    as_json(verb("peers", _peers, "the peers that this device knows now"))
    ping = verb("ping", _ping, "send echo requests through the tunnel and say by which path the answers came")
    ping.add_argument("target", metavar="NAME|IP", help="host name or address of a device of this network")
    ping.add_argument("-c", "--count", metavar="N", type=int, default=4, help="how many (4)")
    ping.add_argument("-i", "--interval", metavar="S", type=float, default=1.0, help="seconds between them (1)")
    ping.add_argument(
        "-W", "--timeout", metavar="S", type=float, default=5.0, help="seconds to wait for each answer (5)"
    )
    as_json(ping)
    ip = verb("ip", _ip, "this device's addresses in the network")
    family = ip.add_mutually_exclusive_group()
    family.add_argument("-4", dest="family", action="store_const", const=4, help="IPv4 only")
    family.add_argument("-6", dest="family", action="store_const", const=6, help="IPv6 only")
    whois = verb("whois", _whois, "whose address or name it is")
    whois.add_argument("target", metavar="IP|NAME", help="address or host name of a device of this network")
    as_json(whois)
    as_json(
        verb(
            "policy",
            _policy,
            "who may reach this device and whom it may reach, as the network's policy has it, and what was refused",
            epilog="Enforced here, on what others send: a packet that no rule admits is dropped, unless it belongs to "
            "a flow that one did or that this device began. Without a policy everything may pass.",
        )
    )
    routes = verb(
        "routes",
        _routes,
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
        _exit_node,
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
    as_json(verb("ledger", _ledger, "what was sent and received, by uplink and cause, and how much of budgets is used"))
    dns = verb(
        "dns",
        _dns,
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
            _commands,
            "what the hub told this device to do of late, who asked for it there, and what became of it",
            epilog="What the hub may tell is the setting allow-commands; programs that it may run are those in the "
            "directory scripts. docs/commands.md has more.",
        )
    )
    check = verb(
        "netcheck",
        _netcheck,
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
            _doctor,
            "what of this device is right and what is not, what that means, and what to do about it",
            epilog="Needs neither a running agent nor root, and says what it could not look at. Exit status 0: nothing "
            "failed; a warning is no failure.",
        )
    )
    as_json(
        verb(
            "board",
            _board,
            "which board this is, what told it, and what its slice (board.json) says",
            epilog="A slice is /etc/edgeagent/board.json, or board.json in the state directory; it comes with images "
            "and packages. Its ceilings are defaults: what you set wins. docs/boards.md has more.",
        )
    )
    crypto = verb(
        "crypto",
        _crypto,
        "how fast each implementation of ChaCha20-Poly1305 is on this device, and which one the agent uses for what",
        epilog="Measures when nothing is stored, or the kernel, the processor or a library is another than then. "
        "EDGEAGENT_AEAD=NAME makes the agent use the one of that name.",
    )
    crypto.add_argument("--measure", action="store_true", help="measure again, for about half a second")
    as_json(crypto)
    as_json(verb("version", _version, "version of this command and of the running agent"))
    run = verb(
        "run",
        _run,
        "be the agent, in the foreground, logging to standard error (for service managers)",
        epilog="Joins when --join-file or EDGEAGENT_TOKEN gives a token and the device is no member yet.",
    )
    join_options(run)
    return parser


# The verbs


def _up(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError

    settings = _settings(options)
    token = _token(options, options.join)
    if options.hub is not None:
        token = _ask_for_token(options, token)
    if not 0 < options.timeout <= 86_400:
        raise CommandError(USAGE, f"--timeout: {options.timeout}: want seconds, more than 0 and at most a day.")
    request = {"do": "up", "token": token, "hostname": options.hostname and settings.hostname}
    from edgeagent.cli_routes import asked_of

    request["routes"] = asked_of(options)
    client = _connect(settings, options.timeout)
    started = client is None
    if client is None:
        from edgeagent.background import start

        client = start(settings, options.timeout)
    try:
        result = client.ask({key: value for key, value in request.items() if value}, _show_progress)
    except LocalError as error:
        text = str(error)
        if error.code == "timeout":
            text += " The agent goes on trying in the background: edgeagent status."
        elif error.code == "closed" and started:
            text = "the agent died before it was ready; why is above."
        raise CommandError(_EXIT_OF_CODE.get(error.code, FAILED), text) from None
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{result['name']} {' '.join(result['addresses'])}")
    return OK


def _ask_for_token(options: argparse.Namespace, token: str | None) -> str:
    """A token by a person's approval in the dashboard."""
    from edgeagent.approval import ApprovalError, ask
    from edgeagent.board import find
    from edgeagent.context import facts

    if token is not None:
        raise CommandError(USAGE, "--hub: a token is given already. Give one of them.")

    settings = _settings(options)
    board = settings.board or find(settings.state_dir).id

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        return ask(options.hub, options.hub_ca, options.hostname or os.uname().nodename, facts(board), show)
    except ApprovalError as error:
        raise CommandError(REFUSED if error.refused else FAILED, f"--hub {options.hub}: {error}") from None


def _show_progress(progress: dict[str, Any]) -> None:
    print(f"edgeagent: {progress.get('text', '')}", file=sys.stderr, flush=True)


def _down(options: argparse.Namespace) -> int:
    _ask(options, {"do": "down"})
    return OK


def _status(options: argparse.Namespace) -> int:
    if options.memory:
        usage = _ask(options, {"do": "memory"})
        if options.json:
            print(json.dumps(usage))
        else:
            from edgeagent.status import show_memory

            print(show_memory(usage))
        return OK
    status = _ask(options, {"do": "status", "log": options.log})
    if options.json:
        print(json.dumps(status))
    else:
        from edgeagent.status import show_status

        print(show_status(status))
    return OK


def _peers(options: argparse.Namespace) -> int:
    peers = _ask(options, {"do": "peers"})
    if options.json:
        print(json.dumps(peers))
    else:
        from edgeagent.status import show_peers

        print(show_peers(peers))
    return OK


def _ip(options: argparse.Namespace) -> int:
    addresses: list[str] = _ask(options, {"do": "ip"})["addresses"]
    for address in addresses:
        if options.family is None or (":" in address) == (options.family == 6):
            print(address)
    return OK


def _whois(options: argparse.Namespace) -> int:
    record = _ask(options, {"do": "whois", "target": options.target})
    if options.json:
        print(json.dumps(record))
    else:
        from edgeagent.status import show_whois

        print(show_whois(record))
    return OK


def _policy(options: argparse.Namespace) -> int:
    told = _ask(options, {"do": "policy"})
    if options.json:
        print(json.dumps(told))
    else:
        from edgeagent.policywords import show_policy

        print(show_policy(told))
    return OK


def _routes(options: argparse.Namespace) -> int:
    from edgeagent.cli_routes import asked_of, show_routes

    request: dict[str, Any] = {"do": "routes"}
    if options.action == "set":
        request["set"] = asked_of(options)
        if not request["set"]:
            raise CommandError(USAGE, "routes set: say what to change: edgeagent routes --help.")
    found = _ask(options, request)
    print(json.dumps(found) if options.json else show_routes(found))
    return OK


def _exit_node(options: argparse.Namespace) -> int:
    from edgeagent.cli_routes import show_routes

    if (options.action == "set") is not bool(options.name):
        raise CommandError(USAGE, "exit-node: set NAME, or off. NAME is the host name of a device of this network.")
    request: dict[str, Any] = {"do": "routes"}
    if options.action != "show":
        request["set"] = {"exit_node": (options.name or "").lower(), "allow_lan": options.allow_lan}
    found = _ask(options, request)
    print(json.dumps(found) if options.json else show_routes(found, only_exit=True))
    return OK


def _ledger(options: argparse.Namespace) -> int:
    ledger = _ask(options, {"do": "ledger"})
    if options.json:
        print(json.dumps(ledger))
    else:
        from edgeagent.status import show_ledger

        print(show_ledger(ledger))
    return OK


def _commands(options: argparse.Namespace) -> int:
    commands = _ask(options, {"do": "commands"})
    if options.json:
        print(json.dumps(commands))
    else:
        from edgeagent.status import show_commands

        print(show_commands(commands))
    return OK


def _ping(options: argparse.Namespace) -> int:
    from edgeagent.io.ping import Rhythm, ping

    if not 1 <= options.count <= 1_000_000:
        raise CommandError(USAGE, f"-c: {options.count}: want 1 to 1000000.")
    if not 0 <= options.interval <= 3600 or not 0 < options.timeout <= 3600:
        raise CommandError(USAGE, "-i, -W: want seconds, at most 3600.")
    settings = _settings(options)

    def whois() -> dict[str, Any]:
        record: dict[str, Any] = _ask(options, {"do": "whois", "target": options.target})
        return record

    record = whois()
    if record.get("self"):
        raise CommandError(FAILED, f"{options.target} is this device.")
    rhythm = Rhythm(options.count, options.interval, options.timeout)
    try:
        answered = ping(record, whois, options.target, settings.interface, rhythm, options.json)
    except OSError as error:
        raise CommandError(FAILED, f"ping {options.target}: {error.strerror or error}.") from None
    return OK if answered else FAILED


def _dns(options: argparse.Namespace) -> int:
    if options.what == "restore":
        return _dns_restore(options)
    about = _ask(options, {"do": "dns"})
    if options.json:
        print(json.dumps(about))
    else:
        from edgeagent.status import show_dns

        print(show_dns(about))
    return OK


def _dns_restore(options: argparse.Namespace) -> int:
    from edgeagent.hostresolver import restore
    from edgeagent.io.keystore import Keystore, StateError

    settings = _settings(options)
    if not os.path.isdir(settings.state_dir):
        raise CommandError(FAILED, f"{settings.state_dir}: not there, so no agent has changed anything.")
    keystore = Keystore(settings.state_dir)
    try:
        keystore.open()
        errors = restore(keystore)
    except StateError as error:
        raise CommandError(FAILED, f"{error}. A running agent restores it itself: edgeagent down.") from None
    except OSError as error:
        raise CommandError(FAILED, f"{error.filename or 'system'}: {error.strerror}.") from None
    finally:
        keystore.close()
    if options.json:
        print(json.dumps({"errors": errors}))
    if errors:
        raise CommandError(FAILED, f"{'; '.join(errors)}.")
    return OK


def _netcheck(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError
    from edgeagent.netcheck import NetcheckError, known_relays, netcheck, parse_relays

    if not 0 < options.timeout <= 300:
        raise CommandError(USAGE, f"--timeout: {options.timeout}: want seconds, more than 0 and at most 300.")
    settings = _settings(options)
    try:
        relays = parse_relays(options.relay) or known_relays(settings, _connect(settings, ASK_TIMEOUT_S))
        return OK if netcheck(relays, options.timeout, as_json=options.json, proxy=bool(settings.proxy)) else FAILED
    except ValueError as error:
        raise CommandError(USAGE, f"--relay: {error}.") from None
    except NetcheckError as error:
        raise CommandError(FAILED, f"{error}.") from None
    except LocalError as error:
        raise CommandError(_EXIT_OF_CODE.get(error.code, FAILED), str(error)) from None
    except OSError as error:
        raise CommandError(FAILED, f"netcheck: {error.strerror or error}.") from None


def _doctor(options: argparse.Namespace) -> int:
    from edgeagent.doctor import doctor

    return OK if doctor(_settings(options), as_json=options.json) else FAILED


def _board(options: argparse.Namespace) -> int:
    from edgeagent.board import find, show

    settings = _settings(options)
    board = find(settings.state_dir).describe()
    if settings.board:
        board |= {"id": settings.board, "by": "the setting board"}
    print(json.dumps(board) if options.json else show(board))
    return OK


def _crypto(options: argparse.Namespace) -> int:
    from edgeagent.aeads import AeadError, crypto

    try:
        crypto(_settings(options), as_json=options.json, anew=options.measure)
    except AeadError as error:
        raise CommandError(FAILED, f"crypto: {error}.") from None
    return OK


def _version(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError
    from edgeagent.version import VERSION

    daemon = None
    client = _connect(_settings(options), ASK_TIMEOUT_S)
    if client is not None:
        try:
            daemon = client.ask({"do": "version"})["version"]
        except LocalError:
            daemon = None
    if options.json:
        print(json.dumps({"command": VERSION, "agent": daemon}))
    else:
        print(f"edgeagent {VERSION}" + ("" if daemon in (None, VERSION) else f" (the running agent: {daemon})"))
    return OK


def _run(options: argparse.Namespace) -> NoReturn:
    from edgeagent.background import become_agent

    become_agent(_settings(options), _token(options, None))


# Common parts


def _settings(options: argparse.Namespace) -> Settings:
    from edgeagent.config import SETTINGS, ConfigError, load

    given = {name: getattr(options, name.replace("-", "_"), None) for name in SETTINGS}
    try:
        return load(given, file=getattr(options, "config", None))
    except ConfigError as error:
        raise CommandError(USAGE, f"{error}.") from None


def _connect(settings: Settings, timeout_s: float) -> Any:
    """A connection to the running agent, None when none runs."""
    from edgeagent.io.localclient import connect

    try:
        return connect(settings.socket, timeout_s)
    except PermissionError:
        raise CommandError(
            FAILED, f"{settings.socket}: not permitted. Only root and the agent's user may: try sudo."
        ) from None
    except OSError as error:
        raise CommandError(FAILED, f"{settings.socket}: {error.strerror or error}.") from None


def _ask(options: argparse.Namespace, request: dict[str, Any]) -> Any:
    from edgeagent.io.localclient import LocalError

    settings = _settings(options)
    client = _connect(settings, ASK_TIMEOUT_S)
    if client is None:
        crash = f"{settings.state_dir}/crash"
        died = f" The last one died: {crash}." if os.path.exists(crash) else ""
        raise CommandError(NOT_RUNNING, f"the agent is not running.{died} Start it: edgeagent up.")
    try:
        return client.ask(request)
    except LocalError as error:
        text = str(error)
        if error.code == "timeout":
            text += " The hub may be out of reach: edgeagent status."
        raise CommandError(_EXIT_OF_CODE.get(error.code, FAILED), text) from None


def _token(options: argparse.Namespace, argument: str | None) -> str | None:
    """The join token from the argument, the file, or the environment, in this order."""
    if argument is not None and options.join_file is not None:
        raise CommandError(USAGE, "--join and --join-file: give one of them.")
    token = argument
    if options.join_file is not None:
        token = _read_token(options.join_file)
    elif token is None:
        token = os.environ.get("EDGEAGENT_TOKEN")
    if not token:
        return None
    token = token.strip()
    if len(token) > TOKEN_CHARS_MAX or not token.isascii() or not token.startswith("em1."):
        raise CommandError(USAGE, 'join token: not one. It is one line that begins with "em1.".')
    return token


def _read_token(path: str) -> str:
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            return file.read(TOKEN_CHARS_MAX + 2).decode("ascii", "replace")
    except OSError as error:
        raise CommandError(FAILED, f"--join-file {path}: {error.strerror}.") from None
