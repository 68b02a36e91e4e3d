"""The last log lines in memory, bounded, and one filter that no secret passes on its way to them or to stderr."""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import TextIO

LINE_CHARS_MAX = 512
SECRETS_MAX = 64
SECRET_CHARS_MIN = 8  # shorter ones would blank out innocent text
_TOKEN = re.compile(r"em1\.[A-Za-z0-9_-]{8,}")
_HIDDEN = "[hidden]"


class LogRing(logging.Handler):
    """Writes each record to `stream` (None: nowhere) and keeps the last `lines_max` lines.

    Secrets are kept out by not logging them. This is the second line: what looks like a join token, and every string
    given to `hide`, is replaced before a line is written or kept.
    """

    def __init__(self, lines_max: int, stream: TextIO | None) -> None:
        super().__init__()
        self._ring: deque[str] = deque(maxlen=lines_max)
        self._stream = stream
        self._secrets: list[str] = []
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))

    def hide(self, *secrets: str) -> None:
        """Never let these strings through. The oldest give way beyond SECRETS_MAX."""
        self._secrets.extend(secret for secret in secrets if len(secret) >= SECRET_CHARS_MIN)
        del self._secrets[:-SECRETS_MAX]

    def emit(self, record: logging.LogRecord) -> None:
        line = self.clean(self.format(record))
        self._ring.append(line)
        if self._stream is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # stderr was closed or its reader died: the ring still has the line
                self._stream = None

    def clean(self, text: str) -> str:
        """One line of printable text without secrets: what came from a peer cannot forge lines or move a cursor."""
        text = _TOKEN.sub(_HIDDEN, text)
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        if not text.isprintable():
            text = "".join(c if c.isprintable() else " | " if c == "\n" else "?" for c in text)
        return text if len(text) <= LINE_CHARS_MAX else text[: LINE_CHARS_MAX - 1] + "…"

    def lines(self, count: int | None = None) -> list[str]:
        """The newest `count` lines (all when None), oldest first."""
        lines = list(self._ring)
        return lines if count is None else lines[max(0, len(lines) - count) :]


def install(ring: LogRing, level: int = logging.INFO) -> logging.Logger:
    """The agent's logger, writing to `ring` and nowhere else."""
    logger = logging.getLogger("edgeagent")
    logger.handlers[:] = [ring]
    logger.setLevel(level)
    logger.propagate = False
    logging.raiseExceptions = False
    return logger
