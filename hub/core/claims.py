"""Devices that ask to come in without a token, as OAuth's device flow has it (RFC 8628).

The device shows a code and a link; somebody who has signed in opens the link, looks at what the device says of itself,
and approves; the device, which asks again and again with a secret of its own, is then given a join token for one
device. From there on it joins as every device does, so the join protocol knows nothing of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

LIFE_S = 900
WAITING_MAX = 200
POLL_S = 3  # between two questions of a device
FACTS_MAX = 16
FACT_MAX = 128  # characters
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"  # consonants: no words, and none is taken for another (RFC 8628, section 6.1)

_CODE = re.compile(f"[{ALPHABET}]{{4}}-[{ALPHABET}]{{4}}")


class ClaimState(Enum):
    WAITING = "waiting"
    APPROVED = "approved"  # and its token waits to be fetched
    DENIED = "denied"
    FETCHED = "fetched"


@dataclass(slots=True)
class Claim:
    code: str  # as people see it: XXXX-XXXX
    secret_hash: bytes  # of what the device asks with
    address: str  # that it came from
    host: str
    created_s: int
    facts: dict[str, str] = field(default_factory=dict)
    state: ClaimState = ClaimState.WAITING
    token: str = ""  # only between approval and fetching

    def is_over(self, wall_s: int) -> bool:
        return wall_s >= self.created_s + LIFE_S


def make_code(entropy: Callable[[int], bytes]) -> str:
    """34 bits, which count for a quarter of an hour and only to those who have signed in."""
    number = int.from_bytes(entropy(16), "big")
    letters = ""
    for _ in range(8):
        number, index = divmod(number, len(ALPHABET))
        letters += ALPHABET[index]
    return f"{letters[:4]}-{letters[4:]}"


def tidy_code(text: str) -> str:
    """What somebody typed, in the form that is stored; empty for what is none."""
    letters = re.sub(r"[\s-]", "", text[:32]).upper()
    code = f"{letters[:4]}-{letters[4:]}"
    return code if _CODE.fullmatch(code) else ""


def clean_facts(facts: Mapping[str, str]) -> dict[str, str]:
    """What is shown of what a stranger says of itself: bounded, and printable."""
    kept = list(facts.items())[:FACTS_MAX]
    return {_clean(name)[:32]: _clean(value)[:FACT_MAX] for name, value in kept}


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
