"""What maps say of rollouts. `hub.core.rollouts` says who is wanted by which."""

from __future__ import annotations

from typing import Any

from hub.core.model import Device, DeviceState, Kind
from hub.core.rollout import Plan, RolloutKind
from hub.core.store import Tx

ABI_FACT = "abi"
TRIES_SPAN = 16  # `r` is the rollout's number times this, and the try's: a device takes each but once


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
    return (
        {**found, "up": {"v": plan.version, "r": rollout.id * TRIES_SPAN + row.tries, "t": target}} if target else found
    )


def target_of(plan: Plan, device: Device) -> str:
    """The name of the target that has the version for this device; "" where there is none.

    By the ABI that the device tells (as in `aarch64-musl`). One that tells none gets what is there for its machine
    alone, or for any.
    """
    abi, machine = device.facts.get(ABI_FACT, ""), device.facts.get("arch", "").replace("_", "-")
    fits = [each for each in plan.targets if machine and each.startswith(f"{machine}-")]
    if not abi and len(fits) == 1:
        abi = fits[0]
    return plan.targets.get(abi) or plan.targets.get("any", "")
