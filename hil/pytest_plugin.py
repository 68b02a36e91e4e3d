"""Fixtures for suites on a rig: `-p hil.pytest_plugin --rig FILE`, which `edgehil run` does.

    def test_it_starts(device, console):
        device.to("shell")
        assert "Linux" in console.shell("uname")

Each test is a step of the report. What of a rig is open stays so for the whole run, and goes at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from hil.errors import HilError
from hil.report import Report
from hil.rigs import rigfile
from hil.rigs.device import Device
from hil.rigs.hubs import RigHub
from hil.rigs.openrig import OpenRig
from hil.rigs.protocols import Console, Network, Power, Storage

STORE = Path("build/hil")
_REPORT = pytest.StashKey[Report]()
_STEP = pytest.StashKey[dict[str, object]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("edgehil")
    group.addoption("--rig", metavar="FILE", help="the rig file (docs/rigs.md)")
    group.addoption(
        "--rig-target", metavar="NAME", action="append", default=[], help="only this device; may be repeated"
    )
    group.addoption("--rig-out", metavar="DIR", default=str(STORE / "suite"), help="for the report and consoles")
    group.addoption("--rig-store", metavar="DIR", default=str(STORE), help=f"where guests are kept ({STORE})")
    group.addoption("--rig-suite", metavar="NAME", default="suite", help="what the report calls the suite")
    group.addoption("--rig-without-hub", action="store_true", help="devices only: no hub, no network around them")
    group.addoption("--rig-pcap", action="store_true", help="also what went over each cable")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report(config.getoption("--rig-suite"), lambda line: _say(config, line))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the fixtures are gone: the logs are there."""
    report = session.config.stash[_REPORT]
    out = Path(session.config.getoption("--rig-out"))
    if report.steps and session.config.getoption("--rig"):
        out.mkdir(parents=True, exist_ok=True)
        report.write(out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    report = item.config.stash[_REPORT]
    try:
        with report.step(item.name.removeprefix("test_").replace("_", " ")) as step:
            item.stash[_STEP] = step
            yield
    except pytest.skip.Exception:
        report.steps.pop()  # neither passed nor failed
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A rig that does not come about is a step too, or a report would know nothing of it."""
    made = yield
    if made.when == "setup" and made.failed:
        with suppress(HilError), item.config.stash[_REPORT].step("set-up of the rig"):
            raise HilError(made.longreprtext[-1500:])
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport, config: pytest.Config
) -> tuple[str, str, str] | None:
    """No dot after a step that passed: the step has a line of its own."""
    quiet = report.when == "call" and report.passed and config.getoption("--rig")
    return ("passed", "", "") if quiet else None


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """What the run measures goes here: report.figure(what, value, unit, device.name)."""
    return pytestconfig.stash[_REPORT]


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What is to be told of this step, in the report."""

    def tell(text: str) -> None:
        request.node.stash[_STEP]["said"] = text

    return tell


@pytest.fixture(scope="session")
def rig(pytestconfig: pytest.Config) -> Iterator[OpenRig]:
    """The rig, with its hub: rig.devices, rig.hub, rig.image(name)."""
    if not (given := pytestconfig.getoption("--rig")):
        pytest.skip("no --rig FILE")
    out = Path(pytestconfig.getoption("--rig-out"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        with OpenRig(
            rigfile.load(Path(given)),
            out,
            Path(pytestconfig.getoption("--rig-store")),
            surroundings=not pytestconfig.getoption("--rig-without-hub"),
            only=pytestconfig.getoption("--rig-target"),
            pcap=pytestconfig.getoption("--rig-pcap"),
            say=lambda line: _say(pytestconfig, f"    {line}"),
        ) as opened:
            yield opened
    except HilError as error:
        pytest.fail(f"{error.name}: {error}", pytrace=False)


@pytest.fixture(scope="session")
def devices(rig: OpenRig) -> list[Device]:
    """All of them."""
    return list(rig.devices.values())


@pytest.fixture(scope="session")
def device(devices: list[Device]) -> Device:
    """The first."""
    return devices[0]


@pytest.fixture(scope="session")
def hub(rig: OpenRig) -> RigHub:
    return rig.hub


@pytest.fixture
def power(device: Device) -> Power:
    """Of the first device, as the others here."""
    return device.power


@pytest.fixture
def console(device: Device) -> Console:
    return device.console


@pytest.fixture
def storage(device: Device) -> Storage:
    return device.storage


@pytest.fixture
def network(device: Device) -> Network:
    return device.network


def _say(config: pytest.Config, line: str) -> None:
    """At once, though what a test prints is kept for its failure."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None:
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(line)
