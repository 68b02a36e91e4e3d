"""Both stores, one suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hub.core.memory import MemoryStore
from hub.core.store import Store
from tests.hub.kit import Hub, load_crypto, make_network, make_sqlite, seeded


@pytest.fixture(params=["memory", "sqlite"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    crypto = load_crypto()
    network = make_network(crypto, seeded(0))
    store: Store
    if request.param == "memory":
        store = MemoryStore(network)
    else:
        store = make_sqlite(tmp_path / "hub.db", network)
    with closing(store):
        yield Hub(store, crypto, network)
