"""Simulated boards with their power strip, and the rig file that describes them: what `edgehil sim` runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from hil.errors import HilError
from hil.sim.board import Board
from hil.sim.pdu import Pdu

BOARDS_MAX = 8
RIG, TOKEN = "rig.yaml", "pdu.authorization"
NATS = ("port", "full", "symmetric")
_HEAD = """\
# Made by `edgehil sim`, and gone when that ends.
imports:
- hil.labgrid_ext
targets:
"""
_TARGET = """\
  {name}:
    resources:
      RawSerialPort: {{port: {port}, speed: 115200}}
      HTTPPowerPort:
        url: "{url}/outlet/{{outlet}}/{{state}}"
        state_url: "{url}/outlet/{{outlet}}"
        state_pattern: '"on": true'
        outlet: {name}
        authorization_file: {token}
      CardFile: {{path: {name}.card, size_mb: {size_mb}}}
      SwitchPort: {{path: {name}.cable, nat: {nat}}}
    drivers:
      SerialDriver: {{}}
      HTTPPowerDriver: {{delay: 0.2}}
      CardFileDriver: {{}}
      UBootDriver: {{prompt: "=> "}}
      ShellDriver:
        prompt: 'root@[\\w-]+:~# '
        login_prompt: '[\\w-]+ login: '
        username: root
      BoardStrategy: {{}}
    options:
      board: {board}
      image: {image}
      init: direct
      agent: {agent}
"""


class Lab:
    """`folder` gets the rig file, cards and what the boards hold. Runs until `close`."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        board: str,
        image: Path,
        agent: Path,
        size_mb: int = 256,
        tick_s: float = 1.0,
    ) -> None:
        if not 1 <= len(names) <= BOARDS_MAX or len(set(names)) != len(names):
            raise HilError(f"{len(names)} boards; from 1 to {BOARDS_MAX} of different names are wanted")
        folder.mkdir(parents=True, exist_ok=True)
        self.rig = folder / RIG
        self.boards = {
            name: Board(name, folder / f"{name}.board", folder / f"{name}.card", folder / f"{name}.cable", tick_s)
            for name in names
        }
        authorization = f"Bearer {secrets.token_urlsafe(18)}"
        token = folder / TOKEN
        token.touch(mode=0o600)
        token.write_text(authorization + "\n", encoding="ascii")
        self.pdu = Pdu(self.boards, authorization)
        part = self.rig.with_suffix(".part")  # a rig file that is there is whole
        text = _HEAD
        for number, (name, each) in enumerate(self.boards.items()):
            text += _TARGET.format(
                name=name,
                port=each.port,
                url=self.pdu.url,
                token=TOKEN,
                size_mb=size_mb,
                nat=NATS[number % len(NATS)],
                board=board,
                image=image.resolve(),
                agent=agent.resolve(),
            )
        part.write_text(text, encoding="utf-8")
        part.rename(self.rig)

    def close(self) -> None:
        self.rig.unlink(missing_ok=True)
        self.pdu.close()
        for board in self.boards.values():
            board.close()
