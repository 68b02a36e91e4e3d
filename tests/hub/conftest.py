"""All stores, one suite."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import typer.main
from argon2 import PasswordHasher

from hub import moving, people
from hub.core.memory import MemoryStore
from hub.core.store import Store
from hub.store.migrate import migrate_server
from hub.web import assets
from tests.hub.kit import Hub, copy_empty, load_crypto, make_network, make_postgres, make_sqlite, seeded
from tests.hub.postgres import PostgresServer

HERE = Path(__file__).parent
# PostgreSQL in every run; elsewhere its turn comes with --slow: the store's own suite holds it to what the others do.
SERVER_ALWAYS = (
    "audit_accept",
    "commands",
    "coordinator",
    "filters",
    "postgres",
    "retention",
    "rollouts",
    "store",
    "together",
    "transfer",
)


@pytest.hookimpl(tryfirst=True)  # before any are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        always = HERE not in item.path.parents or item.path.stem.removeprefix("test_") in SERVER_ALWAYS
        if not always and "postgres" in getattr(getattr(item, "callspec", None), "params", {}).values():
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _empty_databases() -> Iterator[None]:
    """Hubs made in this process start with a copy; commands that tests run make theirs themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "create_file", copy_empty)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_passwords() -> Iterator[None]:
    """Argon2id as it is, with less to do: each hub of a test has an owner, who signs in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(people, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        patch.setattr(people, "_NOBODYS", people.hash_password("nobody's"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_tree_of_commands() -> Iterator[None]:
    """Typer makes all of it anew for each command that runs in this process: a quarter of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def _files_read_once() -> Iterator[None]:
    """The dashboard's, for each application in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "_read", functools.cache(assets._read))
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with closing(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_tables(postgres_server: PostgresServer) -> str:
    """A database with all tables and nothing in them, to be copied."""
    name = postgres_server.database()
    migrate_server(postgres_server.url(name))
    return name


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_tables: str) -> str:
    """Of a database of the test's own."""
    return postgres_server.url(postgres_server.database(postgres_tables))


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0))
    store: Store
    if request.param == "memory":
        store = MemoryStore(network)
    elif request.param == "sqlite":
        store = make_sqlite(tmp_path / "hub.db", network)
    else:
        store = make_postgres(request.getfixturevalue("postgres_url"), network)
    with closing(store):
        yield Hub(store, crypto, network)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new hub's database is, for `open_store`."""
    network = make_network(load_crypto(), seeded(0))
    if request.param == "sqlite":
        make_sqlite(tmp_path / "hub.db", network).close()
        return tmp_path / "hub.db"
    url: str = request.getfixturevalue("postgres_url")
    make_postgres(url, network).close()
    return url
