"""A dashboard in a box: a real store in a directory, the real application, and browsers and programs that use it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal
from starlette.testclient import TestClient

from edgeagent.proto import names
from hub import people
from hub.core.audit import Entry
from hub.core.model import Device, DeviceState
from hub.core.people import Person
from hub.core.roles import Access, Principal
from hub.database import open_database
from hub.setup import Owner, initialise
from hub.state import State
from hub.store.sql import SqlTx
from hub.store.websettings import WebSettings
from hub.web.app import make_app
from tests.hub.kit import load_crypto

HERE = "http://127.0.0.1:8480"
PASSWORD = "correct horse battery staple"


class Site:
    """The application on a new hub. `secrets` collects what must never be seen anywhere."""

    def __init__(self, directory: Path, settings: WebSettings | None = None, database_url: str = "") -> None:
        self.state = State(directory)
        initialise(
            self.state,
            domain="mesh.test",
            listen="127.0.0.1:8883",
            addresses=["127.0.0.1"],
            owner=Owner("olga", PASSWORD),
            database_url=database_url,
        )
        self.app = make_app(self.state, settings)
        self.portal: BlockingPortal | None = None
        self.secrets: list[str] = [PASSWORD]

    @contextmanager
    def running(self) -> Iterator[Site]:
        """While its lifespan goes on. All requests come to that one event loop, as they do in a hub; without it each
        would start a thread with a loop of its own."""
        with TestClient(self.app, base_url=HERE) as client:
            self.portal = client.portal
            try:
                yield self
            finally:
                self.portal = None

    def client(self, base: str = HERE, **options: Any) -> TestClient:
        client = TestClient(self.app, base_url=base, **options)
        client.portal = self.portal
        return client

    @contextmanager
    def write(self) -> Iterator[SqlTx]:
        with closing(open_database(self.state)) as store, store.write() as tx:
            yield tx

    def add_person(self, login: str, role: Access) -> Person:
        with self.write() as tx:
            return people.add_person(tx, int(time.time()), "cli:test", login=login, role=role, password=PASSWORD)

    def add_device(self, number: int, **fields: Any) -> Device:
        device = Device(
            id=device_id(number),
            state=fields.pop("state", DeviceState.ACTIVE),
            claim="c-aaaaaaaaaaaaaaaa",
            device_key=number.to_bytes(32, "big"),
            box_key=load_crypto().x25519_base(bytes([number]) * 32),
            node_key=number.to_bytes(32, "little"),
            created_s=int(time.time()) - number,
            **{"name": f"box-{number}", "v4": 0x64400000 + number, **fields},
        )
        with self.write() as tx:
            tx.add_device(device)
        return device

    def token(self, login: str, *scopes: str, life_s: int = 3_600) -> str:
        """A new API token."""
        with self.write() as tx:
            owner = people.find_person(tx, login)
            who = Principal(owner.id, owner.login, owner.name, owner.role)
            _, text = people.make_token(tx, int(time.time()), who, name="t", scopes=scopes, life_s=life_s)
        self.secrets.append(text.rpartition("_")[2] if text.count("_") == 2 else text[16:])
        return text

    def audit(self, verb: str = "") -> list[Entry]:
        with closing(open_database(self.state)) as store, store.read() as tx:
            return [entry for entry in tx.audit_rows(limit=10_000) if not verb or entry.verb == verb]

    def browser(self) -> Browser:
        return Browser(self)

    def program(self, token: str) -> TestClient:
        """Sends an API token, and no cookie."""
        return self.client(headers={"Authorization": f"Bearer {token}"})


def device_id(number: int) -> str:
    return names.device_id(load_crypto(), number.to_bytes(32, "big"))


class Browser:
    """Has cookies, and says where a form stands."""

    def __init__(self, site: Site, base: str = HERE) -> None:
        self.site = site
        self.client = site.client(base, headers={"Origin": base}, follow_redirects=False)
        self._csrf = ("", "")  # of which session, and what its pages carry

    def sign_in(self, login: str = "olga", password: str = PASSWORD) -> Any:
        answer = self.client.post("/login", data={"login": login, "password": password})
        self.site.secrets += list(self.client.cookies.values())
        return answer

    @property
    def csrf(self) -> str:
        """As scripts have it: from a page of this session that was loaded once."""
        session = repr(sorted(self.client.cookies.items()))
        if self._csrf[0] != session:
            found = re.search(r'name="csrf-token" content="([^"]*)"', self.client.get("/").text)
            assert found is not None
            self.site.secrets.append(found[1])
            self._csrf = (session, found[1])
        return self._csrf[1]

    def send(self, method: str, path: str, **json: Any) -> Any:
        """To the API, as scripts of our pages do."""
        return self.client.request(
            method, path, json=json if method in ("POST", "PATCH", "PUT") else None, headers={"X-CSRF-Token": self.csrf}
        )
