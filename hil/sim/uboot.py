"""U-Boot's prompt, as far as rigs speak to it: environment, a few commands, `boot`. Pure: text in, text out."""

from __future__ import annotations

import re
import shlex

VERSION = "U-Boot 2025.01 (edgehil, a simulated board)"
PROMPT = "=> "
LINE_CHARS_MAX = 1_024
VARIABLES_MAX = 64
BOOT, RESET = "boot", "reset"

_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
_HELP = "boot echo help mmc printenv reset run setenv version"


class Prompt:
    """Lines are typed into it with `feed`; `wish` is BOOT or RESET once one of them has asked for that."""

    def __init__(self, environment: dict[str, str], card_bytes: int) -> None:
        self.environment = environment
        self.wish = ""
        self._card_bytes = card_bytes
        self._line = ""
        self._status = 0

    def feed(self, typed: str) -> str:
        """What it says to what is typed, echo and next prompt included."""
        said = ""
        for character in typed:
            if self.wish:
                break
            if character in "\r\n":
                said += "\r\n" + self._run(self._line)
                self._line = ""
                said += "" if self.wish else PROMPT
            elif character in "\b\x7f":
                said += "\b \b" if self._line else ""
                self._line = self._line[:-1]
            elif character == "\x03":
                said += f"<INTERRUPT>\r\n{PROMPT}"
                self._line = ""
            elif character.isprintable() and len(self._line) < LINE_CHARS_MAX:
                said += character
                self._line += character
        return said

    def _run(self, line: str) -> str:
        said = ""
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
            lexer.whitespace_split = True
            lexer.commenters = ""
            words = list(lexer)
        except ValueError:
            return "syntax error\r\n"
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) != {";"}:
                command.append(word.replace("$?", str(self._status)))
            elif command and not self.wish:
                said += "".join(f"{line}\r\n" for line in self._do(*command))
                command = []
        return said

    def _do(self, verb: str, *words: str) -> list[str]:
        self._status = 0
        if verb == "printenv":
            if not words:
                return [f"{name}={value}" for name, value in sorted(self.environment.items())]
            missing = [name for name in words if name not in self.environment]
            self._status = int(bool(missing))
            return [
                f'## Error: "{name}" not defined' if name in missing else f"{name}={self.environment[name]}"
                for name in words
            ]
        if verb == "setenv" and words and _NAME.fullmatch(words[0]):
            if len(words) == 1:
                self.environment.pop(words[0], None)
            elif len(self.environment) < VARIABLES_MAX:
                self.environment[words[0]] = " ".join(words[1:])
            return []
        if verb == "boot" or (verb == "run" and words == ("bootcmd",)):
            self.wish = BOOT
            return []
        if verb == "reset":
            self.wish = RESET
            return ["resetting ..."]
        if verb == "mmc" and words == ("info",):
            if not self._card_bytes:
                self._status = 1
                return ["Card did not respond to voltage select! : -110"]
            return ["Device: mmc@0", f"Capacity: {self._card_bytes / 2**20:.1f} MiB"]
        if verb == "echo":
            return [" ".join(words)]
        if verb == "version":
            return [VERSION]
        if verb == "help":
            return _HELP.split()
        self._status = 1
        return [f"Unknown command '{verb}' - try 'help'"]
