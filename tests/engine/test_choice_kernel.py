"""Whether the kernel has WireGuard, as far as files tell."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeagent import kerneltunnel
from edgeagent.engine import choice
from edgeagent.engine.choice import EngineUnavailable, choose, why_no_kernel
from edgeagent.engine.start import start

FOLDER = f"lib/modules/{os.uname().release}"


@pytest.mark.parametrize(
    ("path", "text", "there"),
    [
        ("sys/module/wireguard/version", "1", True),
        (f"{FOLDER}/wireguard.ko", "", True),
        (f"{FOLDER}/modules.dep", "kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/x.ko\n", True),
        (f"{FOLDER}/modules.builtin", "kernel/drivers/net/wireguard/wireguard.ko\n", True),
        (f"{FOLDER}/modules.dep", "kernel/net/x.ko: kernel/drivers/net/wireguard/wireguard.ko\n", False),
        ("etc/hostname", "pump", True),  # nothing is listed: who tries will see
    ],
)
def test_where_it_is_found(tmp_path: Path, path: str, text: str, there: bool) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    said = why_no_kernel(f"{tmp_path}/")
    assert (said is None) is there
    assert there or "no module wireguard in" in str(said)


def test_asked_for_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "why_no_kernel", lambda: None)
    assert choose({"EDGEAGENT_ENGINE": "kernel"})[0] == "kernel"
    assert choose({})[0] != "kernel"
    monkeypatch.setattr(choice, "why_no_kernel", lambda: "this kernel has none")
    with pytest.raises(EngineUnavailable, match=r"engine kernel: this kernel has none\. Unset EDGEAGENT_ENGINE"):
        choose({"EDGEAGENT_ENGINE": "kernel"})


def test_not_of_edge_wireguard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAGENT_ENGINE", "kernel")
    monkeypatch.setattr(choice, "why_no_kernel", lambda: None)
    nobody: object = None
    with pytest.raises(EngineUnavailable, match="only `edgeagent` has it"):
        start(nobody, nobody, nobody, nobody, nobody, slots=1, flows=1)  # type: ignore[arg-type]


def test_who_is_to_route_for_others_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is the hub's to say: an agent that ended by it could not be told otherwise any more."""
    made = object()
    monkeypatch.setattr(kerneltunnel, "remove_leftover", lambda name: False)
    monkeypatch.setattr(kerneltunnel, "KernelPort", lambda *arguments: None)
    monkeypatch.setattr(kerneltunnel, "KernelEngine", lambda *arguments, **options: made)
    context: Any = SimpleNamespace(settings=SimpleNamespace(mtu=1280), limits=SimpleNamespace(peers=4), selector=None)
    cases: list[tuple[list[Any], bool]] = [([], False), ([(bytes((192, 168, 7, 0)), 24)], True)]
    for approved, said in cases:
        node: Any = SimpleNamespace(map=SimpleNamespace(clients=[], approved=approved, addresses=[]))
        tun: Any = SimpleNamespace(name="edge0")
        caplog.clear()
        assert kerneltunnel.make(context, node, tun)[1] is made
        assert ("nothing is forwarded" in caplog.text) is said
