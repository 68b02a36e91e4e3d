"""The translator of 4via6 beside the tunnel: what it is told, how it is kept alive, and what is left of it."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeagent import translator
from edgeagent.io import tayga
from edgeagent.io.netlink import Netlink
from edgeagent.io.rtnetlink import Route
from edgeagent.proto import prefixes, via
from edgeagent.translator import Translator
from tests.netlab import until

SITE = via.read("192.168.1.0/24@7")
WIDE = via.read("10.0.0.0/8@7")
OTHER = via.read("192.168.1.0/24@8")


class FakeNetlink:
    """Has the translator's interface while `there`, and remembers the routes through it."""

    def __init__(self) -> None:
        self.there = False
        self.up: set[int] = set()
        self.routes: set[tuple[str, int]] = set()
        self.refuses = 0

    def link(self, name: str) -> Any:
        assert name == "edge0-via"
        if not self.there:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name)
        return SimpleNamespace(index=9)

    def set_link(self, index: int, *, up: bool) -> None:
        assert up
        self.up.add(index)

    def replace_route(self, route: Route) -> None:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.routes.add((prefixes.to_text((route.destination, route.cidr)), route.index))

    def delete_route(self, route: Route) -> None:
        self.routes.remove((prefixes.to_text((route.destination, route.cidr)), route.index))


class Rig:
    """A translator whose program is a stand-in, a kernel that is another, and a clock."""

    def __init__(self, folder: Path, script: str) -> None:
        self.program = folder / "tayga"
        self.program.write_text(f"#!/bin/sh\n{script}\n")
        self.program.chmod(0o755)
        self.state = folder / "state"
        self.state.mkdir()
        self.netlink = FakeNetlink()
        self.selector = selectors.DefaultSelector()
        self.now = 100.0
        self.it = Translator(self.selector, cast(Netlink, self.netlink), "edge0", str(self.program), str(self.state))

    def turn(self, pass_s: float = 0.0) -> bool:
        self.now += pass_s
        for key, _ in self.selector.select(0.01):
            key.data(self.now, key.fd)
        return self.it.on_timeout(self.now)

    def until_changed(self) -> None:
        until(self.turn, 10, "a change")

    @property
    def pid(self) -> int:
        assert self.it._child is not None
        return self.it._child.pid


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Callable[[str], Rig]]:
    made: list[Rig] = []

    def make(script: str) -> Rig:
        made.append(Rig(tmp_path, script))
        return made[-1]

    yield make
    for each in made:
        each.it.close()
        each.selector.close()


def test_what_it_is_told() -> None:
    text = tayga.configuration(tayga.Ends("edge0"), (SITE[0][:12] + bytes(4), 96), "/var/lib/edgeagent/tayga")
    assert text.splitlines() == [
        "tun-device edge0-via",
        "ipv4-addr 198.19.84.1",
        "ipv6-addr fd2e:966:3c02::c613:5401",
        "prefix fd2e:966:3c02::7:0:0/96",
        "map 198.19.84.2 fd2e:966:3c02::c613:5402",
        "strict-frag-hdr off",
        "data-dir /var/lib/edgeagent/tayga",
    ]


def test_agents_of_one_machine_have_addresses_of_their_own() -> None:
    ends = [tayga.Ends(f"edge{number}") for number in range(64)]
    assert len({address for each in ends for address in (*each.own, *each.source)}) == 4 * 64
    assert tayga.Ends("mesh").source == ends[0].source
    long = tayga.Ends("a-very-long-nam")
    assert long.interface == "a-very-long-via" and len(long.interface) == 15


def test_it_gives_up_what_it_can() -> None:
    assert tayga.words("/usr/sbin/tayga", "/x/tayga.conf", drop=False) == [
        *("/usr/sbin/tayga", "--nodetach", "--config", "/x/tayga.conf")
    ]
    dropping = tayga.words("/usr/sbin/tayga", "/x/tayga.conf", drop=True)
    assert dropping[4:6] == ["--user", "nobody"] and dropping[6] == "--group" and dropping[-1] == "--chroot"


