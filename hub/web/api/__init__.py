"""`/api/v1`: everything that the dashboard does, as JSON."""

from __future__ import annotations

from fastapi import APIRouter

from hub.web import claims, passkeys
from hub.web.api import commands, devices, joining, lock, network, people, policy, rigs, rollouts, system
from hub.web.api.common import PROBLEMS

router = APIRouter(prefix="/api/v1", responses=PROBLEMS)
for part in (system, devices, commands, rollouts, rigs, joining, network, policy, lock, people, passkeys, claims):
    router.include_router(part.router)
