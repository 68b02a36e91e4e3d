"""What is done to the repository of updates, as the rest of the hub hears of it: audit rows, rollouts, first roots."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hub.agentfile import AgentFile
from hub.core import rollouts
from hub.operations import Doing
from hub.published import Published
from hub.state import State

if TYPE_CHECKING:
    from hub.updates import Repository


class Writing:
    """`with Writing(state) as repository`: the only writer; python-tuf is loaded now."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._stack = ExitStack()

    def __enter__(self) -> Repository:
        from hub.updates import Repository

        return self._stack.enter_context(Repository(self._state.updates).writing())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def note_root(do: Doing, repository: Repository, version: int) -> None:
    """Devices are told of the first root, once and for good."""
    if do.tx.rollouts.update_root() is None:
        do.tx.rollouts.save_update_root(1, repository.root_digest())
    do.note("update.root", f"root:{version}", version=version)
    do.tx.note("rollouts")


def note_published(do: Doing, agent: AgentFile) -> None:
    do.note("update.publish", f"version:{agent.version}", abi=agent.abi, bytes=len(agent.data))
    do.tx.note("rollouts")


def note_revoked(do: Doing, version: str) -> list[int]:
    """The numbers of the rollouts that pause."""
    paused = rollouts.pause_version(do.tx, version, do.wall_s, f"version {version} was revoked")
    do.note("update.revoke", f"version:{version}", rollouts=" ".join(str(each.id) for each in paused))
    do.tx.note("rollouts")
    return [each.id for each in paused]


def describe(found: Published) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "versions": [
            {
                "version": each.version,
                "abi": each.abi,
                "bytes": each.length,
                "sha256": each.sha256,
                "published": each.published_s,
                "file": each.name,
            }
            for each in found.targets
        ],
        "roles": [{"role": role.name, "version": role.version, "expires": role.expires_s} for role in found.roles],
        "revoked": list(found.revoked),
    }
