"""Every test has a hub of its own, and its application runs; where much of SQL is asked, on each kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.web.kit import Browser, Site

# What is refused, said, signed in or delivered asks no SQL that these and the suite of the stores do not.
ON_BOTH = ("test_api", "test_audit", "test_audit_kept", "test_claims")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = any("database_url" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "database_url" in metafunc.fixturenames and not chosen:
        both = metafunc.module.__name__.rpartition(".")[2] in ON_BOTH
        metafunc.parametrize("database_url", ["sqlite", "postgres"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """Where the hub's database is: "" for a file."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path / "hub", database_url=database_url)
    with site.running():
        yield site


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    assert browser.sign_in().status_code == 303
    return browser
