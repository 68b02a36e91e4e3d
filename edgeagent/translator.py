"""4via6 at work: a translator beside the tunnel, kept alive, and the routes that lead into it. Only routers of such
prefixes load this.

```
edge0 ──▶ kernel: filter, one source ──▶ edge0-via ──▶ TAYGA ──▶ edge0-via ──▶ kernel: filter, router's source ──▶ site
          IPv6                                                                IPv4
```
The tables of nftables (io/forwarding.py) are there before it is, and let nothing through that they do not name.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from edgeagent.io import tayga
from edgeagent.io.child import Child
from edgeagent.io.rtnetlink import Route
from edgeagent.proto import via
from edgeagent.proto.prefixes import mask
from edgeagent.surroundings import has_capability

if TYPE_CHECKING:
    from selectors import BaseSelector

    from edgeagent.io.netlink import Netlink
    from edgeagent.proto.prefixes import Prefix

log = logging.getLogger("edgeagent")
LOOK_S = 0.05  # whether its interface is there
APPEARS_S = 5.0
AGAIN_S, AGAIN_MAX_S = 1.0, 60.0  # from its end to its next beginning, doubled each time
STEADY_S = 60.0  # who ran that long begins with the first of these again
OUTPUT_MAX = 65_536
_DROPPING = (6, 7, 18)  # CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT


class Translator:
    """Drive it: `serve` what is approved, `on_timeout` at `poll_timeout()`, and `close`. `problem` says why nothing is
    translated at present, "" where all is well or it has only just begun."""

    def __init__(self, selector: BaseSelector, netlink: Netlink, tunnel: str, program: str, state_dir: str) -> None:
        self.problem = ""
        self.index = 0  # of its interface; 0 while there is none
        self.ends = tayga.Ends(tunnel)
        self._selector = selector
        self._netlink = netlink
        self._program = program
        self._folder = os.path.join(os.path.abspath(state_dir), tayga.FOLDER)
        self._network: Prefix | None = None
        self._prefixes: list[Prefix] = []
        self._routes: list[Prefix] = []  # in the kernel
        self._child: Child | None = None
        self._began = 0.0
        self._look_at: float | None = None
        self._again_at: float | None = None
        self._again_s = AGAIN_S

    def serve(self, now: float, prefixes: list[Prefix]) -> None:
        """IPv6 prefixes of one site, at least one. Raises OSError for what the kernel refuses."""
        network = (mask(prefixes[0][0], via.BITS), via.BITS)
        self._prefixes = prefixes
        if network != self._network:
            self._end()
            if self._network is None:
                tayga.end_leftovers(self._folder)  # else the interface would be theirs
            self._network, self._again_s = network, AGAIN_S
            self._begin(now)
        elif self.index:
            self._route()

    def poll_timeout(self) -> float | None:
        if self._child is not None and self._child.ended:
            return 0.0
        child = None if self._child is None else self._child.poll_timeout()
        return min((at for at in (child, self._look_at, self._again_at) if at is not None), default=None)

    def on_timeout(self, now: float) -> bool:
        """Whether its interface, or what is wrong, is another now, which the rest of the kernel's settings follow."""
        before = self.index, self.problem
        if self._child is not None:
            self._child.on_timeout(now)
        if self._child is not None and self._child.ended:
            self._ended(now)
        elif self._look_at is not None and self._look_at <= now:
            self._look(now)
        elif self._again_at is not None and self._again_at <= now:
            self._begin(now)
        return before != (self.index, self.problem)

    def close(self) -> None:
        self._end()
        self._network = None
        tayga.remove(self._folder)

    # Inner

    def _begin(self, now: float) -> None:
        assert self._network is not None
        self._again_at = None
        self._began = now
        try:
            path = tayga.write(self._folder, tayga.configuration(self.ends, self._network, self._folder))
            drop = all(has_capability(number) for number in _DROPPING)
            self._child = Child(
                now,
                self._selector,
                tayga.words(self._program, path, drop=drop),
                {"LC_ALL": "C", "PATH": os.defpath},
                limit_s=None,
                output_max=OUTPUT_MAX,
                nice=os.getpriority(os.PRIO_PROCESS, 0),  # packets wait for it as they do for us
            )
        except OSError as error:
            self._failed(now, f"{error.filename or self._program}: {error.strerror}")
            return
        self._look_at = now + LOOK_S

    def _look(self, now: float) -> None:
        try:
            index = self._netlink.link(self.ends.interface).index
        except OSError:
            if now - self._began > APPEARS_S:
                self._end()
                self._failed(now, f"no interface {self.ends.interface} after {APPEARS_S:.0f} s")
            else:
                self._look_at = now + LOOK_S
            return
        self._look_at = None
        self.index, self._routes = index, []
        try:
            self._route()
        except OSError as error:
            self._end()
            self._failed(now, f"{self.ends.interface}: the kernel refuses its routes: {error.strerror}")
            return
        self.problem = ""
        log.info("routes: tayga translates at %s", self.ends.interface)

    def _route(self) -> None:
        """To its source, to the approved prefixes and nothing else; also where somebody took the interface down."""
        self._netlink.set_link(self.index, up=True)
        for prefix in [each for each in self._routes if each not in self._prefixes]:
            with suppress(OSError):  # somebody has
                self._netlink.delete_route(Route(*prefix, self.index))
        self._routes = list(self._prefixes)
        for address, length in [*((each, 8 * len(each)) for each in self.ends.source), *self._prefixes]:
            self._netlink.replace_route(Route(address, length, self.index))

    def _ended(self, now: float) -> None:
        child = self._child
        assert child is not None
        said = child.output.decode("utf-8", "replace").strip().splitlines()
        code = f"signal {-child.code}" if child.code < 0 else f"exit status {child.code}"
        ended = f"was stopped ({child.why})" if child.why else f"ended by itself ({code})"
        if now - self._began >= STEADY_S:
            self._again_s = AGAIN_S
        self._end()
        self._failed(now, f"tayga {ended}{': ' + said[-1][:200] if said else ''}")

    def _failed(self, now: float, why: str) -> None:
        self.problem = f"{why}. Next try {self._again_s:.0f} s after that"
        self._again_at = now + self._again_s
        self._again_s = min(2 * self._again_s, AGAIN_MAX_S)

    def _end(self) -> None:
        """Its interface goes with it, and the routes with that."""
        if self._child is not None:
            self._child.close()
            self._child = None
        self.index, self._routes = 0, []
        self._look_at = self._again_at = None
