"""Every test has a hub of its own, and its application runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.hub.web.kit import HERE, Browser, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "hub")
    with TestClient(site.app, base_url=HERE):  # its lifespan
        yield site


@pytest.fixture
def owner(site: Site) -> Browser:
    browser = site.browser()
    assert browser.sign_in().status_code == 303
    return browser
