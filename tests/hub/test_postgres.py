"""What only a server can do to the store: be away, go away, have another form; and what the first migration leaves."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DBAPIError

from hub.core.model import HubError, Network, Op, Outgoing
from hub.store.postgres import PostgresStore, open_engine
from hub.store.schema import metadata
from tests.hub.kit import load_crypto, make_network, make_postgres, seeded
from tests.hub.postgres import PostgresServer


@pytest.fixture
def network() -> Network:
    return make_network(load_crypto(), seeded(0))


def test_migrations_give_the_tables_that_the_program_knows(postgres_url: str) -> None:
    engine = open_engine(postgres_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


@pytest.mark.parametrize("url", ["", "hub", "mysql://hub@db/hub", "postgresql://hub@db:port/hub"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(HubError, match="postgresql://USER@HOST/NAME"):
        open_engine(url)


def test_no_server_there(tmp_path: object) -> None:
    with pytest.raises(HubError, match="no connection"):
        PostgresStore(f"postgresql://hub@/hub?host={tmp_path}")


def test_an_empty_database(postgres_server: PostgresServer) -> None:
    with pytest.raises(HubError, match="the form None"):
        PostgresStore(postgres_server.url(postgres_server.database()))


def test_a_password_is_in_no_error(tmp_path: object) -> None:
    with pytest.raises(HubError) as raised:
        PostgresStore(f"postgresql://hub:geheim123@/hub?host={tmp_path}")
    assert "geheim123" not in str(raised.value)


def test_a_connection_that_was_lost_is_made_anew(postgres_url: str, network: Network) -> None:
    with closing(make_postgres(postgres_url, network)) as store:
        with pytest.raises(DBAPIError), store.write() as tx:
            tx.put_out(Outgoing(Op.PUBLISH, "half done", b""))
            with psycopg.connect(postgres_url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'edgehub'"
                )
            tx.next_seq()
        with store.write() as tx:
            assert tx.outgoing() == []
            assert tx.next_seq() == 1


def test_numbers_beyond_32_bits(postgres_url: str, network: Network) -> None:
    with closing(make_postgres(postgres_url, network)) as store, store.write() as tx:
        tx.connection.exec_driver_sql("UPDATE counter SET value = 9000000000000000000 WHERE name = 'seq'")
        tx.connection.exec_driver_sql("INSERT INTO counter VALUES ('seq', 9000000000000000000)")
        assert tx.next_seq() == 9000000000000000001
