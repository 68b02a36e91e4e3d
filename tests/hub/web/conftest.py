"""Every test has a hub of its own, on each kind of database, and its application runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.hub.web.kit import HERE, Browser, Site


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Where the hub's database is: "" for a file."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path / "hub", database_url=database_url)
    with TestClient(site.app, base_url=HERE):  # its lifespan
        yield site


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    assert browser.sign_in().status_code == 303
    return browser
