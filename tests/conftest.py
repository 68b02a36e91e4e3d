"""The `lab` fixture, hypothesis' settings, and what makes the whole suite quick, for all tests."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.netlab import Host, Lab, rights
from tests.netlab.mesh import Mesh

NETLAB = Path(__file__).parent / "netlab"

# No deadline: how long an example takes on a busy machine is no property of the code.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that have nothing for this half of `./dev test`: each worker would import them, which takes seconds."""
    half = str(config.option.markexpr)
    if collection_path.suffix != ".py" or not re.match(r"(not )?netlab\b", half):
        return None
    inside = NETLAB in collection_path.parents
    if half.startswith("not"):
        return inside or None
    return None if inside or re.search(r"lab\b", collection_path.read_text(encoding="utf-8")) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses a lab, or stands in tests/netlab, is marked `netlab`. What takes long begins first, and so do the
    longer files: nobody shall wait for one worker at the end."""
    for item in items:
        if NETLAB in item.path.parents or "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.netlab)
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, -sizes[item.path]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With --dist loadscope: tests of a file that share what was set up for all of them go to one worker, others to
    whichever is free. (xdist's own groups do not come through with pytest 9.)"""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    made = LoadScopeScheduling(config, log)
    made._split_scope = _scope_of
    return made


def _scope_of(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return path if _shares(path) else nodeid


@cache
def _shares(path: str) -> bool:
    return '@pytest.fixture(scope="module"' in (NETLAB.parents[1] / path).read_text(encoding="utf-8")


def pytest_collection_finish() -> None:
    """All that was imported stays to the end: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_hubs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where there are labs."""
    if not any(item.get_closest_marker("netlab") for item in request.session.items):
        yield
        return
    from tests.netlab import quick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mesh, "init_hub", quick.init_hub)
        patch.setattr(Host, "run", quick.run)
        yield


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
