"""The launcher's choice: whatever lies in the slots, there is an agent to start, and a trial has an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeagent import slots, zipped
from edgeagent.slotwriter import NoSpace, SlotWriter
from tests.agent.test_slots_powercut import NEW, OLD, TRIAL_S, commit, install, program, target_of, zipapp


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "slots"


def pick(directory: Path) -> slots.Picked:
    return slots.pick(str(directory), str(directory.parent / "run"))


def test_without_slots_the_factory_runs(directory: Path) -> None:
    assert (pick(directory).slot, pick(directory).why) == (slots.FACTORY, "")


def test_a_trial_is_started_three_times_and_then_no_more(directory: Path) -> None:
    install(directory, NEW, "0.2.0", 7)
    assert [(each.slot, each.trial_s) for each in (pick(directory) for _ in range(3))] == [("a", TRIAL_S)] * 3
    last = pick(directory)
    assert (last.slot, last.why) == (slots.FACTORY, "it was started 3 times and did not commit itself")
    choice = slots.read_choice(str(directory))
    assert choice is not None and choice.returned == (7, "0.2.0", last.why)
    assert (pick(directory).slot, pick(directory).why) == (slots.FACTORY, "")


def test_a_trial_has_one_deadline_over_all_its_starts(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(directory, NEW, "0.2.0", 7)
    now = 1_000.0
    monkeypatch.setattr(slots, "monotonic", lambda: now)
    assert pick(directory).slot == "a"
    now += TRIAL_S - 1
    assert pick(directory).slot == "a"
    now += 1
    assert pick(directory).why == "it did not commit itself in 600 s"


def test_a_reboot_in_between_is_no_deadline(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of another boot say nothing."""
    install(directory, NEW, "0.2.0", 7)
    boots = iter("one two three".split())
    monkeypatch.setattr(slots, "_boot_id", lambda: next(boots))
    monkeypatch.setattr(slots, "monotonic", lambda: 1e6)
    assert [pick(directory).slot for _ in range(3)] == ["a"] * 3


def test_the_next_version_goes_to_the_other_slot(directory: Path) -> None:
    install(directory, OLD, "0.1.0", 1)
    pick(directory)
    commit(directory)
    before = {path: path.read_bytes() for path in (directory / "a").iterdir()}
    install(directory, NEW, "0.2.0", 2)
    assert program(directory, pick(directory).slot) == NEW
    commit(directory)
    assert {path: path.read_bytes() for path in (directory / "a").iterdir()} == before
    install(directory, zipapp("0.3.0", library=False), "0.3.0", 3)
    assert pick(directory).slot == "a" and sorted(os.listdir(directory / "a")) == ["edgeagent.pyz", "manifest.json"]
    for _ in range(3):
        last = pick(directory)
    assert program(directory, last.slot) == NEW  # the one before, and not the factory's


CHOICE_DAMAGES = [b"", b"\0" * 100, b"{}", b"[]\n", b"\xff" * 5_000, b"a\nb\n"]


@pytest.mark.parametrize("damage", CHOICE_DAMAGES)
def test_a_damaged_choice_means_the_factory(directory: Path, damage: bytes) -> None:
    install(directory, NEW, "0.2.0", 7)
    pick(directory)
    commit(directory)
    (directory / slots.CHOICE).write_bytes(damage)
    assert pick(directory).slot == slots.FACTORY and pick(directory).why
    install(directory, NEW, "0.2.0", 8)  # and the next update mends it
    assert pick(directory).slot == "a"


def test_every_byte_of_the_choice_that_is_another_is_noticed(directory: Path) -> None:
    install(directory, NEW, "0.2.0", 7)
    whole = (directory / slots.CHOICE).read_bytes()
    for at in range(len(whole) - 1):
        changed = whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :]
        with pytest.raises(slots.SlotError):
            slots.Choice.decode(changed)


@pytest.mark.parametrize(
    "fields",
    [
        {"committed": "c"},
        {"committed": "../../etc"},
        {"trial": "b", "committed": "b"},
        {"starts": -1},
        {"starts": True},
        {"trial": None},
        {"returned": [1, 2, 3]},
        {"returned": []},
    ],
)
def test_a_choice_of_another_form_is_refused(fields: dict[str, object]) -> None:
    line = json.loads(slots.Choice().encode().split(b"\n")[0])
    encoded = json.dumps(line | fields).encode()
    from hashlib import blake2s

    with pytest.raises(slots.SlotError):
        slots.Choice.decode(encoded + b"\n" + blake2s(encoded).hexdigest().encode() + b"\n")


def damage_program(slot: Path) -> None:
    data = (slot / slots.PROGRAM).read_bytes()
    (slot / slots.PROGRAM).write_bytes(data[:-1] + bytes((data[-1] ^ 1,)))


