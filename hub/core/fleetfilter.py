"""The filter language of the devices table: words and `key:value` terms, all of which must hold; `-` before one negates it.

`is:online tag:camera -version:0.1.0 seen:>7d "front door"`. A value with blanks stands in quotes. What it finds is the
store's to say (hub/store/fleet.py); here is only what was meant.
"""

from __future__ import annotations

from dataclasses import dataclass

TEXT_MAX = 500
TERMS_MAX = 16
FLAGS = ("online", "offline", "pending", "active", "expired", "removed", "cloned")
TEXTS = ("name", "id", "user", "version", "ip")
AGES = ("seen", "joined", "expires")
FACTS = ("model", "os", "arch", "kernel", "site", "agent", "python")
KEYS = ("is", "tag", *TEXTS, *AGES, *FACTS)
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class FilterError(ValueError):
    """What is wrong with the term at `column` (from 1), and what could stand there."""

    def __init__(self, column: int, text: str) -> None:
        super().__init__(f"column {column}: {text}")
        self.column = column


@dataclass(slots=True, frozen=True)
class Term:
    """`key` is one of KEYS, `fact.NAME`, or "" for a word that may stand anywhere. For AGES, `value` is "<" or ">" and
    `seconds` the time; else `seconds` is 0."""

    key: str
    value: str  # in lower case
    negated: bool = False
    seconds: int = 0


def parse(text: str) -> tuple[Term, ...]:
    """Raises FilterError."""
    if len(text) > TEXT_MAX:
        raise FilterError(TEXT_MAX + 1, f"a filter has at most {TEXT_MAX} characters")
    terms = tuple(_term(column, word) for column, word in _split(text))
    if len(terms) > TERMS_MAX:
        raise FilterError(1, f"{len(terms)} terms; at most {TERMS_MAX} are looked at")
    return terms


def _split(text: str) -> list[tuple[int, str]]:
    """The words and where each begins; quotes hold blanks together and stay away."""
    words: list[tuple[int, str]] = []
    word, begin, quoted, open_at = "", 0, False, 0
    for at, char in enumerate(f"{text} ", 1):
        if char == '"':
            quoted, open_at, begin = not quoted, at, begin or at
        elif char.isspace() and not quoted:
            if word:
                words.append((begin, word))
            word, begin = "", 0
        else:
            word, begin = word + char, begin or at
    if quoted:
        raise FilterError(open_at, 'a quote that is not closed; write "front door"')
    return words


def _term(column: int, word: str) -> Term:
    negated = word.startswith("-") and len(word) > 1
    body = word[1:] if negated else word
    key, colon, value = body.partition(":")
    key, value = key.lower(), value.lower()
    if not colon or key not in KEYS and not key.startswith("fact."):
        if colon and key.isalpha():
            raise FilterError(column, f"{key}: is no key. There are {', '.join(KEYS)} and fact.NAME")
        return Term("", body.lower(), negated)
    if not value:
        raise FilterError(column, f"{key}: wants a value right behind the colon")
    if key == "is" and value not in FLAGS:
        raise FilterError(column, f"is:{value} is nothing a device can be: {', '.join(FLAGS)}")
    if key in AGES:
        return Term(key, value[0], negated, _seconds(column, key, value))
    return Term(key, value, negated)


def _seconds(column: int, key: str, value: str) -> int:
    sign, number, unit = value[0], value[1:-1], value[-1]
    if sign not in "<>" or not number.isdecimal() or unit not in _UNITS or len(number) > 6:
        raise FilterError(column, f"{key}:{value}: write < or >, a number and s, m, h, d or w, as in {key}:<7d")
    return int(number) * _UNITS[unit]
