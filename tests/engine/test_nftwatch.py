"""A table of nftables that others may remove, in a network namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import select, subprocess
from edgeagent.io.nftwatch import NftWatch

def nft(text):
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

def told():
    return bool(select.select([watch.fd], [], [], 2.0)[0])

watch = NftWatch("ours")
assert not watch.stands()
nft("table inet ours {}")
assert told() and watch.stands()
assert not select.select([watch.fd], [], [], 0.0)[0]
nft("table inet others {}")
assert told() and watch.stands()
nft("table inet ours\\ndelete table inet ours\\ntable inet ours {}")
assert told() and watch.stands()
nft("table ip ours {}\\ndelete table inet ours")
assert told() and not watch.stands()
nft("table inet ours {}")
assert watch.stands()
nft("flush ruleset")
assert told() and not watch.stands()
watch.close()
print("seen")
"""


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not here")
def test_what_others_do_is_seen() -> None:
    words = ["unshare", "--net", sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr:
        pytest.skip("no right to make a network namespace")
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr
