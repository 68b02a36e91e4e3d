"""What the hub may run here, and programs that do not behave."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeagent import scripts
from edgeagent.io.child import Child
from tests.netlab import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="scripts belong to root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path.resolve() / "scripts"
    made.mkdir(mode=0o755)
    made.chmod(0o755)
    return made


def write(folder: Path, name: str, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def refused(folder: Path | str, name: str) -> str:
    with pytest.raises(scripts.ScriptError) as caught:
        scripts.find(str(folder), name)
    return caught.value.code


def test_a_script_of_root_is_found(folder: Path) -> None:
    path = write(folder, "x")
    assert scripts.find(str(folder), "x") == str(path)
    assert scripts.find(f"{folder}/", "x") == str(folder / "x")


def test_there_is_nothing_without_the_directory(folder: Path) -> None:
    assert refused(folder / "absent", "x") == "no-scripts"
    assert refused(write(folder, "file"), "x") == "unsafe-directory"


def test_only_a_name_and_a_file_of_root_alone(folder: Path, tmp_path: Path) -> None:
    assert refused(folder, "absent") == "unknown-script"
    outside = write(tmp_path, "outside")
    (folder / "link").symlink_to(outside)
    (folder / "inside").symlink_to(write(folder, "real"))
    (folder / "sub").mkdir()
    os.mkfifo(folder / "fifo")
    for name in ("link", "inside", "sub", "fifo"):
        assert refused(folder, name) == "unsafe-script"
    for name in ("../outside", "/bin/sh", ".hidden", "", "sub/../real"):
        assert refused(folder, name) == "unknown-script"
    assert refused(folder, write(folder, "plain", mode=0o644).name) == "unsafe-script"
    assert refused(folder, write(folder, "by-group", mode=0o775).name) == "unsafe-script"
    assert refused(folder, write(folder, "by-all", mode=0o757).name) == "unsafe-script"
    os.chown(write(folder, "others"), 65_534, 0)
    assert refused(folder, "others") == "unsafe-script"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_write_to_is_not_used(folder: Path, mode: int) -> None:
    write(folder, "x")
    folder.chmod(mode)
    assert refused(folder, "x") == "unsafe-directory"


def test_nor_one_that_others_can_put_in_its_place(folder: Path, tmp_path: Path) -> None:
    write(folder, "x")
    alias = tmp_path.resolve() / "alias"
    alias.symlink_to(folder)
    assert refused(alias, "x") == "unsafe-directory"
    through = tmp_path.resolve() / "through"
    through.symlink_to(folder.parent)
    assert refused(through / "scripts", "x") == "unsafe-directory"
    folder.parent.chmod(0o777)
    assert refused(folder, "x") == "unsafe-directory"
    folder.parent.chmod(0o700)
    os.chown(folder, 65_534, 0)
    assert refused(folder, "x") == "unsafe-directory"


# Programs


class Loop:
    """The agent's loop as far as a child needs it."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.children: list[Child] = []

    def child(self, path: Path, *words: str, limit_s: float = 10.0, output_max: int = 10_000) -> Child:
        environ = {"PATH": "/usr/bin:/bin"}
        made = Child(
            time.monotonic(), self.selector, [str(path), *words], environ, limit_s=limit_s, output_max=output_max
        )
        self.children.append(made)
        return made

    def turn(self, child: Child) -> bool:
        due = child.poll_timeout()
        for key, _ in self.selector.select(0.05 if due is None else min(0.05, max(0.0, due - time.monotonic()))):
            key.data(time.monotonic(), key.fd)
        child.on_timeout(time.monotonic())
        return child.ended

    def end(self, child: Child, within_s: float = 15.0) -> Child:
        until(lambda: self.turn(child), within_s, "the end of a child")
        assert not list(self.selector.get_map())
        return child


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    for child in made.children:
        child.close()
    made.selector.close()


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_output_exit_status_and_a_clean_environment(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", '#!/bin/sh\necho out; echo err >&2; echo "$@"; env; nice; exit 7\n')
    child = loop.end(loop.child(path, "a b", "$HOME", ";ls"))
    assert (child.code, child.why) == (7, "")
    lines = bytes(child.output).decode().splitlines()
    assert lines[:3] == ["out", "err", "a b $HOME ;ls"]
    assert {line.partition("=")[0] for line in lines[3:-1]} <= {"PATH", "PWD", "SHLVL", "_"}
    assert lines[-1] == "10"


def test_it_reads_nothing_and_inherits_no_descriptor(folder: Path, loop: Loop) -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    path = write(folder, "x", "#!/bin/sh\ncat\nexec ls /proc/self/fd\n")
    child = loop.end(loop.child(path))
    os.close(kept)
    found = {int(word) for word in bytes(child.output).split()}
    meant = {fd for fd in found if fd > 3 and inheritable(fd)}  # what this test run was itself started with
    assert {0, 1, 2} <= found and found - meant <= {0, 1, 2, 3}  # the last is that of ls


def inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_signals_are_as_a_program_expects_them(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\ngrep -E 'Sig(Blk|Ign)' /proc/self/status\n")
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = loop.end(loop.child(path))
    finally:
        signal.signal(signal.SIGHUP, old)
    blocked, ignored = (int(line.split()[1], 16) for line in bytes(child.output).splitlines())
    assert blocked == 0 and not ignored & (1 << (signal.SIGHUP - 1) | 1 << (signal.SIGPIPE - 1))


def test_what_has_no_interpreter_is_never_given_to_a_shell(folder: Path, loop: Loop) -> None:
    with pytest.raises(OSError, match="Exec format"):
        loop.child(write(folder, "x", "echo run by a shell\n"))
    with pytest.raises(FileNotFoundError):
        loop.child(write(folder, "y", "#!/no/such/interpreter\n"))
    assert not list(loop.selector.get_map())


def test_endless_output_ends_it(folder: Path, loop: Loop) -> None:
    child = loop.end(loop.child(write(folder, "x", "#!/bin/sh\nexec yes\n"), output_max=5_000))
    assert child.why == "too-much-output" and len(child.output) == 5_000 and child.code < 0


def test_endless_output_that_ignores_all_signals_ends_it_too(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\ntrap '' TERM PIPE\nwhile :; do echo x 2>/dev/null; done\n")
    child = loop.end(loop.child(path, output_max=5_000))
    assert child.why == "too-much-output" and child.code == -signal.SIGKILL


def test_one_that_ignores_sigterm_is_killed_at_its_limit(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")
    child = loop.end(loop.child(path, limit_s=0.3))
    assert (child.why, child.code) == ("time-limit", -signal.SIGKILL)


def test_forks_end_with_it(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\nfor i in 1 2 3; do (trap '' TERM; sleep 60) & echo $!; done\nexit 0\n")
    child = loop.end(loop.child(path))
    pids = [int(word) for word in bytes(child.output).split()]
    assert child.code == 0 and len(pids) == 3
    until(lambda: all(map(gone, pids)), 5, "the end of its children")


def test_forks_that_never_stop_are_killed_as_a_group(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\nwhile :; do sleep 60 & sleep 0.02; done\n")
    child = loop.child(path, limit_s=0.5)
    loop.end(child)
    assert child.why == "time-limit"
    until(lambda: not group(child.pid), 5, "the end of its group")


def group(number: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and not gone(int(name)):
            try:
                if os.getpgid(int(name)) == number:
                    found.append(int(name))
            except ProcessLookupError:
                continue
    return found


def test_one_that_left_its_group_does_not_hold_us_up(folder: Path, loop: Loop) -> None:
    path = write(folder, "x", "#!/bin/sh\nsetsid sh -c 'echo $$; exec sleep 60' & sleep 0.3\n")
    child = loop.end(loop.child(path), within_s=5)  # though the output is still open
    runaway = int(bytes(child.output).split()[0])
    assert child.code == 0 and not gone(runaway)
    os.kill(runaway, signal.SIGKILL)


def test_one_that_closes_its_output_is_waited_for(folder: Path, loop: Loop) -> None:
    child = loop.end(loop.child(write(folder, "x", "#!/bin/sh\nexec >&- 2>&-\nsleep 0.3\nexit 4\n")))
    assert (child.code, bytes(child.output)) == (4, b"")


def test_close_ends_it_at_once(folder: Path, loop: Loop) -> None:
    child = loop.child(write(folder, "x", "#!/bin/sh\ntrap '' TERM\nsleep 60 & wait\n"))
    child.close()
    assert child.ended and not list(loop.selector.get_map())
    until(lambda: not group(child.pid), 5, "the end of its group")


def test_a_kernel_without_pidfd(folder: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", absent)
    child = loop.end(loop.child(write(folder, "x", "#!/bin/sh\necho out\nexit 5\n")))
    assert (child.code, bytes(child.output)) == (5, b"out\n")
