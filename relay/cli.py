"""The command line `edgerelay`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from edgeagent.crypto import CryptoUnavailable
from edgeagent.crypto import load as load_crypto
from edgeagent.proto.keys import generate_private_key, to_base64
from relay.config import SETTINGS, ConfigError, load, parse_address, read_private_key
from relay.registrar import RegistrarDied
from relay.serve import Ports, Relay
from relay.status import NoAnswer, fetch, show, summarise

OK, FAILED, USAGE, NOT_RUNNING = range(4)

_EPILOG = """\
A relay passes sealed packets between devices that no direct path connects. It can read none of them, and serves only
devices whose network signed a pass for it.

first steps:
  edgehub relays invite --region fra > relay.token  on the hub; copy the file to the relay
  edgerelay serve --join-file relay.token --public fra-1.relay.example
  edgerelay status                                  who is connected, what was forwarded, what was dropped and why

a configuration file, every setting of `edgerelay serve --help` may stand in it:
  join-file = ["/etc/edgerelay/relay.token"]
  public = ["fra-1.relay.example"]
  cert = "/etc/letsencrypt/live/fra-1.relay.example/fullchain.pem"   # without: one that it makes itself
  key = "/etc/letsencrypt/live/fra-1.relay.example/privkey.pem"
  [classes.1]          # passes of rate class 1
  mbit = 500
  packets = 100000
  [limits]
  members = 5000

exit status: 0 ok, 1 failed, 2 usage, 3 not running
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ConfigError, CryptoUnavailable) as error:
        print(f"edgerelay: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgerelay",
        description="A relay of edge meshes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve_text = "run a relay until SIGTERM; then it tells its members, waits for them to move, and ends"
    serve = verbs.add_parser(
        "serve",
        help=serve_text,
        description=serve_text,
        epilog="SIGHUP reads the certificate again. A second SIGTERM or Control-C ends at once.",
        allow_abbrev=False,
    )
    serve.add_argument("--config", metavar="FILE", help="settings in TOML; what is given here goes before them")
    serve.add_argument("--json", action="store_true", help="write where it listens as one line of JSON when it does")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(info)")
    for name, (_, several, default, meaning) in SETTINGS.items():
        ends = "; may be repeated" if several else ""
        ends += f" ({default})" if default else ""
        serve.add_argument(f"--{name}", metavar="VALUE", action="append", help=meaning + ends)
    serve.set_defaults(run=_serve)

    keygen_text = "make the relay's key in FILE, if there is none, and print its public half"
    keygen = verbs.add_parser("keygen", help=keygen_text, description=keygen_text, allow_abbrev=False)
    keygen.add_argument("file", metavar="FILE", help="gets mode 0600")
    keygen.add_argument("--json", action="store_true", help="data instead of text")
    keygen.set_defaults(run=_keygen)

    status_text = "what a relay on this host is doing"
    status = verbs.add_parser("status", help=status_text, description=status_text, allow_abbrev=False)
    status.add_argument("--metrics", metavar="ADDRESS:PORT", default="127.0.0.1:9478", help="(127.0.0.1:9478)")
    status.add_argument("--json", action="store_true", help="data instead of text")
    status.set_defaults(run=_status)

    version_text = "print the version"
    shown = verbs.add_parser("version", help=version_text, description=version_text, allow_abbrev=False)
    shown.add_argument("--json", action="store_true", help="data instead of text")
    shown.set_defaults(run=_version)
    return parser


def _serve(options: argparse.Namespace) -> int:
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    given = {name: getattr(options, name.replace("-", "_")) or [] for name in SETTINGS}
    settings = load(options.config, given)
    relay = Relay(settings, _own_version())
    try:
        ports = relay.open()
    except ssl.SSLError as error:
        print(
            f"edgerelay: certificate {settings.cert or settings.state_dir}: {error}. Give the chain and its key as PEM",
            file=sys.stderr,
        )
        return FAILED
    except OSError as error:
        where = f"listen {settings.listen}, udp {settings.udp}"
        print(f"edgerelay: cannot open: {error.strerror or error} ({where}, cert {settings.cert})", file=sys.stderr)
        return FAILED
    try:
        relay.run(lambda: _say_ready(settings.id, ports, as_json=options.json))
    except RegistrarDied as error:  # whoever supervises this process starts another
        print(f"edgerelay: {error}; see the log above, and start it again", file=sys.stderr)
        return FAILED
    return OK


def _say_ready(relay: str, ports: Ports, *, as_json: bool) -> None:
    if as_json:
        at = {"tls": ports.tls, "udp": ports.udp, "http": ports.http, "metrics": ports.metrics}
        print(json.dumps({"relay": relay, **at}), flush=True)
    else:
        logging.getLogger("edgerelay").info("%s listens: TLS %d, UDP %d", relay, ports.tls, ports.udp)


def _keygen(options: argparse.Namespace) -> int:
    try:
        descriptor = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        made = False
    except OSError as error:
        raise ConfigError(f"{options.file}: {error.strerror}") from None
    else:
        made = True
        with os.fdopen(descriptor, "w") as file:
            file.write(to_base64(generate_private_key(os.urandom)) + "\n")
    public = to_base64(load_crypto().x25519_base(read_private_key(options.file)))
    if options.json:
        print(json.dumps({"file": options.file, "made": made, "public": public}))
    else:
        print(public)
    return OK


def _status(options: argparse.Namespace) -> int:
    try:
        address = parse_address(options.metrics)
    except ValueError as error:
        raise ConfigError(f"--metrics: {error} expected") from None
    try:
        status = summarise(fetch(address.host or "127.0.0.1", address.port))
    except NoAnswer as error:
        print(f"edgerelay: no relay at {address}: {error}. Start it with `edgerelay serve`", file=sys.stderr)
        return NOT_RUNNING
    print(json.dumps(status) if options.json else show(status))
    return OK


def _version(options: argparse.Namespace) -> int:
    print(json.dumps({"version": _own_version()}) if options.json else f"edgerelay {_own_version()}")
    return OK


def _own_version() -> str:
    try:
        return version("edgemesh")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
