"""Rollouts of the store in memory: the slow twin of `hub.store.rollouts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hub.core.model import Device, DeviceState
from hub.core.rollout import WANTING, Progress, Rollout, RolloutDevice


class MemoryRollouts:
    """See `hub.core.rollout_rows.RolloutRows`."""

    def __init__(
        self,
        tables: dict[str, dict[Any, Any]],
        put: Callable[[str, Any, Any], None],
        count: Callable[[str], int],
        missing: object,
    ) -> None:
        self._rollouts: dict[int, Rollout] = tables["rollout"]
        self._rows: dict[tuple[int, str], RolloutDevice] = tables["rollout_device"]
        self._devices: dict[str, Device] = tables["device"]
        self._root: dict[str, tuple[int, bytes]] = tables["update"]
        self._put, self._count, self._missing = put, count, missing

    def next_id(self) -> int:
        return self._count("rollout")

    def add(self, rollout: Rollout) -> None:
        self._put("rollout", rollout.id, replace(rollout))

    def save(self, rollout: Rollout) -> None:
        self._put("rollout", rollout.id, replace(rollout))

    def get(self, rollout_id: int) -> Rollout | None:
        found = self._rollouts.get(rollout_id)
        return None if found is None else replace(found)

    def newest(self, limit: int = 100) -> list[Rollout]:
        return [replace(self._rollouts[number]) for number in sorted(self._rollouts, reverse=True)[:limit]]

    def under_way(self) -> list[Rollout]:
        return [rollout for rollout in reversed(self.newest(len(self._rollouts))) if rollout.state.is_open]

    def beyond(self, count: int) -> list[int]:
        return [rollout.id for rollout in self.newest(len(self._rollouts)) if not rollout.state.is_open][count:]

    def drop(self, rollout_id: int) -> None:
        for key in [key for key in self._rows if key[0] == rollout_id]:
            self._put("rollout_device", key, self._missing)
        self._put("rollout", rollout_id, self._missing)

    def add_devices(self, rows: list[RolloutDevice]) -> None:
        for row in rows:
            self.save_device(row)

    def save_device(self, row: RolloutDevice) -> None:
        if row.state in WANTING:
            held = self.wanted(row.device)
            assert held is None or held.rollout == row.rollout, f"{row.device} is wanted by two rollouts"
        self._put("rollout_device", (row.rollout, row.device), replace(row))

    def device(self, rollout_id: int, device_id: str) -> RolloutDevice | None:
        found = self._rows.get((rollout_id, device_id))
        return None if found is None else replace(found)

    def devices(
        self, rollout_id: int, *, state: Progress | None = None, after: int = -1, limit: int = 100
    ) -> list[RolloutDevice]:
        return self._some(lambda row: row.rollout == rollout_id and state in (None, row.state) and row.rank > after)[
            :limit
        ]

    def of_device(self, device_id: str, limit: int = 10) -> list[RolloutDevice]:
        found = self._some(lambda row: row.device == device_id)
        return sorted(found, key=lambda row: -row.rollout)[:limit]

    def wanted(self, device_id: str) -> RolloutDevice | None:
        return next(iter(self._some(lambda row: row.device == device_id and row.state in WANTING)), None)

    def candidates(self, rollout_id: int, limit: int) -> list[RolloutDevice]:
        return self._free(rollout_id, Progress.PENDING)[:limit]

    def late(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        found = self._some(lambda r: r.rollout == rollout_id and 0 < r.due_s <= wall_s and r.state in WANTING)
        return sorted(found, key=lambda row: (row.due_s, row.rank))[:limit]

    def retries_due(self, rollout_id: int, wall_s: int, limit: int) -> list[RolloutDevice]:
        found = [row for row in self._free(rollout_id, Progress.RETRY) if row.due_s <= wall_s]
        return sorted(found, key=lambda row: (row.due_s, row.rank))[:limit]

    def counts(self, rollout_id: int) -> list[tuple[int, Progress, bool, bool, int]]:
        found = Counter(
            (row.group, row.state, self._is_online(row.device), self._is_active(row.device))
            for row in self._rows.values()
            if row.rollout == rollout_id
        )
        return [(*key, number) for key, number in found.items()]

    def update_root(self) -> tuple[int, bytes] | None:
        return self._root.get("root")

    def save_update_root(self, version: int, digest: bytes) -> None:
        self._put("update", "root", (version, digest))

    def _free(self, rollout_id: int, state: Progress) -> list[RolloutDevice]:
        return [
            row
            for row in self._some(lambda row: row.rollout == rollout_id and row.state is state)
            if self._is_active(row.device) and self._is_online(row.device) and self.wanted(row.device) is None
        ]

    def _is_active(self, device_id: str) -> bool:
        device = self._devices.get(device_id)
        return device is not None and device.state is DeviceState.ACTIVE

    def _is_online(self, device_id: str) -> bool:
        device = self._devices.get(device_id)
        return device is not None and device.online

    def _some(self, wanted: Callable[[RolloutDevice], bool]) -> list[RolloutDevice]:
        found = [replace(row) for row in self._rows.values() if wanted(row)]
        return sorted(found, key=lambda row: (row.rank, row.device))
