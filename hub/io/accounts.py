"""MQTT accounts: who may connect, kept in step with the hub's database.

`Dynsec` speaks to Mosquitto's dynamic security plugin over MQTT, so an account is made or ended while the broker runs.
`PasswordFile` is for a broker that somebody else runs and that has no such plugin: it writes files for that person.
What an account may read and write is the same for all of a kind and stands in an access list (`access_list`).
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeagent.proto.names import is_claim_id, is_device_id
from hub.core.credential import ITERATIONS, split_credential
from hub.core.model import Op, Outgoing, Role

CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
RESPONSE_TOPIC = CONTROL_TOPIC + "/response"
PAGE = 500
_LIST = "list"


@dataclass(slots=True, frozen=True)
class Done:
    """An outgoing row has had its effect; `error` is what the broker said when it has not."""

    row: int
    error: str = ""


@dataclass(slots=True, frozen=True)
class Listed:
    """All users that the broker knows and that look like ours."""

    users: frozenset[str]


class Accounts(Protocol):
    """`send` returns what to publish on CONTROL_TOPIC; responses go to `handle_response`."""

    def make_roles(self) -> list[bytes]: ...

    def send(self, row: Outgoing) -> list[bytes]: ...

    def list_users(self) -> list[bytes]: ...

    def handle_response(self, payload: bytes) -> tuple[list[Done | Listed], list[bytes]]:
        """What has happened, and what to publish next."""

    def reset(self) -> None:
        """The connection was lost: what was under way will be sent again."""


class Dynsec:
    """Commands of Mosquitto's dynamic security plugin, each marked with the row that it is for.

    The plugin writes its whole file at each change: about 35 ms at 10,000 accounts.
    """

    def __init__(self, network: str) -> None:
        self._network = network
        self._rows: dict[str, Outgoing] = {}
        self._users: list[str] = []

    def make_roles(self) -> list[bytes]:
        """For a broker whose file this hub did not write."""
        # One that is there stays as it is: to modify it would end the sessions of all who have it.
        return [
            _command("", command="createRole", rolename=role, acls=acls) for role, acls in _roles(self._network).items()
        ]

    def send(self, row: Outgoing) -> list[bytes]:
        self._rows[str(row.id)] = row
        return [_command(str(row.id), **self._first_command(row))]

    def list_users(self) -> list[bytes]:
        self._users = []
        return [self._page(0)]

    def handle_response(self, payload: bytes) -> tuple[list[Done | Listed], list[bytes]]:
        events: list[Done | Listed] = []
        follow_ups: list[bytes] = []
        for response in json.loads(payload).get("responses", []):
            mark = str(response.get("correlationData", ""))
            error = str(response.get("error", ""))
            if mark == _LIST:
                self._handle_page(response, events, follow_ups)
            elif mark in self._rows:
                row = self._rows[mark]
                second = self._second_command(row, response.get("command"), error)
                if second is not None:
                    follow_ups.append(_command(mark, **second))
                else:
                    del self._rows[mark]
                    events.append(Done(row.id, "" if row.op is Op.REVOKE and "not found" in error else error))
        return events, follow_ups

    def reset(self) -> None:
        self._rows.clear()

    def _first_command(self, row: Outgoing) -> dict[str, Any]:
        if row.op is Op.REVOKE:
            return {"command": "deleteClient", "username": row.target}
        return self._create(row) if row.op is Op.ADMIT else _set_password(row)

    def _second_command(self, row: Outgoing, command: object, error: str) -> dict[str, Any] | None:
        """An account that is there already gets the password; one that is not there is made."""
        if command == "createClient" and "already exists" in error:
            return _set_password(row)
        if command == "setClientPassword" and "not found" in error and row.op is Op.REPASS:
            return self._create(row)
        return None

    def _create(self, row: Outgoing) -> dict[str, Any]:
        command = {
            "command": "createClient",
            "username": row.target,
            "password": row.payload.decode(),
            "roles": [{"rolename": _role(row.role, self._network)}],
        }
        if row.role is Role.DEVICE:
            command["clientid"] = row.target  # no other client id goes with this user
        return command

    def _page(self, offset: int) -> bytes:
        return _command(_LIST, command="listClients", verbose=False, count=PAGE, offset=offset)

    def _handle_page(self, response: dict[str, Any], events: list[Done | Listed], follow_ups: list[bytes]) -> None:
        page = response.get("data", {}).get("clients", [])
        self._users += page
        if len(page) == PAGE:
            follow_ups.append(self._page(len(self._users)))
        else:
            events.append(Listed(frozenset(user for user in self._users if is_device_id(user) or is_claim_id(user))))


class PasswordFile:
    """Files that the operator of another broker copies there: `passwords` (mosquitto_passwd's form) and `acl`."""

    def __init__(self, directory: Path, network: str, hub_user: str) -> None:
        self._directory = directory
        self._network = network
        self._hub_user = hub_user

    def make_roles(self) -> list[bytes]:
        return []

    def send(self, row: Outgoing) -> list[bytes]:
        return []

    def list_users(self) -> list[bytes]:
        return []

    def handle_response(self, payload: bytes) -> tuple[list[Done | Listed], list[bytes]]:
        return [], []

    def reset(self) -> None:
        """Nothing is under way."""

    def write(self, accounts: Iterable[tuple[str, str]]) -> None:
        """Both files, whole."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        _replace(self._directory / "acl", access_list(self._network, self._hub_user))
        _replace(self._directory / "passwords", "".join(f"{user}:{credential}\n" for user, credential in accounts))


def delete_user(user: str) -> bytes:
    """The command that ends an account that no row is about."""
    return _command("", command="deleteClient", username=user)


def access_list(network: str, hub_user: str) -> str:
    """Mosquitto's `acl_file`. The broker puts the user for %u, so one list serves all devices.

    It decides on each message that is written and delivered. Subscriptions are the business of the roles.
    """
    net = f"em1/{network}"
    return "\n".join(
        (
            f"user {hub_user}",
            "topic readwrite em1/#",
            "topic readwrite $CONTROL/#",
            f"pattern write {net}/%u/u/#",
            f"pattern write {net}/%u/p",
            f"pattern read {net}/%u/d/#",
            f"pattern read {net}/%u/s/#",
            f"pattern read {net}/+/p",
            f"pattern read {net}/hub/state",
            f"pattern write {net}/+/s/+",
            "",
        )
    )


def document(network: str, hub_user: str, hub_credential: str, accounts: Iterable[tuple[str, str]]) -> bytes:
    """The plugin's whole file, for a broker that starts.

    Roles only deny, and what they leave open the access list decides: a device cannot subscribe to all feeds at once,
    and who has but a join token neither sees feeds nor writes to devices.
    """
    clients = [{"username": hub_user, "roles": [{"rolename": "hub"}], **_secret(hub_credential)}]
    for user, credential in accounts:
        role = Role.CLAIM if user.startswith("c-") else Role.DEVICE
        client: dict[str, Any] = {
            "username": user,
            "roles": [{"rolename": _role(role, network)}],
            **_secret(credential),
        }
        if role is Role.DEVICE:
            client["clientid"] = user
        clients.append(client)
    content = {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": clients,
        "groups": [],
        "roles": [
            {"rolename": "hub", "acls": _hub_rules()},
            *({"rolename": role, "acls": acls} for role, acls in _roles(network).items()),
        ],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _set_password(row: Outgoing) -> dict[str, Any]:
    return {"command": "setClientPassword", "username": row.target, "password": row.payload.decode()}


def _command(mark: str, **command: Any) -> bytes:
    return json.dumps({"commands": [{**command, "correlationData": mark}]}).encode()


def _roles(network: str) -> dict[str, list[dict[str, Any]]]:
    return {_role(Role.DEVICE, network): _device_rules(network), _role(Role.CLAIM, network): _claim_rules(network)}


def _role(role: Role, network: str) -> str:
    """A broker may serve more networks than one."""
    return f"{role.value}-{network}"


def _hub_rules() -> list[dict[str, Any]]:
    kinds = ("publishClientSend", "publishClientReceive", "subscribePattern", "unsubscribePattern")
    return [_rule(kind, topic, allow=True) for kind in kinds for topic in ("em1/#", "$CONTROL/#")]


def _device_rules(network: str) -> list[dict[str, Any]]:
    net = f"em1/{network}"
    return [
        _rule("subscribeLiteral", f"{net}/+/p", allow=False, priority=9),  # not all feeds at once …
        _rule("subscribePattern", f"{net}/+/p", allow=True, priority=5),  # … but each by its name
        _rule("subscribePattern", f"{net}/+/d/#", allow=True, priority=5),
        _rule("subscribePattern", f"{net}/+/s/#", allow=True, priority=5),
        _rule("subscribeLiteral", f"{net}/hub/state", allow=True, priority=5),
        *_no_other_subscription(),
    ]


def _claim_rules(network: str) -> list[dict[str, Any]]:
    net = f"em1/{network}"
    return [
        _rule("publishClientSend", f"{net}/+/p", allow=False, priority=9),
        _rule("publishClientSend", f"{net}/+/s/+", allow=False, priority=9),
        _rule("publishClientReceive", f"{net}/+/p", allow=False, priority=9),
        _rule("subscribePattern", f"{net}/+/d/+", allow=True, priority=5),
        _rule("subscribeLiteral", f"{net}/hub/state", allow=True, priority=5),
        *_no_other_subscription(),
    ]


def _no_other_subscription() -> list[dict[str, Any]]:
    return [_rule("subscribePattern", topic, allow=False) for topic in ("#", "$SYS/#", "$CONTROL/#")]


def _rule(kind: str, topic: str, *, allow: bool, priority: int = 0) -> dict[str, Any]:
    return {"acltype": kind, "topic": topic, "priority": priority, "allow": allow}


def _secret(credential: str) -> dict[str, Any]:
    salt, digest = split_credential(credential)
    return {
        "password": b64encode(digest).decode(),
        "salt": b64encode(salt).decode(),
        "iterations": ITERATIONS,
    }


def _replace(path: Path, text: str) -> None:
    """Write a file that only its owner reads, at once or not at all."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
