"""What names devices resolve: the domain, search and split domains, resolvers, records."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from edgeagent.proto.dnssettings import RECORD_KINDS, RECORDS_MAX, RESOLVERS_MAX, SEARCH_MAX, SPLIT_MAX
from hub import operations
from hub.core import naming
from hub.core.filters import parse
from hub.core.model import HubError
from hub.core.roles import Principal
from hub.operations import Doing
from hub.store import devices
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.views.common import Trouble, back, is_part, page, trouble

router = APIRouter(include_in_schema=False)

EXAMPLES_SHOWN = 2
LIMITS = {"records": RECORDS_MAX, "split": SPLIT_MAX, "search": SEARCH_MAX, "resolvers": RESOLVERS_MAX}
_NAMED = parse("state:active online:yes")
_ANY = parse("state:active")

Reader = Annotated[Principal, allowed("names:read")]
Writer = Annotated[Principal, allowed("names:write")]
Text = Annotated[str, Form(max_length=1_000)]


@router.get("/names")
def show(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    return page(request, "names_body.html" if is_part(request) else "names.html", _context(backend))


@router.post("/names/search")
def search(request: Request, who: Writer, backend: CurrentBackend, how: Text, domains: Text = "") -> Response:
    """`how`: default, none or these."""

    def change(do: Doing) -> None:
        wanted = None if how == "default" else domains.replace(",", " ").split() if how == "these" else []
        if how == "these" and not wanted:
            raise HubError("domains: write at least one, or choose one of the other two")
        operations.set_search(do, wanted)

    form = {"how": how, "domains": domains}
    return _change(request, backend, who, change, form, {"domains": "domains", "domain": "domains"})


@router.post("/names/resolvers")
def resolvers(request: Request, who: Writer, backend: CurrentBackend, resolvers: Text = "") -> Response:
    """None at all: each device's host goes on to use its own."""
    return _change(
        request,
        backend,
        who,
        lambda do: operations.set_resolvers(do, resolvers.replace(",", " ").split()),
        {"resolvers": resolvers},
        {"resolver": "resolvers"},
    )


@router.post("/names/split")
def split(request: Request, who: Writer, backend: CurrentBackend, domain: Text = "", to: Text = "") -> Response:
    return _change(
        request,
        backend,
        who,
        lambda do: operations.set_split(do, domain.strip(), to.replace(",", " ").split()),
        {"domain": domain, "to": to},
        {"domain": "domain", "resolver": "to", "0": "to"},
    )


@router.post("/names/split/remove")
def unsplit(who: Writer, backend: CurrentBackend, domain: Text) -> Response:
    with backend.doing(who) as do:
        operations.unset_split(do, domain)
    return back("/names", "names-saved")


@router.post("/names/records")
def add_record(
    request: Request, who: Writer, backend: CurrentBackend, name: Text = "", kind: Text = "", value: Text = ""
) -> Response:
    return _change(
        request,
        backend,
        who,
        lambda do: operations.add_record(do, name.strip(), kind, value.strip()),
        {"name": name, "kind": kind, "value": value},
        {"name": "name", "type": "kind", "value": "value"},
    )


@router.post("/names/records/remove")
def remove_record(who: Writer, backend: CurrentBackend, name: Text, kind: Text, value: Text) -> Response:
    with backend.doing(who) as do:
        operations.remove_record(do, name, kind, value)
    return back("/names", "names-saved")


def _change(
    request: Request, backend: Backend, who: Principal, change: Any, form: dict[str, str], fields: dict[str, str]
) -> Response:
    """Do it; or show the page again with what was typed, and what is wrong with it."""
    try:
        with backend.doing(who) as do:
            change(do)
    except HubError as error:
        context = _context(backend)
        context["form"] = {**context["form"], **form}
        return page(request, "names.html", {**context, "wrong": trouble(error, fields)}, 400)
    return back("/names", "names-saved")


def _context(backend: Backend) -> dict[str, Any]:
    with backend.read() as tx:
        names, known = naming.load(tx), naming.as_json(tx)
        examples = _examples(tx)
    how = "default" if names.search is None else "these" if names.search else "none"
    return {
        "known": known,
        "rows": [
            (record.name or naming.APEX, record.kind, record.value, shown)
            for record, shown in zip(names.records, known["records"], strict=True)
        ],
        "forward": [(domain, to) for domain, to in known["split"].items() if not domain.endswith(".arpa")],
        "kinds": RECORD_KINDS,
        "limits": LIMITS,
        "examples": examples,
        "form": {
            "how": how,
            "domains": " ".join(names.search or []),
            "resolvers": " ".join(known["resolvers"]),
            **dict.fromkeys(("domain", "to", "name", "value"), ""),
            "kind": RECORD_KINDS[0],
        },
        "wrong": Trouble(),
    }


def _examples(tx: SqlTx) -> list[tuple[str, str]]:
    """(host name, address) of some devices of this network."""
    found = devices.find(tx.connection, _NAMED, 0, limit=EXAMPLES_SHOWN).rows
    found = found or devices.find(tx.connection, _ANY, 0, limit=EXAMPLES_SHOWN).rows
    return [(row.name, str(IPv4Address(row.v4))) for row in found if row.name and row.v4 is not None]
