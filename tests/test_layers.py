"""The house holds its stairs, and the check that says so can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers import RULES, SHELL_HELPERS, violations

ROOT = Path(__file__).parents[1]


def test_stairs_go_down_only() -> None:
    assert violations(ROOT) == []


def test_the_table_speaks_of_rooms_that_exist() -> None:
    packages = {rule.who for rule in RULES if not rule.who.startswith("relay")}
    missing = [
        package
        for package in packages
        if not any((ROOT / (package.replace(".", "/") + end)).exists() for end in ("", ".py"))
    ]
    assert missing == []
    assert [helper for helper in SHELL_HELPERS if not (ROOT / (helper.replace(".", "/") + ".py")).exists()] == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("edgeagent/proto/x.py", "import time", "edgeagent.proto.x is pure and imports time"),
        ("edgeagent/proto/x.py", "from os import urandom", "pure and imports os"),
        ("edgeagent/proto/x.py", "def f():\n    import random", "pure and imports random"),
        ("edgeagent/proto/x.py", "import asyncio.events", "pure and imports asyncio.events"),
        ("edgeagent/proto/x.py", "import logging", "pure and imports logging"),
        ("edgeagent/proto/x.py", "import nacl", "pure and imports nacl"),
        ("edgeagent/proto/x.py", "a = open('b')", "edgeagent.proto.x is pure and calls open()"),
        ("edgeagent/proto/x.py", "from edgeagent import io", "edgeagent.proto.x may not import edgeagent.io"),
        ("edgeagent/proto/x.py", "from .. import cli", "edgeagent.proto.x may not import edgeagent.cli"),
        ("edgeagent/proto/x.py", "from edgeagent.crypto import pure", "may not import edgeagent.crypto"),
        (
            "edgeagent/proto/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edgeagent.io.tun import Tun",
            "x.py:3: edgeagent.proto.x may not import edgeagent.io.tun",
        ),
        ("edgeagent/crypto/x.py", "import edgeagent.cli", "edgeagent.crypto.x may not import edgeagent.cli"),
        ("edgeagent/io/x.py", "from edgeagent.io.tun import Tun", "edgeagent.io.x may not import edgeagent.io.tun"),
        ("edgeagent/io/x.py", "from .tun import Tun", "edgeagent.io.x may not import edgeagent.io.tun"),
        ("edgeagent/x.py", "from hub.core import model", "edgeagent.x may not import hub.core"),
        ("edgeagent/x.py", "import tests.netlab", "edgeagent.x may not import tests.netlab"),
        ("hub/core/x.py", "from edgeagent.crypto import load", "hub.core.x may not import edgeagent.crypto"),
        ("hub/core/x.py", "from hub.store import db", "hub.core.x may not import hub.store"),
        ("hub/core/x.py", "import sqlalchemy", "hub.core.x is pure and imports sqlalchemy"),
        ("hub/io/x.py", "from hub.store import db", "hub.io.x may not import hub.store"),
        ("hub/x.py", "from edgeagent.io.tun import Tun", "hub.x may not import edgeagent.io.tun"),
        ("hub/x.py", "import relay.server", "hub.x may not import relay.server"),
        ("relay/x.py", "import hub.core", "relay.x may not import hub.core"),
        ("boards/x.py", "import edgeagent.proto.limits", "boards.x may not import edgeagent.proto.limits"),
        ("flash/x.py", "import edgeagent.io.keystore", "flash.x may not import edgeagent.io.keystore"),
        ("flash/x.py", "import hub.core", "flash.x may not import hub.core"),
        ("hil/x.py", "import edgeagent.proto.keys", "hil.x may not import edgeagent.proto.keys"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, source: str, said: str) -> None:
    write(tmp_path, "edgeagent/cli.py", "import argparse")
    write(tmp_path, "edgeagent/io/__init__.py", "")
    write(tmp_path, "edgeagent/io/tun.py", "import fcntl")
    assert violations(tmp_path) == []
    write(tmp_path, path, source)
    found = violations(tmp_path)
    assert len(found) == 1 and said in found[0], found


def test_a_circle_is_found_but_not_one_that_only_the_type_checker_sees(tmp_path: Path) -> None:
    write(tmp_path, "edgeagent/proto/a.py", "from edgeagent.proto.b import B")
    back = "from edgeagent.proto import a"
    write(tmp_path, "edgeagent/proto/b.py", f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {back}")
    assert violations(tmp_path) == []
    write(tmp_path, "edgeagent/proto/b.py", back)
    assert violations(tmp_path) == ["cycle: edgeagent.proto.a → edgeagent.proto.b → edgeagent.proto.a"]


def write(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
