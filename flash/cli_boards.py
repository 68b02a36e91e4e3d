"""`edgeflash boards`: what is known of boards."""

from __future__ import annotations

import argparse
from typing import Any

from boards import catalogue


def add(verbs: Any) -> None:
    text = "the boards that are known, all that is known of one, or whether a board's file is right"
    boards = verbs.add_parser("boards", help=text, description=text, allow_abbrev=False)
    actions = boards.add_subparsers(title="actions", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="the boards", description="the boards that are known", allow_abbrev=False)
    listed.set_defaults(run=_list)


def _list(_options: argparse.Namespace) -> int:
    print("\n".join(catalogue.ids()))
    return 0
