"""What goes into one device's image: the agent, its token, settings, board; and the scripts that put them in place."""

from __future__ import annotations

from collections.abc import Mapping

from boards.catalogue import slice_of
from boards.schema import Board, System
from edgeagent.config import SETTINGS
from flash.agent import Agent
from flash.errors import FlashError
from flash.ext4 import Entry
from flash.tokens import state_file

STATE = "/var/lib/edgeagent"
# On OpenWrt /var is a tmpfs: what a device is would be gone at the next start
STATE_OPENWRT = "/etc/edgeagent/state"
CONFIG = "/etc/edgeagent.conf"
BOARD = "/etc/edgeagent/board.json"
SEED = "edgeagent"  # the folder on a boot partition
_SERVICE = "edgeagent.service"
_SHARE = "/usr/share/edgeagent/agent"

# The files of SEED, and where install.sh puts them: (name, path, mode)
_SEEDED = (
    ("agent.pyz", "/usr/bin/edgeagent", 0o755),
    ("edgeagent.service", "/etc/systemd/system/edgeagent.service", 0o644),
    ("edgeagent.conf", CONFIG, 0o600),
    ("board.json", BOARD, 0o644),
)

_INSTALL = """\
#!/bin/sh
# Made by edgeflash: puts the agent in its place at the first start. Doing it again, or after a power cut, does no harm.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
put() {{
    mkdir -p "$(dirname "$2")"
    cp "$here/$1" "$2.new"
    chmod "$3" "$2.new"
    mv "$2.new" "$2"
}}
{body}
mkdir -p {state}
chmod 700 {state}
if [ -e "$here/token" ]; then
    umask 077
    put token {state}/token 600
    sync
    rm "$here/token"
fi
{enable}
"""

_UCI_DEFAULTS = """\
#!/bin/sh
# Made by edgeflash. OpenWrt runs this at each start until it ends with 0; each step looks whether it is done already.
{hostname}
{install}
/etc/init.d/edgeagent enabled || /etc/init.d/edgeagent enable || exit 1
/etc/init.d/edgeagent running 2>/dev/null || /etc/init.d/edgeagent start
exit 0
"""


