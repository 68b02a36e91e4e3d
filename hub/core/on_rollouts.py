"""What maps say of rollouts. `hub.core.rollouts` says who is wanted by which."""

from __future__ import annotations

from typing import Any

from hub.core.model import Device, DeviceState, Kind
from hub.core.rollout import Plan, RolloutKind
from hub.core.store import Tx

ABI_FACT = "abi"


def for_map(tx: Tx, device: Device) -> dict[str, Any]:
    """A map's `up` or `se`, and the first root that updates are believed by."""
    if device.kind is not Kind.DEVICE:
        return {}
    root = tx.rollouts.update_root()
    found: dict[str, Any] = {} if root is None else {"ur": [root[0], root[1]]}
    row = tx.rollouts.wanted(device.id)
    rollout = tx.rollouts.get(row.rollout) if row is not None else None
    if row is None or rollout is None or device.state is not DeviceState.ACTIVE:
        return found
    plan = rollout.plan
    if rollout.kind is RolloutKind.SETTINGS:
        return {**found, "se": {"g": row.order, "c": plan.confirm_s, "k": plan.settings}}
    target = target_of(plan, device)
    return {**found, "up": {"v": plan.version, "r": rollout.id, "t": target}} if target else found


def target_of(plan: Plan, device: Device) -> str:
    """ "" where the version is not there for it. A device that tells no ABI gets what is for any, or the only one."""
    abi = device.facts.get(ABI_FACT, "")
    if not abi and len(plan.targets) == 1:
        return next(iter(plan.targets.values()))
    return plan.targets.get(abi) or plan.targets.get("any", "")
