"""The fleet as pictures: who knows whom, and where devices are. A page, and the data that its script draws."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hub.core.roles import Principal
from hub.store import fleet
from hub.store.devices import DeviceRow
from hub.web.auth import CurrentBackend, allowed
from hub.web.look import state_of, v4
from hub.web.views.common import page

router = APIRouter(include_in_schema=False)

GRAPH_MAX = 300
MAP_MAX = 2_000

Reader = Annotated[Principal, allowed("devices:read")]


@router.get("/topology")
def topology(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        rows, edges, total = fleet.graph(tx.connection, GRAPH_MAX)
    context = {"rows": rows, "edges": edges, "total": total, "graph_max": GRAPH_MAX, "degrees": _degrees(rows, edges)}
    return page(request, "topology.html", context)


@router.get("/topology/data")
def topology_data(who: Reader, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        rows, edges, total = fleet.graph(tx.connection, GRAPH_MAX)
    return JSONResponse({"nodes": [_node(row) for row in rows], "edges": edges, "total": total})


@router.get("/map")
def map_(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        places = find_places(fleet.located(tx.connection, MAP_MAX))
        total = sum(tx.device_counts().values())
    return page(request, "map.html", {"places": places, "total": total})


@router.get("/map/data")
def map_data(who: Reader, backend: CurrentBackend) -> Response:
    with backend.read() as tx:
        places = find_places(fleet.located(tx.connection, MAP_MAX))
    return JSONResponse([{**_node(row), "at": at} for row, at in places])


def find_places(rows: list[DeviceRow]) -> list[tuple[DeviceRow, tuple[float, float]]]:
    """Those whose `lat` and `lon` are degrees (WGS 84); the others said something else."""
    found = []
    for row in rows:
        try:
            latitude, longitude = float(row.facts["lat"]), float(row.facts["lon"])
        except (KeyError, ValueError):
            continue
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            found.append((row, (round(latitude, 4), round(longitude, 4))))
    return found


def _node(row: DeviceRow) -> dict[str, Any]:
    kind, word = state_of(row)
    return {
        "id": row.id,
        "name": row.name or row.id[:8],
        "kind": kind,
        "state": word,
        "address": v4(row),
        "tags": row.tags,
    }


def _degrees(rows: list[DeviceRow], edges: list[tuple[str, str]]) -> list[tuple[DeviceRow, int]]:
    """For those who do not see the picture: how many each one knows, the most first."""
    counts = dict.fromkeys((row.id for row in rows), 0)
    for one, other in edges:
        counts[one] += 1
        counts[other] += 1
    return sorted(((row, counts[row.id]) for row in rows), key=lambda item: (-item[1], item[0].name or ""))
