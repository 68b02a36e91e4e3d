"""The repository of updates, judged by python-tuf's own client over HTTP, and by the device's verifier."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater

from edgeagent import crypto as providers
from edgeagent.proto.tuf import TufError
from edgeagent.proto.tufrefresh import Refresh
from hub import agentfile, updates
from hub.core.model import HubError
from hub.io import lockkey
from hub.updates import LIFE_S, Repository
from tests.hub import agentfiles
from tests.hub.kit import DAY_S

CRYPTO = providers.load("pynacl")
NOW_S = int(time.time())
ROOT = bytes(range(32))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Client:
    """python-tuf's, with what it believes kept between visits."""

    def __init__(self, directory: Path, url: str, root: bytes) -> None:
        self.directory, self.url, self.root = directory, url, root
        directory.mkdir()

    def fetch(self, name: str) -> bytes:
        updater = Updater(
            str(self.directory),
            f"{self.url}/metadata/",
            target_dir=str(self.directory),
            target_base_url=f"{self.url}/targets/",
            bootstrap=self.root,
        )
        updater.refresh()
        found = updater.get_targetinfo(name)
        if found is None:
            raise RepositoryError(f"no target {name}")
        return Path(updater.download_target(found)).read_bytes()


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository(tmp_path / "updates").writing() as made:
        draft = made.draft(NOW_S, root_public=CRYPTO.ed25519_public(ROOT))
        updates.sign_draft(draft, ROOT)
        made.install(draft, NOW_S)
        yield made


