"""When the kernel's WireGuard is taken without being asked for: a table of conditions, all of which have to hold.

What only `fast` and `pure` do comes before speed: routing for others, sockets of each uplink's own, bytes counted as
they are paid for. Rows are looked at in their order, the cheap ones first, up to the first that does not hold.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from struct import Struct

from edgeagent.engine import choice
from edgeagent.surroundings import has_capability

TYPE_CHECKING = False  # what the typing module would say, and 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgeagent.accounts import Accounts
    from edgeagent.config import Settings
    from edgeagent.proto.devicemap import DeviceMap
    from edgeagent.proto.routewish import RouteWish

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13  # capabilities(7)
PROBE_TIMEOUT_S = 5.0  # a module is loaded from slow flash meanwhile
_MESSAGE, _GENL, _ATTRIBUTE = Struct("=IHHII"), Struct("=BBH"), Struct("=HH")
_NETLINK_GENERIC, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _FAMILY_NAME, _NLM_F_REQUEST = 16, 16, 3, 2, 1
UPLINKS_MAX = 1
AVAILABLE_MIN_KIB = 16 << 10  # nft takes some of it, at the start and for a moment


class Facts:
    """What the rule asks of a device: `uplinks` are interfaces with a default route, or those that the setting names;
    `metered` those of them whose bytes cost money. `router` says for whom it routes, "" for nobody,
    `exit_node` whose name the device uses, "" for none."""

    __slots__ = ("exit_node", "metered", "modem", "router", "uplinks")

    def __init__(
        self,
        *,
        uplinks: Sequence[str] = (),
        metered: Sequence[str] = (),
        modem: bool = False,
        router: str = "",
        exit_node: str = "",
    ) -> None:
        self.uplinks = uplinks
        self.metered = metered
        self.modem = modem
        self.router = router
        self.exit_node = exit_node


def _one_uplink(facts: Facts) -> str:
    if len(facts.uplinks) > UPLINKS_MAX:
        return f"several uplinks ({', '.join(facts.uplinks)}), which want sockets of their own"
    return "a modem is there, which may become an uplink" if facts.modem else ""


def _unmetered(facts: Facts) -> str:
    return f"{', '.join(facts.metered)} is metered, and datagrams are to be counted" if facts.metered else ""


def _no_router(facts: Facts) -> str:
    return f"it routes for others: {facts.router}" if facts.router else ""


def _no_exit_node(facts: Facts) -> str:
    return f"it uses an exit node: {facts.exit_node}" if facts.exit_node else ""


def facts_of(
    settings: Settings, accounts: Accounts, device_map: DeviceMap, wish: RouteWish | None, uplinks: Iterable[str]
) -> Facts:
    """As far as they are known now: `uplinks` are the interfaces that have a default route, `wish` what the device's
    owner wants of routes, None where nothing was said."""
    named = settings.uplinks.split(",") if settings.uplinks else []
    found = sorted({*uplinks, *(named if len(named) > UPLINKS_MAX else ())})
    shares = [
        f"{len(each)} {one}" if len(each) == 1 else f"{len(each)} {many}"
        for each, one, many in (
            (device_map.approved, "prefix", "prefixes"),
            (device_map.clients, "plain client", "plain clients"),
        )
        if each
    ]
    return Facts(
        uplinks=found,
        metered=[name for name in found if accounts.policies.budget(name).metered],
        modem=has_modem(settings.modem),
        router=", ".join(shares),
        exit_node="" if wish is None else wish.exit_node,
    )


def has_modem(setting: str, root: str = "/sys/class") -> bool:
    """Whether one is named or plugged in, though it has no connection now. A serial port alone is none."""
    if setting != "auto":
        return setting != "off"
    for kind, prefix in (("usbmisc", "cdc-wdm"), ("wwan", "")):
        with suppress(OSError):
            if any(name.startswith(prefix) for name in os.listdir(f"{root}/{kind}")):
                return True
    return False


def why_no_family() -> str:
    """Whether the kernel's WireGuard answers: generic netlink is asked for its family, which loads the module. That
    takes no rights, and tells also where no files do: a service under ProtectKernelModules sees none."""
    body = (
        _GENL.pack(_CTRL_CMD_GETFAMILY, 1, 0) + _ATTRIBUTE.pack(_ATTRIBUTE.size + 10, _FAMILY_NAME) + b"wireguard\0\0\0"
    )
    request = _MESSAGE.pack(_MESSAGE.size + len(body), _GENL_ID_CTRL, _NLM_F_REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as asking:
            asking.settimeout(PROBE_TIMEOUT_S)
            asking.bind((0, 0))
            asking.send(request)
            answer = asking.recv(4096)
    except OSError as error:
        return f"generic netlink: {error.strerror or error}"
    if len(answer) < _MESSAGE.size or _MESSAGE.unpack_from(answer)[1] != _GENL_ID_CTRL:
        return f"this kernel ({os.uname().release}) has no WireGuard"
    return ""


def why_no_nft() -> str:
    from edgeagent.io.forwarding import find_nft  # whose kernel has WireGuard needs it anyhow

    return "" if find_nft() else "no program nft, which the policy needs"


def why_no_rights() -> str:
    """Of this process; "" also where that cannot be told, for whoever tries will see."""
    wanted = (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_NET_RAW", CAP_NET_RAW))
    missing = [name for name, number in wanted if has_capability(number) is False]
    return f"without {' and '.join(missing)}" if missing else ""


def why_no_memory(path: str = "/proc/meminfo") -> str:
    """Now; "" also where that cannot be told."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            found = next((int(line.split()[1]) for line in file if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return ""
    if found is None or found >= AVAILABLE_MIN_KIB:
        return ""
    return f"{found >> 10} MiB of memory are to be had, and nft takes some for a moment"


# name, what has to be so, why it is not
_KERNEL = "the kernel has it, as a module or built in"
OF_SYSTEM: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("WireGuard", _KERNEL, lambda: choice.why_no_kernel() or ""),
    ("rights", "CAP_NET_ADMIN and CAP_NET_RAW", why_no_rights),
    ("memory", f"{AVAILABLE_MIN_KIB >> 10} MiB are to be had when it starts", lambda: why_no_memory()),
)
OF_DEVICE: tuple[tuple[str, str, Callable[[Facts], str]], ...] = (
    ("uplinks", "one at most, and no modem", _one_uplink),
    ("metered", "no uplink is", _unmetered),
    ("router", "no prefix is approved here, no plain client has this as its gateway", _no_router),
    ("exit node", "it uses no exit node", _no_exit_node),
)

# What loads something: a module, and the code that runs nft
LAST: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("WireGuard", _KERNEL, lambda: why_no_family()),
    ("nft", "the program is there", lambda: why_no_nft()),
)


def why_not(facts: Facts) -> str:
    """The first condition that does not hold, "" where all do."""
    of_system = (check() for _, _, check in OF_SYSTEM)
    last = (check() for _, _, check in LAST)
    return next(filter(None, of_system), "") or why_not_by_device(facts) or next(filter(None, last), "")


def why_not_by_device(facts: Facts) -> str:
    return next((why for _, _, check in OF_DEVICE if (why := check(facts))), "")
