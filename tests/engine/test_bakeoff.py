"""The bake-off of AEADs: what is measured, that what dies or hangs loses itself only, when what is stored holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeagent.engine import bakeoff, bakeoffjob
from edgeagent.engine.bakeoff import Row
from edgeagent.engine.fast import build
from edgeagent.io.keystore import StateFile
from edgeagent.proto.codec import decode, encode
from edgeagent.proto.errors import RemoteProtocolError

DEVICE = bytes(range(16))
CELLS = [(size, batch) for size in bakeoff.SIZES for batch in bakeoff.BATCHES]

# A library whose providers do to their process what the worst may do.
FAKE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char made[32];
void *ea_aead_new(const char *name, char *why, size_t bytes) {
    strncpy(made, name, sizeof made - 1);
    if (!strcmp(name, "nettle")) { strncpy(why, "not\there", bytes); return 0; }
    if (!strcmp(name, "lanes-512")) __builtin_trap();
    if (!strcmp(name, "libcrypto")) exit(7);
    return made;
}
void ea_aead_free(void *aead) { (void)aead; if (!strcmp(made, "libsodium")) abort(); }
const char *ea_aead_version(void *aead) { (void)aead; return "1\t2\n3"; }
double ea_aead_measure(void *aead, uint32_t bytes, unsigned batch, unsigned milliseconds) {
    (void)aead, (void)milliseconds;
    if (!strcmp(made, "libgcrypt") && bytes > 64) sleep(60);
    if (!strcmp(made, "af_alg")) return -1;
    return (!strcmp(made, "lanes-256") ? 1.0 : 2.0) * bytes + 100.0 / batch;
}
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fake")
    (folder / "fake.c").write_text(FAKE)
    made = folder / "fake.so"
    subprocess.run([*build.find_compiler(), "-shared", "-fPIC", "-o", made, folder / "fake.c"], check=True)
    return str(made)


def rows_of(**costs: int) -> list[Row]:
    return [Row(name.replace("_", "-"), "1", "", dict.fromkeys(CELLS, cost)) for name, cost in costs.items()]


def test_a_provider_that_dies_or_hangs_loses_itself_only(fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakeoff, "QUIET_S_MAX", 1.0)
    rows = {row.name: row for row in bakeoff.measure(fake)}
    assert list(rows) == list(bakeoff.MEASURED)
    assert (rows["lanes-512"].why, rows["lanes-512"].ps) in (("it died of signal 4", {}), ("it died of signal 5", {}))
    assert (rows["libcrypto"].why, rows["libcrypto"].ps) == ("its process ended with status 7", {})
    assert (rows["libgcrypt"].why, rows["libgcrypt"].ps) == ("no answer for 1 s", {})
    assert (rows["nettle"].why, rows["nettle"].ps) == ("not here", {})
    assert (rows["af_alg"].why, rows["af_alg"].ps) == ("it could not be measured", {})
    assert rows["lanes-256"].version == "1 2 3"
    assert rows["lanes-256"].ps[64, 1] == 164_000
    # It died when it had been measured, at its end: whoever dies then is no provider for an agent either.
    assert (rows["libsodium"].why, rows["libsodium"].ps) == ("it died of signal 6", {})
    assert {name for name, row in rows.items() if row.ps} == {"lanes-256", "lanes-128", "portable"}


def test_a_library_that_does_not_load_is_no_endless_loop(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF")
    result, body = bakeoff.choose(str(tmp_path / "x.so"), None, environ={})
    assert (result.small, result.large, result.why) == ("lanes", "lanes", "nothing could be measured")
    assert {row.why for row in result.rows} == {"its process ended with status 1"}
    assert body is None


def test_what_was_measured_is_stored_and_holds(fake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakeoff, "QUIET_S_MAX", 1.0)
    first, body = bakeoff.choose(fake, None, environ={})
    assert body is not None
    assert len(body) <= StateFile.AEAD.bytes_max
    assert (first.small, first.large, first.why) == ("lanes-256", "lanes-256", "measured now")
    monkeypatch.setattr(bakeoff, "measure", lambda _: pytest.fail("measured again"))
    again, nothing = bakeoff.choose(fake, body, environ={})
    assert nothing is None
    assert (again.small, again.large, again.why) == ("lanes-256", "lanes-256", "measured before")
    assert [(row.name, row.version, row.why, row.ps) for row in again.rows] == [
        (row.name, row.version, row.why, row.ps) for row in first.rows
    ]


@pytest.mark.parametrize("stored", [b"", b"\xff", encode({"v": 1}), encode([]), encode({"v": 2, "of": DEVICE})])
def test_what_does_not_hold_is_measured_again(stored: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakeoff, "measure", lambda _: rows_of(portable=5, lanes_128=3))
    result, body = bakeoff.choose("/nowhere", stored, environ={})
    assert (result.small, result.why) == ("lanes-128", "measured now")
    assert body is not None


def test_measured_anew_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakeoff, "measure", lambda _: rows_of(portable=5, lanes_128=3))
    _, body = bakeoff.choose("/nowhere", None, environ={})
    monkeypatch.setattr(bakeoff, "measure", lambda _: rows_of(portable=2, lanes_128=3))
    assert bakeoff.choose("/nowhere", body, environ={})[0].small == "lanes-128"
    assert bakeoff.choose("/nowhere", body, anew=True, environ={})[0].small == "portable"


def test_the_environment_decides_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bakeoff, "measure", lambda _: pytest.fail("measured"))
    result, body = bakeoff.choose("/nowhere", None, environ={"EDGEAGENT_AEAD": "libsodium"})
    assert (result.small, result.large, result.why, body) == ("libsodium", "libsodium", "EDGEAGENT_AEAD says so", None)
    with pytest.raises(bakeoff.AeadUnavailable, match="'x': there is none of that name"):
        bakeoff.choose("/nowhere", None, environ={"EDGEAGENT_AEAD": "x"})


def test_a_library_must_be_worth_its_memory() -> None:
    assert bakeoff.fastest(rows_of(portable=100, libsodium=96), 64) == "portable"
    assert bakeoff.fastest(rows_of(portable=100, libsodium=94), 64) == "libsodium"
    assert bakeoff.fastest(rows_of(libsodium=94, libcrypto=93), 64) == "libcrypto"
    assert bakeoff.fastest([Row("portable", "", "gone")], 64) is None


def test_small_and_large_have_each_their_own() -> None:
    rows = rows_of(portable=100, libcrypto=100)
    rows[1].ps.update({(1420, 16): 10, (1420, 64): 10, (64, 1): 1})
    assert (bakeoff.fastest(rows, 64), bakeoff.fastest(rows, 1420)) == ("portable", "libcrypto")


def test_the_fingerprint_changes_with_the_library_and_a_library_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.so"
    own.write_bytes(b"1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    seen = {bakeoff.fingerprint(str(own))}
    assert bakeoff.fingerprint(str(own)) in seen
    own.write_bytes(b"12")
    seen.add(bakeoff.fingerprint(str(own)))
    (tmp_path / "libsodium.so.23").write_bytes(b"1")
    seen.add(bakeoff.fingerprint(str(own)))
    (tmp_path / "libsodium.so.23").write_bytes(b"12")
    seen.add(bakeoff.fingerprint(str(own)))
    monkeypatch.setattr(bakeoff, "_processor", lambda: b"another")
    seen.add(bakeoff.fingerprint(str(own)))
    assert len(seen) == 5
    assert {len(each) for each in seen} == {16}


@given(st.data())
def test_damage_is_an_error_that_names_the_field(data: st.DataObject) -> None:
    """One item of what is stored is something else."""
    body = decode(bakeoff.dump(rows_of(portable=5, lanes_128=3), DEVICE))
    row = data.draw(st.integers(0, 1))
    column = data.draw(st.integers(0, 3))
    other: object = data.draw(st.sampled_from([None, -1, [1], [1] * 7, ["a"] * 6, [True] * 6, {}]))
    body["rows"][row][column] = other
    with pytest.raises(RemoteProtocolError, match="AEAD measurements: "):
        bakeoff.load(encode(body), DEVICE)


def test_the_job_measures_what_is_stored() -> None:
    assert (bakeoffjob.SIZES, bakeoffjob.BATCHES) == (bakeoff.SIZES, bakeoff.BATCHES)
