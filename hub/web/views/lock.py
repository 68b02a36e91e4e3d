"""The network lock: how it stands, who is not signed, and files on their way to a key that never comes here, and back.

Nothing here signs: this process has no lock key, and no field takes one.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response, UploadFile
from starlette.concurrency import run_in_threadpool

from edgeagent import crypto as providers
from hub import locking
from hub.core import actions, lock
from hub.core.lock_signer import key_text, parse_key
from hub.core.model import HubError
from hub.core.roles import Principal
from hub.io.locklines import read_answers, request_line
from hub.output import parse_duration
from hub.store import lock as rows
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.backend import Backend
from hub.web.guard import BODY_MAX
from hub.web.views.common import Trouble, back, is_part, page

router = APIRouter(include_in_schema=False)

PENDING_SHOWN = 50
LIVES = {"": "for good", "90d": "90 days", "52w": "one year", "104w": "two years"}
LACKS = {
    "signature": "a lock key’s signature",
    "node-key": "its own signature of its node key: it must be online once",
}

Reader = Annotated[Principal, allowed("lock:read")]
Writer = Annotated[Principal, allowed("lock:write")]
Text = Annotated[str, Form(max_length=1_000)]


@router.get("/lock")
def show(request: Request, who: Reader, backend: CurrentBackend) -> Response:
    return page(request, "lock_body.html" if is_part(request) else "lock.html", _context(backend))


@router.get("/lock/requests")
def requests(
    who: Reader,
    backend: CurrentBackend,
    life: Annotated[str, Query(max_length=8)] = "",
    device: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """What is to be signed: one device, or all that no key of the lock has signed; lines of JSON."""
    now_s = int(time.time())
    try:
        end = now_s + parse_duration(life) if life else 0
    except ValueError as error:
        raise HubError(f"life: {error}") from error
    with backend.read() as tx:
        wanted = [actions.find_device(tx, device)] if device else []
        found = locking.requests(_view(tx), tx, now_s, wanted, end=end)
    return _file("lock-requests.txt", [request_line(each) for each in found])


@router.post("/lock/statement")
def draft(request: Request, who: Writer, backend: CurrentBackend, what: Text, key: Text = "") -> Response:
    """A change of the lock, written down to be signed. `what`: init, on, off, add or remove."""
    try:
        with backend.read() as tx:
            made = _draft(tx, what, key)
    except HubError as error:
        context = _context(backend)
        if (what == "init") is (context["statement"] is not None):
            raise  # of a page from before the lock was another; there is no such form on it now
        return page(request, "lock.html", {**context, "wrong": Trouble(what, str(error))}, 400)
    return _file(f"lock-{what}.txt", [request_line(made)])


@router.post("/lock/signatures")
async def take(request: Request, who: Writer, backend: CurrentBackend, file: UploadFile) -> Response:
    """What came back: all of it is put in force, or nothing."""
    data = await file.read()
    try:
        count = await run_in_threadpool(_take, backend, who, data)
    except HubError as error:
        wrong = Trouble("file", str(error))
        context = await run_in_threadpool(_context, backend)
        return await run_in_threadpool(page, request, "lock.html", {**context, "wrong": wrong}, 400)
    return back("/lock", "lock-taken", n=count)


def _take(backend: Backend, who: Principal, data: bytes) -> int:
    answers = read_answers(data.decode("utf-8", "replace").splitlines())
    if not answers:
        raise HubError("the file is empty. It should be what `edgehub lock sign-requests --out` wrote")
    with backend.doing(who) as do:
        locking.take_answers(do, answers)
    return len(answers)


def _draft(tx: SqlTx, what: str, key: str) -> lock.Draft:
    view, now_s = _view(tx), int(time.time())
    if what == "init":
        return lock.first_draft(view, tx, [parse_key(each) for each in dict.fromkeys(key.split())])
    if what in ("on", "off"):
        return locking.draft_request(view, tx, now_s, on=what == "on")
    if what == "add":
        return locking.draft_request(view, tx, now_s, add=parse_key(key.strip()))
    if what == "remove":
        return locking.draft_request(view, tx, now_s, remove=parse_key(key.strip()))
    raise HubError(f"{what[:20]!r} is no change of a lock")


def _view(tx: SqlTx) -> lock.LockView:
    return lock.LockView(providers.load(), tx.network().id)


def _context(backend: Backend) -> dict[str, Any]:
    now_s = int(time.time())
    with backend.read() as tx:
        view = _view(tx)
        statement = view.in_force(tx)
        known: dict[str, Any] = {"statement": statement, "lives": LIVES, "wrong": Trouble(), "file_max": BODY_MAX}
        if statement is None:
            return known
        total, waiting, ending = rows.counts(tx.connection, statement, now_s)
        ids = rows.pending(tx.connection, statement, now_s, limit=PENDING_SHOWN)
        found = [device for device in (tx.device(each) for each in ids) if device is not None]
        standings = lock.standing(view, tx, found, now_s)
        revoked = [(each, tx.device(each), until) for each, until in statement.revoked.items()]
    return {
        **known,
        "total": total,
        "waiting": waiting,
        "keys": [(key_text(each), each == statement.by) for each in statement.keys],
        "unsigned": [(each.device, _lacks(each)) for each in standings],
        "ending": ending,
        "revoked": revoked,
    }


def _lacks(each: lock.Standing) -> list[str]:
    return [LACKS[what] for what, has in (("signature", bool(each.by)), ("node-key", each.node_key)) if not has]


def _file(name: str, lines: list[str]) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return Response("".join(f"{line}\n" for line in lines), media_type="text/plain; charset=utf-8", headers=headers)
