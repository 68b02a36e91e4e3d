"""`edgeagent crypto`: what it prints, and where it stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeagent import cli
from edgeagent.engine import bakeoff
from edgeagent.engine.bakeoff import Row
from edgeagent.engine.fast import library
from edgeagent.io.keystore import Keystore, StateFile

CELLS = [(size, batch) for size in bakeoff.SIZES for batch in bakeoff.BATCHES]
MEASURED = [
    Row(
        "lanes-128",
        "4 lanes",
        "",
        dict(zip(CELLS, (200_000, 80_000, 64_000, 2_000_000, 1_600_000, 1_500_000), strict=True)),
    ),
    Row(
        "libcrypto",
        "OpenSSL 3",
        "",
        dict(zip(CELLS, (500_000, 500_000, 500_000, 900_000, 900_000, 800_000), strict=True)),
    ),
    Row("af_alg", "", "no kernel"),
]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory, and a library that is there and never loaded."""
    monkeypatch.setattr(library, "path", lambda: "/lib/own.so")
    monkeypatch.setattr(library, "fault", lambda _: None)
    monkeypatch.setattr(bakeoff, "measure", lambda _: MEASURED)
    monkeypatch.delenv(bakeoff.AEAD_VARIABLE, raising=False)
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


def run(state: Path, *words: str) -> int:
    return cli.main(["crypto", "--state-dir", str(state), *words])


def test_the_table_for_people(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state) == 0
    assert capsys.readouterr().out.splitlines() == [
        "used: lanes-128 for small messages, libcrypto for large ones (measured now)",
        "",
        "64 B       ALONE ns  Mbit/s  ×16 ns  Mbit/s  ×64 ns  Mbit/s  VERSION",
        "lanes-128  200       2,560   80      6,400   64      8,000   4 lanes",
        "libcrypto  500       1,024   500     1,024   500     1,024   OpenSSL 3",
        "",
        "1,420 B    ALONE ns  Mbit/s  ×16 ns  Mbit/s  ×64 ns  Mbit/s  VERSION",
        "libcrypto  900       12,622  900     12,622  800     14,200  OpenSSL 3",
        "lanes-128  2,000     5,680   1,600   7,100   1,500   7,573   4 lanes",
        "",
        "not there:",
        "  af_alg: no kernel",
    ]


def test_it_is_measured_once_and_again_when_asked(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(state) == 0
    monkeypatch.setattr(bakeoff, "measure", lambda _: MEASURED[:1])
    assert run(state) == 0
    assert "libcrypto for large ones (measured before)" in capsys.readouterr().out
    assert run(state, "--measure") == 0
    assert "lanes-128 for large ones (measured now)" in capsys.readouterr().out


def test_the_table_as_data(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["small"], data["large"], data["why"]) == ("lanes-128", "libcrypto", "measured now")
    assert data["providers"][0]["measured"][0] == {"bytes": 64, "batch": 1, "ns": 200.0, "mbit_s": 2560.0}
    assert data["providers"][2] == {"name": "af_alg", "version": None, "why_not": "no kernel", "measured": []}


def test_beside_a_running_agent_nothing_is_stored(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = Keystore(str(state))
    agent.open()
    assert run(state) == 0
    assert not Path(agent.path(StateFile.AEAD)).exists()
    agent.close()
    assert run(state) == 0
    assert Path(agent.path(StateFile.AEAD)).exists()


def test_no_state_directory_is_made(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state / "none") == 0
    assert not (state / "none").exists()


def test_the_environment_is_said(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(bakeoff.AEAD_VARIABLE, "nettle")
    assert run(state) == 0
    assert "used: nettle for small messages, nettle for large ones (EDGEAGENT_AEAD says so)" in capsys.readouterr().out
    monkeypatch.setenv(bakeoff.AEAD_VARIABLE, "rot13")
    assert run(state) == 1
    assert "AEAD 'rot13': there is none of that name. Use one of lanes," in capsys.readouterr().err


def test_without_the_library_it_says_why(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "fault", lambda _: "it is no ELF file")
    assert run(state) == 1
    assert capsys.readouterr().err == "edgeagent: crypto: /lib/own.so: it is no ELF file.\n"
    monkeypatch.setattr(library, "path", lambda: None)
    monkeypatch.setattr(library, "why_missing", lambda: "no compiler")
    assert run(state) == 1
    assert "no C library: no compiler." in capsys.readouterr().err
