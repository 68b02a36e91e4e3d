"""What must be true of a disk behind a power cut."""

from __future__ import annotations

from hil.faults.disk import DAMAGED, Found
from hil.faults.writelog import Cut

FAULTS_MAX = 100
GONE_BY_DESIGN = frozenset(("token",))  # once the hub has answered it
# What an agent has changed on its host: taken back at its end and changed again at its start, so that an earlier
# content is no older one.
MAY_RETURN = frozenset(("resolver", "routing"))


class Rule:
    """Judges cuts in the order of `cuts`. What was on the disk for sure is there: each state file whole, with that
    content or one that was written later, never with an earlier one; clocks never go back; a device can join or has
    joined; and what would start is whole, one of `versions`, and that which was committed for sure.

    A content is earlier when it was seen before the one that is there for sure. So cuts are needed at which all writes
    up to them are there, and those that leave some out come behind them.
    """

    def __init__(self, versions: set[str]) -> None:
        self.faults: list[str] = []
        self._versions = versions
        self._sure: dict[str, str] = {}
        self._since: dict[str, set[str]] = {}  # contents that were seen since, none of which is there for sure
        self._earlier: dict[str, set[str]] = {}
        self._clock = (0, 0)
        self._committed = ""

    def judge(self, cut: Cut, found: Found) -> None:
        wrong = [f"{name} is damaged" for name, digest in found.files.items() if digest == DAMAGED]
        wrong += [f"{name} is missing" for name in self._sure if name not in found.files and name not in GONE_BY_DESIGN]
        for name, digest in found.files.items():
            if digest in self._earlier.get(name, ()) and digest != self._sure.get(name):
                wrong.append(f"{name} is as it was before what is on the disk for sure")
        if any(now < sure for now, sure in zip(found.clock, self._clock, strict=True)):
            wrong.append(f"the clock went back from {self._clock} to {found.clock}")
        if self._sure and not {"token", "admission"} & set(found.files):
            wrong.append("neither a token nor an admission is there")
        if found.fault or "damaged" in found.why:
            wrong.append(found.fault or found.why)
        if found.version not in self._versions:
            wrong.append(f"version {found.version!r} would start")
        elif self._committed and found.version != self._committed:
            wrong.append(f"version {found.version!r} would start, and {self._committed!r} was committed for sure")
        if wrong and len(self.faults) < FAULTS_MAX:
            self.faults.append(f"{cut}: {'; '.join(wrong)}")
        self._note(cut, found)

    def _note(self, cut: Cut, found: Found) -> None:
        if cut.some:
            for name, digest in found.files.items():
                self._since.setdefault(name, set()).add(digest)
            return
        # All of this is on the disk for sure, and whatever was seen before was written before.
        for name, digest in found.files.items():
            if name not in MAY_RETURN:
                seen = self._since.get(name, set()) | {self._sure.get(name, digest)}
                self._earlier[name] = (self._earlier.get(name, set()) | seen) - {digest}
        self._since.clear()
        self._sure, self._clock = dict(found.files), found.clock
        self._committed = found.committed or self._committed
