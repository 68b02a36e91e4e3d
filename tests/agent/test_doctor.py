"""`edgeagent doctor`: what it says of a device where something is missing or wrong."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeagent import cli, doctor, enginerule, probes
from edgeagent.engine.fast import build as builder
from edgeagent.engine.fast import library
from edgeagent.io import forwarding
from edgeagent.io.keystore import Keystore, StateFile
from edgeagent.io.localapi import Client, LocalApi
from edgeagent.proto.routewish import RouteWish
from edgeagent.version import BUILD_TIME_S, VERSION
from tools import OBJECTS

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, builder.COMPILERS)), reason="no C compiler")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    monkeypatch.setenv("EDGEAGENT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("EDGEAGENT_SOCKET", str(tmp_path / "agent.sock"))
    for variable in ("EDGEAGENT_ENGINE", "EDGEAGENT_FAST_LIBRARY", "EDGEAGENT_CRYPTO"):
        monkeypatch.delenv(variable, raising=False)


def rows(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """(exit status, check → its row) of `edgeagent doctor --json`."""
    status = cli.main(["doctor", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is (status == 0)
    for row in said["checks"]:
        assert row["state"] in (doctor.OK, doctor.WARNING, doctor.FAILED, doctor.NOT_CHECKED)
        assert row["found"] and row["meaning"]
        assert bool(row["todo"]) is (row["state"] != doctor.OK), row
    return status, {row["check"]: row for row in said["checks"]}


def test_each_part_has_a_row_and_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = rows(capsys)
    assert {"engine", "kernel WireGuard",
            "C library", "crypto", "rights", "TUN", "UDP offload", "reverse path", "clock", "random", "board",
            "state folder", "memory", "agent"} <= set(found)  # fmt: skip
    assert found["crypto"]["state"] == doctor.OK
    assert found["agent"]["found"] == "not running"
    cli.main(["doctor"])
    text = capsys.readouterr().out
    assert text.startswith("CHECK ")
    assert [name for name in found if f"\n{name}  " not in text] == []


def test_without_a_library_it_warns_why_and_how_to_get_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "why").write_text("no C compiler: none of cc, gcc, clang is there\n")
    monkeypatch.setattr(library, "BESIDE", str(tmp_path / "missing.so"))
    monkeypatch.setattr(library, "NOTE", str(tmp_path / "why"))
    _, found = rows(capsys)
    assert found["engine"]["found"].startswith("pure: no C library: no C compiler")
    row = found["C library"]
    assert row["state"] == doctor.WARNING
    assert row["found"] == "none: no C compiler: none of cc, gcc, clang is there"
    assert "-m edgeagent.engine.fast.build" in row["todo"]


@needs_compiler
def test_a_library_that_does_not_load_fails_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_build import wrong_files

    made = tmp_path / builder.LIBRARY
    builder.build(made, builder.find_compiler(), cache=OBJECTS)
    monkeypatch.setenv("EDGEAGENT_FAST_LIBRARY", str(made))
    assert rows(capsys)[1]["C library"]["state"] == doctor.OK
    for path, said in wrong_files(made, tmp_path):
        monkeypatch.setenv("EDGEAGENT_FAST_LIBRARY", str(path))
        (row,) = doctor.check_library(settings())
        assert row.state == doctor.FAILED
        assert row.found.startswith(f"{path}: ")
        assert said in row.found
    # The headers are good and the contents are not: seen by who loads it, in a process of its own
    damaged = bytearray(made.read_bytes())
    strings = damaged.index(b"\0ea_version\0")
    damaged[strings + 1 : strings + 3] = b"xx"
    made.write_bytes(damaged)
    monkeypatch.setenv("EDGEAGENT_FAST_LIBRARY", str(made))
    (row,) = doctor.check_library(settings())
    assert row.state == doctor.FAILED
    assert "it does not load" in row.found
    assert "ea_version" in row.found
    status, found = rows(capsys)
    assert status == 1
    assert found["C library"]["state"] == doctor.FAILED


def test_an_engine_that_is_no_engine_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAGENT_ENGINE", "quick")
    assert cli.main(["doctor", "--json"]) == 2
    assert "EDGEAGENT_ENGINE: 'quick': want auto, fast, pure or kernel" in capsys.readouterr().err


def test_no_tun_device_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TUN_DEVICE", "/dev/net/nonesuch")
    status, found = rows(capsys)
    assert status == 1
    assert found["TUN"]["state"] == doctor.FAILED
    assert "modprobe tun" in found["TUN"]["todo"]


def test_without_rights_it_says_what_it_could_not_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_capability", lambda _number: False)
    monkeypatch.setattr(probes, "try_tun", lambda: probes.TunTrial(False, False, False, "Operation not permitted"))
    monkeypatch.setattr(probes, "TUN_DEVICE", "/dev/null")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = {row.check: row.state for row in doctor.check_tun(settings())}
    assert found == dict.fromkeys(("rights", "TUN", "TUN offload"), doctor.NOT_CHECKED)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert next(doctor.check_tun(settings())).state == doctor.FAILED


def test_a_state_folder_that_is_open_or_full_or_damaged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    assert rows(capsys)[1]["state folder"]["state"] == doctor.OK
    folder.chmod(0o755)
    assert rows(capsys)[1]["state folder"]["state"] == doctor.WARNING
    (folder / "identity").write_bytes(b"torn")
    (folder / "cache").write_bytes(b"torn")
    found = [(row.check, row.state) for row in doctor.check_state(settings())]
    assert found == [("state folder", doctor.WARNING), ("state file", doctor.FAILED), ("state file", doctor.WARNING)]
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 62)
    assert next(doctor.check_state(settings())).state == doctor.FAILED
    monkeypatch.setenv("EDGEAGENT_STATE", str(tmp_path / "not" / "yet"))
    assert rows(capsys)[1]["state folder"]["found"].endswith("not there yet, made by edgeagent up")


def test_a_translator_matters_where_something_is_to_be_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(doctor.check_translator(settings())) == []
    wish = RouteWish()
    keystore = Keystore(str(tmp_path / "state"))
    keystore.open()
    try:
        for asked, names in ((["192.168.1.0/24"], []), (["192.168.1.0/24@7"], ["4via6"])):
            wish.change({"advertise": asked})
            keystore.save(StateFile.ROUTES, wish.encode())
            monkeypatch.setattr(forwarding, "find_program", lambda name: f"/usr/sbin/{name}")
            assert [(row.check, row.state) for row in doctor.check_translator(settings())] == [
                (name, doctor.OK) for name in names
            ]
        monkeypatch.setattr(forwarding, "find_program", lambda name: None)
        [row] = doctor.check_translator(settings())
        assert (row.state, row.found) == (doctor.FAILED, "tayga is not installed") and "Install" in row.todo
    finally:
        keystore.close()


def test_clock_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: BUILD_TIME_S - 86_400.0)
    (row,) = doctor.check_clock(settings())
    assert (row.state, row.found) == (doctor.WARNING, "1 d 0 h before this release was made")
    for available_mib, limit_mib, state in ((64, None, doctor.OK), (8, None, doctor.WARNING), (64, 16, doctor.FAILED)):
        monkeypatch.setattr(probes, "memory_kib", lambda mib=available_mib: (128 << 10, mib << 10))
        monkeypatch.setattr(probes, "memory_limit_kib", lambda mib=limit_mib: mib and mib << 10)
        (row,) = doctor.check_memory(settings())
        assert row.state == state


def test_random_numbers_that_are_not_there_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = doctor.check_random(settings())
    assert (found.state, found.found) == (doctor.OK, "ready")

    def getrandom(size: int, flags: int) -> bytes:
        assert flags == os.GRND_NONBLOCK
        raise BlockingIOError

    monkeypatch.setattr(os, "getrandom", getrandom)
    [found] = doctor.check_random(settings())
    assert found.state == doctor.WARNING and "hw_random" in found.todo


def test_much_writing_to_flash_is_a_warning_by_the_boards_own_budget(tmp_path: Path) -> None:
    def wear(writes: int) -> doctor.Finding:
        day = {"writes": writes, "bytes": 2_048}
        return doctor._wear(settings(), {"flash": {"writes": writes, "bytes": 2_048, "day": day}})

    assert [wear(writes).state for writes in (0, 40, 41)] == [doctor.OK, doctor.OK, doctor.WARNING]
    told = '{"v": 1, "id": "x", "flash": {"writes_a_day": 5}}'
    (tmp_path / "state" / "board.json").write_text(told)
    assert [wear(writes).state for writes in (10, 11)] == [doctor.OK, doctor.WARNING]
    assert wear(11).found == "11 writes, 2.0 KiB in the last day; 11 writes, 2.0 KiB since the start"
    (tmp_path / "state" / "board.json").write_text(told.replace("5", '"much"'))
    assert wear(40).state == doctor.OK


def test_a_strict_filter_matters_with_several_uplinks_and_a_full_table_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeagent.uplinks.filters_strictly", lambda name: name == "eth0")
    numbers = {"nf_conntrack_count": 95, "nf_conntrack_max": 100}
    monkeypatch.setattr(probes, "read_number", lambda path: numbers[Path(path).name])
    for names, state in ((["eth0"], doctor.OK), (["eth0", "wwan0"], doctor.WARNING)):
        monkeypatch.setattr(probes, "default_route_interfaces", lambda names=names: names)
        filters, conntrack = doctor.check_filters(settings())
        assert filters.state == state
        assert (conntrack.state, conntrack.found) == (doctor.WARNING, "95 of 100 connections")


def test_the_least_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    with open("/proc/self/cgroup", encoding="ascii") as file:
        groups = [line.strip().split(":", 2) for line in file]
    unified = next((group for _, controllers, group in groups if not controllers), None)
    if unified is None:
        pytest.skip("no unified control group")
    folder = tmp_path / unified.lstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    assert probes.memory_limit_kib(str(tmp_path)) is None
    (folder / "memory.max").write_text("max\n")
    assert probes.memory_limit_kib(str(tmp_path)) is None
    (tmp_path / "memory.max").write_text(f"{40 << 20}\n")
    assert probes.memory_limit_kib(str(tmp_path)) == 40 << 10


def test_offloads_are_seen_on_real_sockets() -> None:
    segment, gro = probes.try_udp_offloads()
    release = tuple(int("".join(filter(str.isdigit, part))) for part in os.uname().release.split(".")[:2])
    assert (segment, gro) == (release >= (4, 18), release >= (5, 0))


def test_a_loopback_that_takes_segments_apart_says_nothing_of_gro(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 5.11, where UDP_GRO is known all the same."""

    class Apart(socket.socket):
        def sendmsg(self, *said: Any) -> int:
            (data,), _, _, address = said
            return sum(self.sendto(data[at : at + 100], address) for at in range(0, len(data), 100))

    monkeypatch.setattr(socket, "socket", Apart)
    assert probes.try_udp_offloads() == (True, True)
    monkeypatch.setattr(probes, "_UDP_GRO", 251)  # which no kernel has
    assert probes.try_udp_offloads() == (True, False)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[list[str]]:
    """Something that answers as an agent does, a question a connection; the list has what it was asked."""
    asked: list[str] = []
    answers = {
        "version": {"version": VERSION},
        "status": {
            "agent": {"flash": {"writes": 1, "bytes": 9, "day": {"writes": 1, "bytes": 9}}},
            "engine": {"name": "fast", "why": "the C library is there"},
        },
    }
    selector = selectors.DefaultSelector()

    def handle(_now: float, client: Client, verb: str, _request: dict[str, Any]) -> None:
        asked.append(verb)
        client.answer(answers[verb])

    api = LocalApi(str(tmp_path / "agent.sock"), handle, selector)
    api.open()
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for key, _ in selector.select(0.02):
                key.data(time.monotonic(), key.fd)

    thread = threading.Thread(target=serve)
    thread.start()
    yield asked
    ended.set()
    thread.join()
    api.close()
    selector.close()


