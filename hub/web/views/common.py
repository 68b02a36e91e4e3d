"""What pages have in common: their frame, messages after a change, and lists that come page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ValidationError

from hub.core.model import DeviceState, HubError
from hub.web.auth import backend_of
from hub.web.pages import render

PAGE_SIZE = 50

# What a page says after a change: its name is in the address, so the words must be ours.
SAID = {
    "approved": "Approved: {n}. What is let in gets its address now.",
    "removed": "Removed: {n}. What was cut off comes back only with a new token.",
    "tagged": "Tagged: {n}.",
    "untagged": "The tag was taken from {n}.",
    "renamed": "Renamed. All who know it are told.",
    "expired": "Its admission has ended. It can join again with a token.",
    "renewed": "Its admission was renewed.",
    "revoked": "The token was revoked. Nobody new can join with it; devices that did, stay.",
    "relay-removed": "The relay was removed. Maps name it no longer.",
    "user-added": "The user was added.",
    "user-changed": "The user was changed.",
    "api-revoked": "The API token was revoked.",
    "session-ended": "The session was ended.",
    "passkey-added": "The passkey was added. It is enough to sign in with.",
    "passkey-removed": "The passkey was removed. Your device may still offer it: delete it there, too.",
    "policy-saved": "The policy is in force. Devices whose slice changed are told now.",
    "settings-saved": "The settings were saved.",
    "hook-tested": "A test event is on its way; what came of it stands beside the web hook soon.",
    "hook-removed": "The web hook was removed.",
    "asked": "The device was asked. Its answer appears below when it comes.",
    "route-approved": "Approved. The others use it as soon as they have heard of it.",
    "route-unapproved": "Not approved any more. The others stop using it as soon as they have heard of it.",
    "client-removed": "The client was removed. Its configuration is of no use any more.",
    "rollout-made": "The rollout was made. Nothing begins before it is approved.",
    "rollout-submitted": "It waits for approval now.",
    "rollout-approved": "Approved. The first devices are told now.",
    "rollout-paused": "Paused. No further device begins; one on trial ends that.",
    "rollout-resumed": "It goes on. Failures up to now are accepted.",
    "rollout-aborted": "Ended. Devices that have it keep it.",
    "rig-removed": "The rig was removed, with all its runs. The next run that is told makes it anew.",
    "names-saved": "Saved. Devices hear of it with their next maps, which are being written.",
    "lock-taken": "The signatures are in force. Devices are told now.",
}


def page(request: Request, template: str, context: dict[str, Any] | None = None, status: int = 200) -> Response:
    """A whole page with the menu around it, or, for htmx, the part of it that `part` names."""
    known = dict(context or {})
    if not is_part(request):
        with backend_of(request).read() as tx:
            known["pending"] = tx.state_count(DeviceState.PENDING)
            known["domain"] = tx.network().domain
        known["said"] = said(request)
    return render(request, template, known, status)


def is_part(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def said(request: Request) -> str:
    text = SAID.get(request.query_params.get("said", ""), "")
    count = request.query_params.get("n", "")
    number = int(count) if count.isdecimal() and len(count) < 7 else 1
    return text.format(n="1 device" if number == 1 else f"{number} devices")


def back(path: str, said: str = "", **query: str | int) -> Response:
    """After a POST: to a page, with a message."""
    if said:
        query = {**query, "said": said}
    return RedirectResponse(f"{path}?{urlencode(query)}" if query else path, 303)


def page_query(address: str, names: tuple[str, ...]) -> dict[str, str]:
    """Those parameters of a page's address that a form sent along to come back to."""
    try:
        query = parse_qsl(urlsplit(address).query, max_num_fields=16)
    except ValueError:
        return {}
    return {name: value for name, value in query if name in names}


@dataclass(frozen=True)
class Pager:
    """Where in a list a page is: `count` rows, of which the first is number `first` of `total`. `mark` is what the
    next page's address has besides; with an empty value, this page is the last."""

    path: str
    query: dict[str, str]
    first: int
    count: int
    total: int
    mark: dict[str, str]

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def begin(self) -> str:
        """The first page, for the others."""
        return self.to() if self.first > 1 else ""

    @property
    def next(self) -> str:
        return self.to(**self.mark, first=str(self.last + 1)) if any(self.mark.values()) else ""

    def to(self, **changes: str) -> str:
        query = {name: value for name, value in {**self.query, **changes}.items() if value}
        return f"{self.path}?{urlencode(query)}" if query else self.path


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a form, to be said at the field that it is about."""

    field: str = ""
    text: str = ""


def trouble(error: HubError, fields: dict[str, str], default: str = "") -> Trouble:
    """`fields`: by the first word of an error, without the dashes of a command line's option; else `default`, or the
    first of them."""
    text = str(error).removeprefix("--")
    word = text.replace(":", " ").partition(" ")[0].partition("-")[0].lower()
    return Trouble(fields.get(word, default or next(iter(fields.values()))), text)


Model = TypeVar("Model", bound=BaseModel)


def valid(model: type[Model], **values: Any) -> Model:
    """What the API's functions take, made of a form. Raises HubError, which never repeats what was typed."""
    try:
        return model(**values)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:4])
        raise HubError(said) from None
