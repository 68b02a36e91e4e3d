"""The policy: looked at, checked, compared with the one that holds, and set."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response

from hub import operations
from hub.core import policy_ends
from hub.core.model import HubError
from hub.core.policing import check_policy, find_policy
from hub.core.policy.compile import Facts, Policy
from hub.core.policy.evaluate import matrix, services_text
from hub.core.policy.hujson import BYTES_MAX
from hub.core.policy.problems import PolicyError, Problem
from hub.core.policy.reading import read
from hub.core.roles import Principal
from hub.store import fleet
from hub.store.sql import SqlTx
from hub.web.auth import CurrentBackend, allowed
from hub.web.views.common import back, page

router = APIRouter(include_in_schema=False)

MATRIX_MAX = 12  # kinds of devices, the most frequent first
HISTORY_SHOWN = 20
DIFF_MAX = 400  # lines
PROBLEMS_MAX = 50
EXAMPLE = """{
  // Who may reach what. What no rule allows is denied, once this is in force.
  "groups": {
    "group:operators": ["ada@example.org"],
  },
  "tagOwners": {
    "tag:camera": ["group:operators"],
    "tag:server": ["group:operators"],
  },
  "acls": [
    // Operators reach everything, for a start.
    {"action": "accept", "src": ["group:operators"], "dst": ["*:*"]},
    // Cameras send their pictures to servers, and reach nothing else.
    {"action": "accept", "src": ["tag:camera"], "dst": ["tag:server:443"]},
  ],
  // Checked before the policy is taken: a mistake above is told here.
  "tests": [
    {"src": "tag:camera", "accept": ["tag:server:443"], "deny": ["tag:camera:22"]},
  ],
}
"""

Reader = Annotated[Principal, allowed("policy:read")]
Writer = Annotated[Principal, allowed("policy:write")]
Text = Annotated[str, Form(max_length=2 * BYTES_MAX)]


@dataclass(frozen=True)
class Cell:
    kind: str  # yes: everything, some, or "" for nothing
    text: str


@dataclass(frozen=True)
class DiffLine:
    kind: str  # add, del, skip-row or ""
    text: str


@router.get("/policy")
def show(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    version: Annotated[int, Query(ge=0, le=1 << 31)] = 0,
) -> Response:
    """`version`: an older one, to look at or begin from."""
    with backend.read() as tx:
        newest = tx.policy_version()
        stored = find_policy(tx, version) if newest else None
        text = stored.text if stored is not None else EXAMPLE
        context = {**_frame(tx), "text": text, "shown": stored, "older": bool(version) and version != newest}
        context["result"] = _look(tx, text) if newest else None
    return page(request, "policy.html", context)


@router.post("/policy/check")
def check(request: Request, who: Reader, backend: CurrentBackend, text: Text) -> Response:
    """What is wrong with it, what it would change, and who would reach what. Nothing is changed."""
    with backend.read() as tx:
        context = {"result": _look(tx, _lines(text))}
    return page(request, "policy_result.html", context)


@router.post("/policy")
def save(request: Request, who: Writer, backend: CurrentBackend, text: Text, base: int = Form()) -> Response:
    """`base`: the version that the editor began from; somebody else's change since then is not undone unseen."""
    text = _lines(text)
    try:
        with backend.doing(who) as do:
            newest = do.tx.policy_version()
            if newest != base:
                raise PolicyError([Problem(1, 1, _CHANGED.format(newest=newest, base=base))])
            operations.set_policy(do, text, who.login)
    except PolicyError as error:
        with backend.read() as tx:
            context = {**_frame(tx), "text": text, "shown": None, "older": False, "base": base}
            context["result"] = _refused(tx, text, error)
        return page(request, "policy.html", context, 422)
    return back("/policy", "policy-saved")


_CHANGED = (
    "somebody set version {newest} while you edited version {base}. Nothing is lost: compare below, "
    "then load the page again and put your change into the newer one"
)


@router.get("/policy/explain")
def explain(
    request: Request,
    who: Reader,
    backend: CurrentBackend,
    src: Annotated[str, Query(max_length=300)] = "",
    dst: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """Of the policy that holds."""
    answer, wrong, lines = None, "", list[str]()
    with backend.read() as tx:
        try:
            stored = find_policy(tx)
            lines = stored.text.split("\n")
            policy = Policy(read(stored.text), stored.version)
            answer = policy_ends.explain(tx, policy, src.strip(), dst.strip())
        except HubError as error:
            wrong = str(error)
        except PolicyError:
            wrong = "the policy that holds was made by another version of this hub and cannot be read. Set it anew"
    return page(request, "policy_explain.html", {"answer": answer, "wrong": wrong, "lines": lines})


def _lines(text: str) -> str:
    """Browsers send line ends as CRLF (HTML, 4.10.21.4)."""
    return text.replace("\r\n", "\n")


def _frame(tx: SqlTx) -> dict[str, Any]:
    newest = tx.policy_version()
    return {"newest": newest, "base": newest, "history": tx.policies()[:HISTORY_SHOWN]}


def _look(tx: SqlTx, text: str) -> dict[str, Any]:
    try:
        policy = check_policy(tx, text)
    except PolicyError as error:
        return _refused(tx, text, error)
    document = policy.document
    devices = [(_label(tags, user), Facts(tags=tags, user=user), count) for tags, user, count in _kinds(tx)]
    reach = matrix(policy, [(label, facts) for label, facts, _ in devices])
    return {
        "good": True,
        "problems": (),
        "warnings": document.warnings[:PROBLEMS_MAX],
        "counts": [
            (len(document.rules), "rules"),
            (len(document.groups), "groups"),
            (len(document.tag_owners), "tags"),
        ],
        "tests": len(document.tests),
        "kinds": [(label, count) for label, _, count in devices],
        "matrix": [[_cell(services_text(services)) for services in row] for row in reach],
        **_diff(tx, text),
    }


def _refused(tx: SqlTx, text: str, error: PolicyError) -> dict[str, Any]:
    return {"good": False, "problems": error.problems[:PROBLEMS_MAX], "warnings": (), **_diff(tx, text)}


def _kinds(tx: SqlTx) -> list[tuple[tuple[str, ...], str, int]]:
    return fleet.identities(tx.connection, MATRIX_MAX)


def _label(tags: tuple[str, ...], user: str) -> str:
    return " ".join(tags) or user or "nobody’s"


def _cell(text: str) -> Cell:
    return Cell("yes" if text == "any *" else "some" if text else "", text)


def _diff(tx: SqlTx, text: str) -> dict[str, Any]:
    """Against the policy that holds; `diff` is empty when nothing would change."""
    newest = tx.policy_version()
    if not newest:
        return {"diff": [], "diff_cut": False, "first": True}
    before = find_policy(tx).text.splitlines()
    kinds = {"+": "add", "-": "del", "@": "skip-row"}
    lines = [
        DiffLine(kinds.get(line[0], ""), line[1:] if line[0] in "+- " else "⋯")
        for line in list(difflib.unified_diff(before, text.splitlines(), lineterm=""))[2:]
        if not line.startswith("@@ -1,")  # nothing is left out before the first line
    ]
    return {"diff": lines[:DIFF_MAX], "diff_cut": len(lines) > DIFF_MAX, "first": False}