def test_routes_lead_to_it_once_it_is_there_and_to_what_is_approved(rig: Callable[[str], Rig]) -> None:
    it = rig("exec sleep 60")
    it.it.serve(it.now, [SITE])
    assert not it.turn(0.1) and it.netlink.routes == set() and it.it.index == 0
    assert "prefix fd2e:966:3c02::7:0:0/96" in (it.state / "tayga/tayga.conf").read_text()
    it.netlink.there = True
    assert it.turn(0.1) and it.it.index == 9 and it.netlink.up == {9}
    own = {("198.19.84.2/32", 9), ("fd2e:966:3c02::c613:5402/128", 9)}
    assert it.netlink.routes == {*own, (prefixes.to_text(SITE), 9)}
    first = it.pid
    it.it.serve(it.now, [WIDE])
    assert it.netlink.routes == {*own, (prefixes.to_text(WIDE), 9)} and it.pid == first
    # Of another site it is another one
    it.it.serve(it.now, [OTHER])
    assert it.pid != first and not os.path.exists(f"/proc/{first}")
    assert "prefix fd2e:966:3c02::8:0:0/96" in (it.state / "tayga/tayga.conf").read_text()
    last = it.pid
    it.it.close()
    assert not os.path.exists(f"/proc/{last}") and list(it.state.iterdir()) == []
    assert it.it.poll_timeout() is None and not list(it.selector.get_map())


def test_one_that_dies_is_begun_again_ever_more_rarely(rig: Callable[[str], Rig]) -> None:
    it = rig("echo no such device; exit 3")
    it.it.serve(it.now, [SITE])
    waits = []
    for _ in range(8):
        until(lambda: it.turn() or it.it._child is None, 10, "its end")
        assert it.it.problem.startswith("tayga ended by itself (exit status 3): no such device. Next try ")
        due = it.it.poll_timeout()
        assert due is not None
        waits.append(due - it.now)
        it.now = due
        it.turn()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_that_says_too_much_is_said_to_be_stopped_for_that(rig: Callable[[str], Rig]) -> None:
    it = rig("exec yes")
    it.it.serve(it.now, [SITE])
    until(lambda: it.turn() or it.it._child is None, 10, "its end")
    assert it.it.problem.startswith("tayga was stopped (too-much-output)")


def test_one_that_was_killed_after_a_while_is_back_in_a_second(rig: Callable[[str], Rig]) -> None:
    it = rig("exec sleep 60")
    it.netlink.there = True
    it.it.serve(it.now, [SITE])
    assert it.turn(0.1) and it.it.index == 9
    it.now += translator.STEADY_S
    os.kill(it.pid, signal.SIGKILL)
    it.netlink.there = False
    it.until_changed()
    assert it.it.index == 0 and "signal 9" in it.it.problem and it.it.poll_timeout() == it.now + 1
    it.turn(1.0)
    it.netlink.there = True
    assert it.turn(0.1) and it.it.index == 9 and it.it.problem == ""


def test_without_an_interface_or_with_routes_refused_it_is_ended(rig: Callable[[str], Rig]) -> None:
    it = rig("exec sleep 60")
    it.it.serve(it.now, [SITE])
    first = it.pid
    assert it.turn(translator.APPEARS_S + 1)
    assert "no interface edge0-via after 5 s" in it.it.problem and not os.path.exists(f"/proc/{first}")
    it.netlink.there, it.netlink.refuses = True, errno.EACCES
    it.turn(1.0)
    second = it.pid
    assert it.turn(0.1)
    assert "the kernel refuses its routes: Permission denied" in it.it.problem and it.it.index == 0
    assert not os.path.exists(f"/proc/{second}")


def test_a_program_that_is_gone_is_named(rig: Callable[[str], Rig]) -> None:
    it = rig("exec sleep 60")
    it.program.unlink()
    it.it.serve(it.now, [SITE])
    assert "No such file or directory" in it.it.problem and it.it.poll_timeout() == it.now + 1


def test_only_translators_of_this_folder_are_ended(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    children = []
    for folder in folders:
        path = tayga.write(str(folder), "tun-device x\n")
        assert path == f"{folder}/tayga.conf"
        command = ["tayga", "-c", "while :; do sleep 1; done", "--config", path]  # a shell under its name
        children.append(subprocess.Popen(command, executable="/bin/sh"))
    try:
        until(lambda: all(_is_shell(child.pid) for child in children), 5, "both run")
        assert tayga.end_leftovers(str(folders[0])) == 1
        assert children[0].wait(5) != 0 and children[1].poll() is None
        assert not folders[0].exists() and folders[1].exists()
        assert tayga.end_leftovers(str(folders[0])) == 0
    finally:
        for child in children:
            child.kill()
            child.wait()


def _is_shell(pid: int) -> bool:
    return b"tayga.conf" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_configuration_is_written_when_it_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "tayga"
    path = tayga.write(str(folder), "prefix a\n")
    assert folder.stat().st_mode & 0o777 == 0o700
    os.utime(path, (1, 1))
    tayga.write(str(folder), "prefix a\n")
    assert os.stat(path).st_mtime == 1
    tayga.write(str(folder), "prefix b\n")
    assert Path(path).read_text() == "prefix b\n" and time.time() - os.stat(path).st_mtime < 3_600
