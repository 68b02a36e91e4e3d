"""What rollouts ask of a store: `Tx.rollouts`. Twins: `hub.core.memory_rollouts`, `hub.store.rollouts`."""

from __future__ import annotations

from typing import Protocol

from hub.core.rollout import Progress, Rollout, RolloutDevice


class RolloutRows(Protocol):
    """Rows of one transaction. What it hands out are copies: a change counts when it is saved."""

    def next_id(self) -> int:
        """1, 2, 3 …, never the same twice."""

    def add(self, rollout: Rollout) -> None: ...

    def save(self, rollout: Rollout) -> None: ...

    def get(self, rollout_id: int) -> Rollout | None: ...

    def newest(self, limit: int = 100) -> list[Rollout]:
        """The newest first."""

    def under_way(self) -> list[Rollout]:
        """Those that are open, the oldest first."""

    def beyond(self, count: int) -> list[int]:
        """Ids of those that are over, but for the newest `count`."""

    def drop(self, rollout_id: int) -> None:
        """With its devices."""

    def add_devices(self, rows: list[RolloutDevice]) -> None: ...

    def save_device(self, row: RolloutDevice) -> None: ...

    def device(self, rollout_id: int, device_id: str) -> RolloutDevice | None: ...

    def devices(
        self, rollout_id: int, *, state: Progress | None = None, after: int = -1, limit: int = 100
    ) -> list[RolloutDevice]:
        """By rank, those after the rank `after`."""

    def of_device(self, device_id: str, limit: int = 10) -> list[RolloutDevice]:
        """In the newest rollouts first."""

    def wanted(self, device_id: str) -> RolloutDevice | None:
        """The one whose state is in WANTING: the store holds no two of a device."""

    def candidates(self, rollout_id: int, limit: int) -> list[RolloutDevice]:
        """Pending ones whose device is active, online and wanted by no rollout, by rank."""

    def late(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        """Those in a state of WANTING with a `due_s` that has come, by it."""

    def retries_due(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        """Those in RETRY with a `due_s` that has come, whose device is active, online and wanted by no rollout."""

    def counts(self, rollout_id: int) -> list[tuple[int, Progress, bool, bool, int]]:
        """(group, state, device online, device active, how many)."""

    def update_root(self) -> tuple[int, bytes] | None:
        """(version, SHA-256 of its file) of the first root that devices believe updates by."""

    def save_update_root(self, version: int, digest: bytes) -> None: ...
