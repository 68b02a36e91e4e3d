"""What `edgeagent doctor` says of engines: check, state, what is there, its meaning, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeagent import enginerule, probes
from edgeagent.engine import choice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeagent.config import Settings

    Row = tuple[str, str, str, str, str]

OK, WARNING, FAILED = "ok", "warning", "failed"


def engine_rows(settings: Settings) -> Iterator[Row]:
    """The engine that needs nothing of the kernel, and which conditions of the kernel's do not hold, as far as that can
    be seen without an agent: what the hub's map says is an agent's."""
    meaning = "What moves the packets of an agent with these settings where the kernel's WireGuard is not taken."
    try:
        engine, why = choice.choose(asked=choice.AUTO if settings.engine == "kernel" else settings.engine)
    except choice.EngineUnavailable as error:
        mend = "Leave the setting `engine` at auto, or see C library."
        yield "engine", FAILED, str(error), "An agent with these settings ends with this error.", mend
    else:
        yield "engine", OK, f"{engine}: {why}", meaning, ""
    missing = _missing(settings)
    meaning = "Where one of its conditions does not hold another engine is taken: edgeagent status says which runs."
    if settings.engine == "kernel" and missing:
        mend = "Leave the setting `engine` at auto, or mend what is named."
        yield "kernel WireGuard", WARNING, f"asked for by name; {'; '.join(missing)}", meaning, mend
    elif settings.engine in ("fast", "pure"):
        yield "kernel WireGuard", OK, "not taken: the setting `engine` says so", meaning, ""
    else:
        found = f"not taken: {'; '.join(missing)}" if missing else "all that can be seen here holds"
        yield "kernel WireGuard", OK, found, meaning, ""


def _missing(settings: Settings) -> list[str]:
    missing = [f"{name}: {why}" for name, _, check in enginerule.OF_SYSTEM if (why := check())]
    facts = enginerule.Facts(
        uplinks=probes.default_route_interfaces(),
        modem=enginerule.has_modem(settings.modem),
    )
    missing += [f"{name}: {why}" for name, _, check in enginerule.OF_DEVICE if (why := check(facts))]
    if not any(each.startswith("WireGuard") for each in missing):
        missing += [f"{name}: {why}" for name, _, check in enginerule.LAST if (why := check())]
    return missing
