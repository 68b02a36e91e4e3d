"""What a board's file may say."""

from __future__ import annotations


class BoardError(Exception):
    """A board's file is not as it must be; the text names the file, the key, what is wrong and what is allowed."""