def test_a_running_agent_is_asked_what_it_is_and_does(capsys: pytest.CaptureFixture[str], agent: list[str]) -> None:
    _, found = rows(capsys)
    assert (found["agent"]["state"], found["agent"]["found"]) == (doctor.OK, f"running, version {VERSION}")
    assert found["engine in use"]["found"] == "fast: the C library is there"
    assert found["flash"]["state"] == doctor.OK and agent == ["version", "status"]


def settings() -> Any:
    from edgeagent.config import load

    return load({})


def test_the_kernel_s_engine_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enginerule, "LAST", (("nft", "", lambda: "no program nft"),))
    monkeypatch.setattr(enginerule, "OF_SYSTEM", (("rights", "", lambda: "without CAP_NET_RAW"),))
    _, found = rows(capsys)
    assert "rights: without CAP_NET_RAW" in found["kernel WireGuard"]["found"]
    assert "nft: no program nft" in found["kernel WireGuard"]["found"]
    monkeypatch.setenv("EDGEAGENT_ENGINE", "kernel")
    _, found = rows(capsys)
    assert found["kernel WireGuard"]["state"] == doctor.WARNING
    monkeypatch.setenv("EDGEAGENT_ENGINE", "pure")
    _, found = rows(capsys)
    assert found["kernel WireGuard"]["found"] == "not taken: the setting `engine` says so"
    assert found["engine"]["found"] == "pure: the setting `engine` says so"
