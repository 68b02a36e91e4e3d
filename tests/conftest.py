"""The `lab` fixture and hypothesis' settings, for all tests."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.netlab import Lab, rights

NETLAB = Path(__file__).parent / "netlab"

# No deadline: how long an example takes on a busy machine is no property of the code.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a lab, or stands in tests/netlab, is marked `netlab`."""
    for item in items:
        if NETLAB in item.path.parents or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.netlab)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab. Skips, with the reason, where the system gives no right to make namespaces."""
    if why := rights.missing():
        pytest.skip(why)
    with Lab() as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test in a lab shows the end of each program's log."""
    report = yield
    for argument in getattr(item, "funcargs", {}).values() if report.failed else ():
        used = argument if isinstance(argument, Lab) else getattr(argument, "lab", None)
        if isinstance(used, Lab):
            for process in used.processes():
                if process.log.exists():
                    report.sections.append((f"log of {process.name}", process.tail()))
    return report
