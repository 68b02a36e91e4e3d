"""A hub's state goes from a file to a server and back: a device that has joined goes on as if nothing had been."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hub.core.model import HubError
from hub.database import read_url
from hub.moving import attach
from hub.state import State
from tests.hub.postgres import PostgresServer
from tests.hub.rig import Rig, wait_until

pytestmark = pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="no mosquitto")


def moved(rig: Rig, directory: Path, *options: str) -> Rig:
    """Another hub, on the same port, of what this one has exported."""
    rig.run("export", str(directory.with_suffix(".jsonl")))
    assert rig.stop() == 0
    new = object.__new__(Rig)
    new.__dict__.update(rig.__dict__, state=State(directory), log=directory.with_suffix(".log"), process=None)
    new.run("import", str(directory.with_suffix(".jsonl")), *options)
    new.start()
    return new


def test_there_and_back_with_a_device(tmp_path: Path, postgres_server: PostgresServer) -> None:
    url_file = tmp_path / "url"
    url_file.write_text(postgres_server.url(postgres_server.database()) + "\n")
    hubs = [Rig(tmp_path / "first")]
    try:
        hubs[0].start()
        member = hubs[0].join(hubs[0].token())
        assert member.is_in
        before = hubs[0].json("devices", "show", member.id)
        for directory, options in ((tmp_path / "second", ["--database-file", str(url_file)]), (tmp_path / "third", [])):
            hubs.append(moved(hubs[-1], directory, *options))
            hub = hubs[-1]
            assert (hub.state.database_url() != "") is (options != [])
            hub.wait_settled()
            with hub.client(member.id, member.identity.password) as client:
                assert client.code == 0, "the broker knows its account"
                assert client.subscribe(f"em1/{hub.network.id}/{member.id}/d/#")
                wait_until(lambda client=client: any(client.take()), "a map", client.turn)  # type: ignore[misc]
            after = hub.json("devices", "show", member.id)
            assert {key: after[key] for key in ("name", "addresses", "id")} == {
                key: before[key] for key in ("name", "addresses", "id")
            }
            assert hub.json("status")["epoch"] > hub.network.epoch
    finally:
        for hub in hubs:
            hub.end()


def test_one_network_a_database(tmp_path: Path, postgres_server: PostgresServer) -> None:
    url = postgres_server.url(postgres_server.database())
    with pytest.raises(HubError, match="no network in it"):
        attach(State(tmp_path / "none"), url)
    rig = Rig(tmp_path / "first", url)
    with pytest.raises(HubError, match="a network in it already"):
        Rig(tmp_path / "second", url)
    assert attach(State(tmp_path / "third"), url) == rig.network.id
    with pytest.raises(HubError, match="there is a hub here already"):
        attach(State(tmp_path / "third"), url)
    assert State(tmp_path / "third").server.stat().st_mode & 0o777 == 0o600
    target = tmp_path / "backup"
    assert "pg_dump" in rig.run("backup", str(target), code=1) and not target.exists()


@pytest.mark.parametrize("content", ["", "a\nb", "x" * 5000])
def test_a_file_without_a_url(tmp_path: Path, content: str) -> None:
    (tmp_path / "url").write_text(content)
    with pytest.raises(HubError, match="one line expected"):
        read_url(tmp_path / "url")