class Payload:
    """For one device. `hostname` is one DNS label, or empty to leave it as it is; `settings` are the agent's."""

    def __init__(
        self,
        *,
        board: Board,
        system: System,
        agent: Agent | None,
        token: str,
        hostname: str = "",
        settings: Mapping[str, str] | None = None,
        library: bytes = b"",
        network_config: bytes = b"",
    ) -> None:
        self.board = board
        self.system = system
        self.agent = agent
        self.token = token
        self.hostname = hostname
        self.library = library
        self.network_config = network_config
        self.openwrt = system.init == "uci-defaults"
        self.settings = dict(settings or {})
        if hostname:
            self.settings.setdefault("hostname", hostname)
        if self.openwrt:
            self.settings.setdefault("state-dir", STATE_OPENWRT)
        check_settings(self.settings)
        if library and (agent is None or agent.kind != "zipapp"):
            raise FlashError("--library: goes with a zipapp only; packages have the C library in them.")

    @property
    def state(self) -> str:
        return self.settings.get("state-dir", STATE)

    def config(self) -> bytes:
        lines = [f"{name} = {value}\n" for name, value in sorted(self.settings.items())]
        return "".join(["# Made by edgeflash. All settings: edgeagent run --help.\n", *lines]).encode()

    def board_slice(self) -> bytes:
        return slice_of(self.board, self.board.systems.index(self.system))

    def directories(self) -> dict[str, int]:
        return {self.state: 0o700}

    def files(self) -> dict[str, Entry]:
        """Everything at its final place, but for the agent of a package."""
        found = {
            CONFIG: Entry(self.config(), 0o600),
            BOARD: Entry(self.board_slice()),
            f"{self.state}/token": Entry(state_file(self.token), 0o600),
        }
        if self.agent is not None and self.agent.kind == "zipapp":
            found["/usr/bin/edgeagent"] = Entry(self.agent.data, 0o755)
            if self.openwrt:
                found["/etc/init.d/edgeagent"] = Entry(self.agent.dist("edgeagent.init"), 0o755)
            else:
                found["/etc/systemd/system/edgeagent.service"] = Entry(self.agent.dist("edgeagent.service"))
            if self.library:
                found["/usr/lib/edgeagent/libedgefast.so"] = Entry(self.library, 0o755)
                if not self.openwrt:
                    found["/etc/default/edgeagent"] = Entry(_LIBRARY_SETTING)
        return found

    def seed(self) -> dict[str, bytes]:
        """The files of the folder SEED: what install.sh needs, and the token, which it takes away."""
        files = {"edgeagent.conf": self.config(), "board.json": self.board_slice(), "token": state_file(self.token)}
        if self.agent is not None:
            files[self.agent.file_name] = self.agent.data
            if self.agent.kind == "zipapp":
                files["edgeagent.service"] = self.agent.dist("edgeagent.service")
            if self.library:
                files["libedgefast.so"] = self.library
                files["edgeagent.default"] = _LIBRARY_SETTING
        files["install.sh"] = self._install(files)
        return files

    def _install(self, files: Mapping[str, bytes]) -> bytes:
        body = [f"put {name} {path} {mode:o}" for name, path, mode in _SEEDED if name in files]
        if self.library:
            body += ["put libedgefast.so /usr/lib/edgeagent/libedgefast.so 755"]
            body += ["put edgeagent.default /etc/default/edgeagent 644"]
        if self.agent is not None and self.agent.kind == "deb":
            # Where the package needs others, apt brings them; without a network this fails, and is tried by who called
            body += [
                "export DEBIAN_FRONTEND=noninteractive",
                "dpkg-query -W -f '${Status}' edgeagent 2>/dev/null | grep -q 'ok installed' ||",
                '    dpkg --force-confold -i "$here/agent.deb" || { apt-get -qy update && apt-get -qy -f install; }',
            ]
        if self.hostname:
            body += [
                f"printf '%s\\n' {self.hostname} >/etc/hostname",
                f"hostname {self.hostname} || true",
                "sed -i '/^127\\.0\\.1\\.1[[:space:]]/d' /etc/hosts",
                f"printf '127.0.1.1\\t%s\\n' {self.hostname} >>/etc/hosts",
            ]
        enable = "\n".join(
            f"systemctl {verb}" for verb in ("daemon-reload", f"enable {_SERVICE}", f"--no-block restart {_SERVICE}")
        )
        return _INSTALL.format(body="\n".join(body), state=self.state, enable=enable).encode()

    def uci_defaults(self) -> bytes:
        hostname = ""
        if self.hostname:
            hostname = (
                f'[ "$(uci -q get system.@system[0].hostname)" = {self.hostname} ] || '
                f"{{ uci set system.@system[0].hostname={self.hostname} && uci commit system; }} || exit 1"
            )
        install = {
            "ipk": f"opkg list-installed | grep -q '^edgeagent ' || opkg install {_SHARE}.ipk || exit 1",
            "apk": f"apk info -e edgeagent >/dev/null || apk add --allow-untrusted {_SHARE}.apk || exit 1",
        }.get(self.agent.kind if self.agent is not None else "", "")
        return _UCI_DEFAULTS.format(hostname=hostname, install=install).encode()


_LIBRARY_SETTING = b"EDGEAGENT_FAST_LIBRARY=/usr/lib/edgeagent/libedgefast.so\n"


def check_settings(settings: Mapping[str, str]) -> None:
    """As the agent will when it starts, where nobody sees it. FlashError names the setting."""
    for name, value in settings.items():
        if name not in SETTINGS:
            raise FlashError(f"setting {name[:40]!r}: the agent has none of that name. All: edgeagent run --help.")
        if not value.isprintable() or not value.isascii():
            raise FlashError(f"setting {name}: holds a character that the agent's settings file cannot.")
        try:
            SETTINGS[name][2](value)
        except ValueError as error:
            raise FlashError(f"setting {name}: {value[:60]!r}: want {error}.") from None
