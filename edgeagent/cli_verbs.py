"""The verbs of `edgeagent` that look at something or change one thing; what each needs is imported when it runs."""

from __future__ import annotations

import json
import os

from edgeagent.cli_base import (
    ASK_TIMEOUT_S,
    EXIT_OF_CODE,
    FAILED,
    OK,
    REFUSED,
    USAGE,
    CommandError,
    ask,
    connect,
    settings_of,
)
from edgeagent.version import VERSION

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    import argparse
    from typing import Any


def status(options: argparse.Namespace) -> int:
    if options.memory:
        usage = ask(options, {"do": "memory"})
        if options.json:
            print(json.dumps(usage))
        else:
            from edgeagent.status import show_memory

            print(show_memory(usage))
        return OK
    status = ask(options, {"do": "status", "log": options.log})
    if options.json:
        print(json.dumps(status))
    else:
        from edgeagent.status import show_status

        print(show_status(status))
    return OK


def peers(options: argparse.Namespace) -> int:
    peers = ask(options, {"do": "peers"})
    if options.json:
        print(json.dumps(peers))
    else:
        from edgeagent.status import show_peers

        print(show_peers(peers))
    return OK


def ip(options: argparse.Namespace) -> int:
    addresses: list[str] = ask(options, {"do": "ip"})["addresses"]
    for address in addresses:
        if options.family is None or (":" in address) == (options.family == 6):
            print(address)
    return OK


def whois(options: argparse.Namespace) -> int:
    record = ask(options, {"do": "whois", "target": options.target})
    if options.json:
        print(json.dumps(record))
    else:
        from edgeagent.status import show_whois

        print(show_whois(record))
    return OK


def policy(options: argparse.Namespace) -> int:
    told = ask(options, {"do": "policy"})
    if options.json:
        print(json.dumps(told))
    else:
        from edgeagent.policywords import show_policy

        print(show_policy(told))
    return OK


def routes(options: argparse.Namespace) -> int:
    from edgeagent.cli_routes import asked_of, show_routes

    request: dict[str, Any] = {"do": "routes"}
    if options.action == "set":
        request["set"] = asked_of(options)
        if not request["set"]:
            raise CommandError(USAGE, "routes set: say what to change: edgeagent routes --help.")
    found = ask(options, request)
    print(json.dumps(found) if options.json else show_routes(found))
    return OK


def exit_node(options: argparse.Namespace) -> int:
    from edgeagent.cli_routes import show_routes

    if (options.action == "set") is not bool(options.name):
        raise CommandError(USAGE, "exit-node: set NAME, or off. NAME is the host name of a device of this network.")
    request: dict[str, Any] = {"do": "routes"}
    if options.action != "show":
        request["set"] = {"exit_node": (options.name or "").lower(), "allow_lan": options.allow_lan}
    found = ask(options, request)
    print(json.dumps(found) if options.json else show_routes(found, only_exit=True))
    return OK


def ledger(options: argparse.Namespace) -> int:
    ledger = ask(options, {"do": "ledger"})
    if options.json:
        print(json.dumps(ledger))
    else:
        from edgeagent.status import show_ledger

        print(show_ledger(ledger))
    return OK


def modem(options: argparse.Namespace) -> int:
    told = ask(options, {"do": "modem"})
    if options.json:
        print(json.dumps(told))
    else:
        from edgeagent.modems import show

        print(show(told))
    return OK


def commands(options: argparse.Namespace) -> int:
    commands = ask(options, {"do": "commands"})
    if options.json:
        print(json.dumps(commands))
    else:
        from edgeagent.status import show_commands

        print(show_commands(commands))
    return OK


def ping(options: argparse.Namespace) -> int:
    from edgeagent.io.ping import Rhythm, ping

    if not 1 <= options.count <= 1_000_000:
        raise CommandError(USAGE, f"-c: {options.count}: want 1 to 1000000.")
    if not 0 <= options.interval <= 3600 or not 0 < options.timeout <= 3600:
        raise CommandError(USAGE, "-i, -W: want seconds, at most 3600.")
    settings = settings_of(options)

    def whois() -> dict[str, Any]:
        record: dict[str, Any] = ask(options, {"do": "whois", "target": options.target})
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


def dns(options: argparse.Namespace) -> int:
    if options.what == "restore":
        return dns_restore(options)
    about = ask(options, {"do": "dns"})
    if options.json:
        print(json.dumps(about))
    else:
        from edgeagent.status import show_dns

        print(show_dns(about))
    return OK


def dns_restore(options: argparse.Namespace) -> int:
    from edgeagent.hostresolver import restore
    from edgeagent.io.keystore import Keystore, StateError

    settings = settings_of(options)
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


def netcheck(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError
    from edgeagent.netcheck import NetcheckError, known_relays, netcheck, parse_relays

    if not 0 < options.timeout <= 300:
        raise CommandError(USAGE, f"--timeout: {options.timeout}: want seconds, more than 0 and at most 300.")
    settings = settings_of(options)
    try:
        relays = parse_relays(options.relay) or known_relays(settings, connect(settings, ASK_TIMEOUT_S))
        return OK if netcheck(relays, options.timeout, as_json=options.json, proxy=bool(settings.proxy)) else FAILED
    except ValueError as error:
        raise CommandError(USAGE, f"--relay: {error}.") from None
    except NetcheckError as error:
        raise CommandError(FAILED, f"{error}.") from None
    except LocalError as error:
        raise CommandError(EXIT_OF_CODE.get(error.code, FAILED), str(error)) from None
    except OSError as error:
        raise CommandError(FAILED, f"netcheck: {error.strerror or error}.") from None


def doctor(options: argparse.Namespace) -> int:
    from edgeagent.doctor import doctor

    return OK if doctor(settings_of(options), as_json=options.json) else FAILED


def board(options: argparse.Namespace) -> int:
    from edgeagent.board import find, show

    settings = settings_of(options)
    board = find(settings.state_dir).describe()
    if settings.board:
        board |= {"id": settings.board, "by": "the setting board"}
    print(json.dumps(board) if options.json else show(board))
    return OK


def image(options: argparse.Namespace) -> int:
    from edgeagent.io import osupdate

    if (options.what == "install") is (options.file is None):
        raise CommandError(USAGE, "image: install FILE, keep, or status.")
    backend = osupdate.find()
    if backend is None:
        raise CommandError(REFUSED, "image: none of rauc, mender-update, swupdate, sysupgrade is installed here.")
    try:
        if options.what == "install":
            osupdate.install(backend, os.path.abspath(options.file))
        elif options.what == "keep":
            osupdate.keep(backend)
        on_trial = osupdate.is_on_trial(backend)
    except osupdate.OsUpdateError as error:
        raise CommandError(FAILED, f"image: {error}.") from None
    if options.json:
        print(json.dumps({"program": backend.name, "on_trial": on_trial}))
    else:
        print(f"{backend.name}: the booted system is {'on trial: edgeagent image keep' if on_trial else 'kept'}")
    return OK


def crypto(options: argparse.Namespace) -> int:
    from edgeagent.aeads import AeadError, crypto

    try:
        crypto(settings_of(options), as_json=options.json, anew=options.measure)
    except AeadError as error:
        raise CommandError(FAILED, f"crypto: {error}.") from None
    return OK


def version(options: argparse.Namespace) -> int:
    from edgeagent.io.localclient import LocalError

    daemon = None
    client = connect(settings_of(options), ASK_TIMEOUT_S)
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