DAMAGES = {
    "a byte of the program": damage_program,
    "half of the program": lambda slot: (slot / slots.PROGRAM).write_bytes(NEW[: len(NEW) // 2]),
    "no program": lambda slot: (slot / slots.PROGRAM).unlink(),
    "the library": lambda slot: (slot / slots.LIBRARY).write_bytes(b"\x7fELF0.9.0"),
    "no library": lambda slot: (slot / slots.LIBRARY).unlink(),
    "no manifest": lambda slot: (slot / slots.MANIFEST).unlink(),
    "an empty manifest": lambda slot: (slot / slots.MANIFEST).write_bytes(b""),
    "a manifest of others": lambda slot: (slot / slots.MANIFEST).write_text(
        '{"version": "1", "files": {"edgeagent.pyz": [1, ""], "../choice": [1, ""]}}'
    ),
    "a manifest that is a list": lambda slot: (slot / slots.MANIFEST).write_text("[1]"),
    "a file in place of the slot": lambda slot: (slot.rename(slot.with_name("gone")), slot.write_text("")),
    "no slot": lambda slot: slot.rename(slot.with_name("gone")),
    "a directory in place of the program": lambda slot: (
        (slot / slots.PROGRAM).unlink(),
        (slot / slots.PROGRAM).mkdir(),
    ),
}


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_slot_that_is_not_whole_is_not_started(directory: Path, damage: str, committed: bool) -> None:
    install(directory, NEW, "0.2.0", 7)
    if committed:
        pick(directory)
        commit(directory)
    DAMAGES[damage](directory / "a")
    picked = pick(directory)
    assert picked.slot == slots.FACTORY and "slot a" in picked.why, picked.why
    choice = slots.read_choice(str(directory))
    assert choice is not None and (choice.returned is not None) is not committed
    if "in place of" not in damage:  # which an update does not mend, and which it says
        install(directory, NEW, "0.2.0", 8)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root to lose rights to root's files in no other way")
def test_an_unreadable_directory_means_the_factory(directory: Path) -> None:
    install(directory, NEW, "0.2.0", 7)
    for path in ("choice", "a/manifest.json"):
        target = directory / path
        target.rename(target.with_suffix(".was"))
        target.symlink_to(target)  # ELOOP for everybody
        assert pick(directory).slot == slots.FACTORY
        target.unlink()
        target.with_suffix(".was").rename(target)


def test_a_start_that_cannot_be_counted_is_not_made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(directory, NEW, "0.2.0", 7)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(slots.durable, "replace", refuse)
    assert (pick(directory).slot, pick(directory).why) == (slots.FACTORY, f"{directory}: Read-only file system")


def test_a_committed_slot_that_always_ends_at_once_gives_way_until_it_settles(directory: Path) -> None:
    install(directory, NEW, "0.2.0", 7)
    pick(directory)
    commit(directory)
    assert [pick(directory).slot for _ in range(5)] == ["a"] * 5
    assert pick(directory).why == "slot a: it ended 5 times soon after its start"
    slots.settled(str(directory.parent / "run"))
    assert pick(directory).slot == "a"


def test_what_is_no_agent_is_refused_and_removed(directory: Path) -> None:
    for data in (b"not a zip", zipapp("0.2.0")[:-30], empty_zip()):
        writer = SlotWriter(str(directory))
        writer.begin(target_of(data))
        writer.append(data)
        with pytest.raises(slots.SlotError):
            writer.finish(target_of(data), "0.2.0", 7, TRIAL_S)
        writer.forget()
        assert os.listdir(directory / "a") == [] and not (directory / slots.CHOICE).exists()


def empty_zip() -> bytes:
    import zipfile
    from io import BytesIO

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme", "no agent")
    return buffer.getvalue()


def test_writing_goes_on_where_it_was_left(directory: Path) -> None:
    writer = SlotWriter(str(directory))
    assert writer.begin(target_of(NEW)) == 0
    writer.append(NEW[:50])
    writer.close()
    other = SlotWriter(str(directory))
    assert other.begin(target_of(NEW)) == 50
    other.append(NEW[50:])
    assert other.is_right(target_of(NEW))
    other.close()
    assert other.begin(target_of(OLD)) == 0  # of another target nothing is kept
    assert len(os.listdir(directory / "a")) == 1


def test_a_full_disk_is_said(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SlotWriter(str(directory))
    huge = target_of(NEW)
    huge.length = 1 << 60
    with pytest.raises(NoSpace, match="KiB more are needed"):
        writer.begin(huge)


def test_the_launcher_becomes_the_agent_of_the_slot(directory: Path, tmp_path: Path) -> None:
    """A real start: the factory's agentd, whose arguments the slot's agent gets as they are."""
    import zipfile
    from io import BytesIO

    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("edgeagent/__init__.py", "")
        archive.writestr(
            "edgeagent/agentd.py",
            "import os, signal\n"
            "def main(arguments):\n"
            "    print('slot', os.environ['EDGEAGENT_SLOT'], *arguments, signal.alarm(0) > 600)\n"
            "    return 7\n",
        )
    install(directory, buffer.getvalue(), "0.2.0", 7)
    agentd = Path(slots.__file__).with_name("agentd.py")
    words = [sys.executable, "-P", "-X", "utf8", str(agentd), f"--state-dir={tmp_path}", f"--socket={tmp_path}/run/s"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EDGEAGENT")}
    done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"slot a --state-dir={tmp_path} --socket={tmp_path}/run/s True\n"


def test_the_way_back_to_the_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-P", "-X", "utf8", "-c", slots._BOOT, "/slots/a/edgeagent.pyz", "--mtu=1280", "--background=on"]
    monkeypatch.setenv(slots.FACTORY_VARIABLE, "/usr/lib/edgeagent/agentd.py")
    after = ["--mtu=1280", "--background=on"]
    assert slots.factory_words(words) == ["-P", "-X", "utf8", "/usr/lib/edgeagent/agentd.py", *after]
    monkeypatch.setenv(slots.FACTORY_VARIABLE, "/usr/bin/edgeagent")
    assert slots.factory_words(words) == ["-P", "-X", "utf8", "/usr/bin/edgeagent", zipped.AGENTD, *after]