@pytest.fixture
def client(repository: Repository, tmp_path: Path) -> Iterator[Client]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(repository.directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    root = (repository.metadata / "1.root.json").read_bytes()
    yield Client(tmp_path / "client", f"http://127.0.0.1:{server.server_port}", root)
    server.shutdown()
    thread.join()
    server.server_close()


def agent(tmp_path: Path, version: str = "0.2.0", abi: str = "any", **more: Any) -> agentfile.AgentFile:
    return agentfile.read(agentfiles.make(tmp_path, version, abi, **more))


def device_judges(repository: Repository, name: str, kept: dict[str, bytes] | None = None) -> str:
    """The device's verifier, over the files as they lie."""
    root = (repository.metadata / "1.root.json").read_bytes()
    assert sha256(root).digest() == repository.root_digest()
    refresh = Refresh(CRYPTO, root, float(NOW_S), kept or {})
    while (wanted := refresh.wanted) is not None:
        path = repository.metadata / wanted
        refresh.take(path.read_bytes() if path.exists() else None)
    target = refresh.trust.target(name)
    data = (repository.targets / target.file).read_bytes()
    assert (len(data), sha256(data).digest()) == (target.length, target.sha256)
    return str(target.custom["version"])


def test_both_clients_fetch_what_was_published(repository: Repository, client: Client, tmp_path: Path) -> None:
    new = agent(tmp_path)
    name = repository.publish(new, NOW_S)
    assert client.fetch(name) == new.data
    assert device_judges(repository, name) == "0.2.0"
    assert repository.publish(new, NOW_S) == name, "once more is once"
    again = agent(tmp_path, "0.3.0")
    assert client.fetch(repository.publish(again, NOW_S)) == again.data
    assert repository.read().versions == ["0.3.0", "0.2.0"]
    assert repository.read().of_version("0.2.0") == {"any": name}


def test_a_revoked_version_is_gone_for_both_and_comes_not_back(
    repository: Repository, client: Client, tmp_path: Path
) -> None:
    new = agent(tmp_path)
    name = repository.publish(new, NOW_S)
    client.fetch(name)
    assert repository.revoke("0.2.0", NOW_S) == [name]
    with pytest.raises((RepositoryError, DownloadError)):
        client.fetch(name)
    with pytest.raises(TufError):
        device_judges(repository, name)
    with pytest.raises(HubError, match=r"0\.2\.0: it was revoked"):
        repository.publish(new, NOW_S)
    with pytest.raises(HubError, match=r"0\.9: it is not published"):
        repository.revoke("0.9", NOW_S)
    assert list(repository.targets.iterdir()) == [] and repository.read().revoked == ("0.2.0",)


def test_what_has_lived_half_its_life_is_signed_anew_and_clients_go_on(
    repository: Repository, client: Client, tmp_path: Path
) -> None:
    name = repository.publish(agent(tmp_path), NOW_S)
    before = {role.name: role for role in repository.read().roles}
    assert repository.refresh(NOW_S + DAY_S) == []
    assert repository.refresh(NOW_S + 4 * DAY_S) == ["timestamp"]
    after = {role.name: role for role in repository.read().roles}
    assert after["timestamp"].version == before["timestamp"].version + 1
    assert after["timestamp"].expires_s == NOW_S + 4 * DAY_S + LIFE_S["timestamp"]
    assert after["snapshot"] == before["snapshot"] and after["targets"] == before["targets"]
    assert repository.refresh(NOW_S + 20 * DAY_S) == ["snapshot", "timestamp"]
    assert repository.refresh(NOW_S + 200 * DAY_S) == ["targets", "snapshot", "timestamp"]
    assert client.fetch(name) and device_judges(repository, name)
    for _ in range(14):
        repository.refresh(NOW_S, force=True)
    assert len(list(repository.metadata.glob("*.snapshot.json"))) == updates.KEPT
    assert client.fetch(name) and device_judges(repository, name)


def test_new_keys_for_all_roles_and_another_root_key(repository: Repository, client: Client, tmp_path: Path) -> None:
    name = repository.publish(agent(tmp_path), NOW_S)
    client.fetch(name)
    old = {path.name: path.read_bytes() for path in repository.keys.iterdir()}
    successor = bytes(range(1, 33))
    draft = repository.draft(NOW_S, root_public=CRYPTO.ed25519_public(successor), renew=updates.ONLINE)
    updates.sign_draft(draft, successor)
    with pytest.raises(HubError, match="not signed by the keys that it takes"):
        repository.install(draft, NOW_S)
    draft = updates.read_draft(updates.write_draft(draft))  # and on to the machine where the old key is
    assert "version 2" in updates.describe_draft(draft)
    updates.sign_draft(draft, ROOT)
    repository.install(draft, NOW_S)
    assert {path.name for path in repository.keys.iterdir()} == set(old)
    assert all(path.read_bytes() != old[path.name] for path in repository.keys.iterdir())
    assert client.fetch(name) and device_judges(repository, name)
    with pytest.raises(HubError, match="root: version 3 expected, not 2"):
        repository.install(draft, NOW_S)


def test_what_a_stolen_and_replaced_key_signs_counts_no_more(
    repository: Repository, client: Client, tmp_path: Path
) -> None:
    name = repository.publish(agent(tmp_path), NOW_S)
    stolen = {path.name: path.read_bytes() for path in repository.keys.iterdir()}
    draft = repository.draft(NOW_S, renew=updates.ONLINE)
    updates.sign_draft(draft, ROOT)
    repository.install(draft, NOW_S)
    for path in repository.keys.iterdir():
        path.write_bytes(stolen[path.name])
    repository.publish(agent(tmp_path, "6.6.6"), NOW_S)
    with pytest.raises(RepositoryError):
        client.fetch("edgeagent-6.6.6-any.pyz")
    with pytest.raises(TufError):
        device_judges(repository, name)


def test_a_publication_that_is_cut_anywhere_leaves_what_was_there(
    repository: Repository, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repository.publish(agent(tmp_path), NOW_S)
    write, left = Repository._write, [0]

    def cut(path: Path, data: bytes) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, data)

    for number in range(4):  # the target, targets, snapshot, timestamp
        left[0] = number
        monkeypatch.setattr(Repository, "_write", staticmethod(cut))
        with pytest.raises(OSError, match="No space"):
            repository.publish(agent(tmp_path, f"0.3.{number}"), NOW_S)
        monkeypatch.setattr(Repository, "_write", staticmethod(write))
        assert client.fetch(first) and device_judges(repository, first) == "0.2.0"
    second = repository.publish(agent(tmp_path, "0.4.0"), NOW_S)
    assert client.fetch(second) and device_judges(repository, second) == "0.4.0"


# What is refused


def test_older_and_other_files_are_refused(repository: Repository, tmp_path: Path) -> None:
    repository.publish(agent(tmp_path, "0.10.0"), NOW_S)
    with pytest.raises(HubError, match=r"0\.9\.0 for any: older than 0\.10\.0"):
        repository.publish(agent(tmp_path, "0.9.0"), NOW_S)
    repository.publish(agent(tmp_path, "0.9.0", "mips-musl"), NOW_S)
    with pytest.raises(HubError, match="another file of it is published"):
        repository.publish(agent(tmp_path, "0.10.0", body="print('other')"), NOW_S)
    name = repository.publish(agent(tmp_path, "0.9.0"), NOW_S, downgrade=True)
    assert device_judges(repository, name) == "0.9.0"


def test_files_that_are_no_agents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = agentfiles.make(tmp_path)
    data = good.read_bytes()
    bad = tmp_path / "bad.pyz"
    for content, said in (
        (b"", "not the zipapp of an agent"),
        (b"#!/bin/sh\n", "not the zipapp of an agent"),
        (data[: len(data) // 2], "not the zipapp of an agent"),
        (data.replace(b"print('new')", b"print('NEW')"), "it is damaged"),
    ):
        bad.write_bytes(content)
        with pytest.raises(HubError, match=said):
            agentfile.read(bad)
    for manifest, said in (
        (None, "it has no manifest.json"),
        ("[]", "says nothing"),
        ("{", "not the zipapp"),
        ('{"version": "1"}', "which abi it is"),
        ('{"version": "../1", "abi": "x"}', "makes no name of a file"),
        ('{"version": "x", "abi": "y"}', "makes no name of a file"),
        (json.dumps({"version": "1", "abi": "x", "more": "y" * 70_000}), "not the zipapp"),
    ):
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("__main__.py", "")
            if manifest is not None:
                archive.writestr("manifest.json", manifest)
        with pytest.raises(HubError, match=said):
            agentfile.read(bad)
    with pytest.raises(HubError, match=r"its version is 0\.2\.0, not 0\.3\.0"):
        agentfile.read(good, version="0.3.0")
    with pytest.raises(HubError, match="its abi is any, not mips-musl"):
        agentfile.read(good, abi="mips-musl")
    with pytest.raises(HubError, match="cannot be read"):
        agentfile.read(tmp_path / "nothing")
    monkeypatch.setattr(agentfile, "FILE_BYTES_MAX", 100)
    with pytest.raises(HubError, match="which no agent is"):
        agentfile.read(good)


def test_a_key_that_is_gone_or_somebody_elses_says_so(repository: Repository, tmp_path: Path) -> None:
    (repository.keys / "targets.key").unlink()
    with pytest.raises(HubError, match=r"targets\.key: no such file\. Bring it back from a backup"):
        repository.publish(agent(tmp_path), NOW_S)
    lock = tmp_path / "lock.key"
    lockkey.make(lock, "")
    with pytest.raises(HubError, match="not a file of a key of updates"):
        lockkey.read_seed(lock, str, lockkey.UPDATE_MARK, "")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"edgehub-update-root": 1}', '{"edgehub-update-root": 1, "root": {"signed": 3}}']
)
def test_what_is_no_root_is_not_signed(text: str) -> None:
    with pytest.raises(HubError, match="this is no root of updates"):
        updates.read_draft(text)


def test_without_a_repository_nothing_is_published(tmp_path: Path) -> None:
    with (
        Repository(tmp_path / "updates").writing() as empty,
        pytest.raises(HubError, match="there is no repository here"),
    ):
        empty.publish(agent(tmp_path), NOW_S)
    assert empty.read().versions == [] and not empty.read().roles
