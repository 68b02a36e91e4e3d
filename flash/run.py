"""Runs the tools that know file systems (e2fsprogs, mtools): quiet, bounded, with one clock, no secret in argv."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from flash.errors import FlashError

TIMEOUT_S = 900.0
# What is written into file systems carries this time unless SOURCE_DATE_EPOCH says otherwise: equal inputs then make
# equal images. 2026-11-01.
EPOCH_S = 1_793_491_200
PACKAGES = {
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "mcopy": "mtools",
    "mdel": "mtools",
    "mdir": "mtools",
    "mmd": "mtools",
    "mtype": "mtools",
    "fakeroot": "fakeroot",
    "tar": "tar",
}


def epoch_s() -> int:
    """The time that injected files carry, seconds since 1970."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else EPOCH_S


def environment() -> dict[str, str]:
    """Of a tool: C locale, UTC, the one clock, no configuration of the user's."""
    epoch = str(epoch_s())
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        "HOME": "/nonexistent",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "LC_ALL": "C",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": epoch,
        "E2FSPROGS_FAKE_TIME": epoch,
        "MKE2FS_CONFIG": "/dev/null",  # features are named by us, not by the machine
        "MTOOLSRC": "/dev/null",
        "MTOOLS_SKIP_CHECK": "1",
        "DEBUGFS_PAGER": "cat",
    }


def run(
    command: Sequence[str],
    *,
    feed: bytes = b"",
    fds: Sequence[int] = (),
    cwd: str | None = None,
    ok: Sequence[int] = (0,),
) -> bytes:
    """Standard output of a tool that ended with a status in `ok`. FlashError says which package a missing one is in."""
    try:
        done = subprocess.run(
            command, input=feed, capture_output=True, pass_fds=fds, cwd=cwd, env=environment(), timeout=TIMEOUT_S
        )
    except FileNotFoundError:
        package = PACKAGES.get(command[0], command[0])
        raise FlashError(
            f"{command[0]}: not on this machine. Install the package {package}, as with apt-get install {package}."
        ) from None
    except subprocess.TimeoutExpired:
        raise FlashError(f"{command[0]}: not done after {TIMEOUT_S:.0f} s. Is the disk slow or broken?") from None
    if done.returncode not in ok:
        raise ToolError(command[0], done.returncode, (done.stderr or done.stdout).decode("utf-8", "replace"))
    return done.stdout


class ToolError(FlashError):
    """A tool ended badly; `said` is what it printed last, at most 300 characters."""

    def __init__(self, tool: str, status: int, output: str) -> None:
        self.said = " / ".join(line.strip() for line in output.splitlines() if line.strip())[-300:]
        self.status = status
        super().__init__(f"{tool}: ended with status {status}: {self.said or 'it said nothing'}.")
