"""Minutes of one TCP stream between two homes, by turns direct and by relay."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.interop.test_soak import _longest_silence, _rss_kib
from tests.netlab import Lab, until
from tests.netlab.homes import Homes, Member, is_direct
from tests.netlab.nat import Kind

SECONDS = int(os.environ.get("EDGEMESH_SOAK_S", "600"))
TICK_S = 0.1
STALL_S_MAX = 0.2  # of moves that an agent makes because it found something better
RATE = "50M"  # a relay lets one member have 100 Mbit/s
TURN_S = 20  # on each way
SETTLE_S = 3.0  # TCP's own, after a move
MOVE_TIMEOUT_S = 60.0
DYING_S_MAX = 15.0  # a path that dies without a word: silence is how it is noticed


@pytest.mark.slow
def test_direct_and_relay_by_turns(lab: Lab) -> None:
    homes = Homes(lab)
    homes.start("fra-1", "fra-2")
    a, b = (homes.member(name, homes.home(Kind.PORT)) for name in ("left", "right"))
    homes.up(a, b)
    assert a.host.ping(b.address, 10) is not None
    until(lambda: is_direct(a, b) and is_direct(b, a), MOVE_TIMEOUT_S, "a direct path")
    server = b.host.start("iperf3", "-s", "-1", "--forceflush")
    server.expect("listening")
    log = Path(a.host.directory) / "soak.json"
    before = {member.name: _rss_kib(member.pid()) for member in (a, b)}
    client = a.host.start(
        "iperf3", "-c", b.address, "-t", str(SECONDS), "-b", RATE, "-i", str(TICK_S), "-J", "--logfile", str(log)
    )
    began = monotonic()
    cuts: list[float] = []  # seconds into the stream
    finds: list[tuple[float, float]] = []
    relayed: list[tuple[float, float]] = []
    while monotonic() - began < SECONDS - 3 * TURN_S:
        sleep(TURN_S)
        cuts.append(monotonic() - began)
        _cut(a, b)
        until(lambda: not is_direct(a, b) and not is_direct(b, a), MOVE_TIMEOUT_S, "both by relay")
        moved = monotonic() - began
        sleep(TURN_S)
        opened = monotonic() - began
        relayed.append((moved + SETTLE_S, opened))
        _mend(a)
        until(lambda: is_direct(a, b) and is_direct(b, a), MOVE_TIMEOUT_S, "a direct path again")
        finds.append((opened, monotonic() - began))
    client.wait(timeout_s=SECONDS)
    result = json.loads(log.read_text())
    intervals = result["intervals"]
    chosen = max(_longest_silence(_between(intervals, start, end + 2.0)) for start, end in finds)
    dying = max(_longest_silence(_between(intervals, at, at + MOVE_TIMEOUT_S)) for at in cuts)
    sent, received = result["end"]["sum_sent"], result["end"]["sum_received"]
    lost = sum(_retransmits(_between(intervals, *span)) for span in relayed)
    after = {member.name: _rss_kib(member.pid()) for member in (a, b)}
    if keep := os.environ.get("EDGEMESH_SOAK_LOG"):
        Path(keep).write_text(log.read_text())
    print(
        f"{received['bits_per_second'] / 1e6:.0f} Mbit/s for {SECONDS} s, {len(cuts)} times to a relay and "
        f"{len(finds)} times back: longest silence {chosen:.1f} s when a direct path is found, {dying:.1f} s when it "
        f"dies; {sent['retransmits']} retransmits, {lost} of them while it went by a relay; RSS {before} to {after} KiB"
    )
    assert len(finds) == len(cuts) > 0
    assert chosen <= STALL_S_MAX
    assert dying <= DYING_S_MAX
    assert all(after[name] - before[name] <= 2048 for name in before)


def _cut(a: Member, b: Member) -> None:
    """Nothing passes between the two homes any more but what goes by a relay."""
    assert a.router is not None and b.router is not None
    other = b.router.address
    a.router.host.run(
        "nft",
        "-f",
        "-",
        input=f"""table ip cut {{
            chain forward {{
                type filter hook forward priority -10;
                ip daddr {other} drop
                ip saddr {other} drop
            }}
        }}""",
    )


def _mend(a: Member) -> None:
    assert a.router is not None
    a.router.host.run("nft", "delete", "table", "ip", "cut")


def _retransmits(intervals: list[dict[str, dict[str, float]]]) -> int:
    return int(sum(each["sum"]["retransmits"] for each in intervals))


def _between(
    intervals: list[dict[str, dict[str, float]]], start: float, end: float
) -> list[dict[str, dict[str, float]]]:
    return [each for each in intervals if start <= each["sum"]["start"] <= end]
