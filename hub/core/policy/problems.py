"""What is wrong with a policy, and where: line and column of the text as it was written, both from 1."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_MAX = 50  # problems of one policy that are collected; more help nobody


@dataclass(slots=True, frozen=True, order=True)
class Problem:
    """One thing to mend or to know of; the text says what, why and what next."""

    line: int
    column: int
    text: str


class PolicyError(Exception):
    """A policy that is refused as a whole; `problems` in the order of the text."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        first = self.problems[0]
        super().__init__(f"{first.line}:{first.column}: {first.text}")


def excerpt(text: str, problem: Problem, width: int = 100) -> tuple[str, str]:
    """(the line that a problem is in, a line with a caret below its column); long lines are cut around the column."""
    lines = text.split("\n")
    line = lines[problem.line - 1].rstrip("\r") if problem.line <= len(lines) else ""
    start = max(0, problem.column - 1 - width // 2) if len(line) > width else 0
    shown = line[start : start + width]
    before = shown[: problem.column - 1 - start]
    printable = "".join(char if char.isprintable() or char == "\t" else "?" for char in shown)
    return printable, "".join(char if char == "\t" else " " for char in before) + "^"
