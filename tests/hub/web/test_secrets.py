"""No secret is anywhere but where it must be: everything that is said is searched for every secret that was made."""

from __future__ import annotations

import logging
import re
from base64 import urlsafe_b64decode
from hashlib import blake2s
from pathlib import Path

import pytest
from sqlalchemy import select

from hub.core.roles import PERMISSIONS, Access
from hub.store.schema import metadata
from tests.hub.web.kit import PASSWORD, Browser, Site


def test_nothing_leaks(owner: Browser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = owner.site
    site.add_device(1, credential="c" * 40, pending_password="p" * 40, feed_key=b"\x77" * 32)
    answers: list[str] = []
    made_where: dict[str, str] = {}

    def send(method: str, path: str, secret: str = "", **json: object) -> dict[str, object]:
        answer = owner.send(method, path, **json)
        body: dict[str, object] = answer.json() if answer.content else {}
        if secret:
            text = str(body[secret])
            site.secrets.append(text[-40:])
            made_where[text[-40:]] = path
            answers.append(answer.text.replace(text, ""))
        else:
            answers.append(answer.text)
        return body

    api = send("POST", "/api/v1/api-tokens", "token", name="t", scopes=["devices:read"])
    send("POST", "/api/v1/tokens", "token")
    send("POST", "/api/v1/relays/invite", "token", region="fra")
    send("POST", "/api/v1/webhooks", "secret", url="https://x.test/hooks/path-is-secret", events=["test"])
    send("POST", "/api/v1/users", login="ada", role="viewer", password="adas very own password")
    send("PATCH", "/api/v1/users/ada", password="adas other password")
    site.secrets += ["adas very own password", "adas other password", "c" * 40, "p" * 40]
    # What goes wrong must not say it either.
    owner.client.post("/login", data={"login": "adas other password", "password": "typed into the wrong field"})
    owner.client.post("/login", data={"login": "ada", "password": "typed into the right field"})
    site.secrets += ["typed into the wrong field", "typed into the right field"]
    answers += [
        owner.client.post("/login", data={"login": "x" * 300, "password": PASSWORD}).text,
        owner.client.post("/login", data={"login": "olga", "password": PASSWORD + "x" * 300}).text,
        owner.send("POST", "/api/v1/users", login="bob", role="viewer", password=["adas other password"]).text,
        owner.send("POST", "/api/v1/users", login="bob", role="viewer", password="short-pw").text,
        site.program(str(api["token"])[:-1] + "_").get("/api/v1/devices").text,
        site.program(str(api["token"])).get("/api/v1/audit").text,
        site.program(str(api["token"])).get(f"/api/v1/devices/{PASSWORD}").text.replace(PASSWORD, ""),
    ]
    site.secrets.append("short-pw")
    paths = ["/", "/login", "/nothing", "/metrics", *_reads(site)]
    csrf = owner.csrf
    for path in paths:
        answers.append(owner.client.get(path).text.replace(csrf, ""))  # a page carries its own
    rows = " ".join(f"{entry.actor} {entry.verb} {entry.object} {entry.detail}" for entry in site.audit())
    lines = " ".join(record.getMessage() for record in caplog.records)
    argv = Path("/proc/self/cmdline").read_bytes().decode(errors="replace")
    status = str(site.state.read_status())
    seen = {"answers": " ".join(answers), "audit": rows, "logs": lines, "argv": argv, "status": status}
    wanted = [secret for secret in site.secrets if secret]
    assert len(set(wanted)) >= 12
    for secret in wanted:
        for where, text in seen.items():
            if where == "answers" and secret == csrf:
                continue
            assert secret not in text, (where, made_where.get(secret, secret[:6]))
    assert "path-is-secret" not in rows


def _reads(site: Site) -> list[str]:
    described = site.app.openapi_url
    assert described is None  # ours is at /api/v1/openapi.json
    paths = site.browser().client.get("/api/v1/openapi.json").json()["paths"]
    return [path for path, methods in paths.items() if "get" in methods and "{" not in path] + [
        "/api/v1/devices/box-1",
        "/api/v1/users/ada",
    ]


def test_what_is_stored_signs_nobody_in(owner: Browser) -> None:
    """Of sessions, API tokens and passwords only hashes are in the database."""
    site = owner.site
    site.add_person("ada", Access.VIEWER)
    token = site.token("olga", *PERMISSIONS)
    cookie = owner.client.cookies["edgehub"]
    dump = ""
    with site.write() as tx:
        for table in metadata.sorted_tables:
            for row in tx.connection.execute(select(table)):
                dump += " ".join(value.hex() if isinstance(value, bytes) else str(value) for value in row) + "\n"
    assert PASSWORD not in dump and cookie not in dump and token not in dump
    assert token.split("_", 2)[2] not in dump
    for secret in (cookie, token[16:]):
        assert urlsafe_b64decode(secret + "=").hex() not in dump
        assert blake2s(secret.encode()).hexdigest() in dump  # so the search can find something
    hashes = re.findall(r"\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$", dump)
    assert len(hashes) == 2
