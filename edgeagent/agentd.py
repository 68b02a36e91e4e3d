"""What the background process and the service managers run: the agent without the command line around it.

`edgeagent up` and `edgeagent run` execute this file anew with settings that they have checked, because what argparse
and its kin leave behind in a process is 1 MiB that an agent would carry for months.
"""

from __future__ import annotations

import os
import sys

from edgeagent import diet

_ONCE = ("--control-fd=", "--token-fd=", "--background=")


def main(arguments: list[str]) -> int:
    """Where updates have filled slots, this is the launcher as well: it goes on as the agent of one, or stays the factory's.

    `--SETTING=VALUE …`, and `--control-fd=N` or `--token-fd=N`, or `--background=on`."""
    given: dict[str, str | None] = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        given[name] = value
    state_dir = given.get("state-dir")
    if "EDGEAGENT_SLOT" not in os.environ and os.path.exists(f"{state_dir}/slots/choice"):
        from edgeagent import slots

        slots.launch(arguments, str(state_dir), os.path.dirname(given.get("socket") or "/"))
    diet.begin()
    from edgeagent.config import ConfigError, load
    from edgeagent.daemon import RESTART, run

    control_fd, token_fd = given.pop("control-fd", None), given.pop("token-fd", None)
    in_background = given.pop("background", None) is not None
    try:
        settings = load(given)
    except ConfigError as error:
        print(f"edgeagent: {error}.", file=sys.stderr)
        return 2
    token = None
    if token_fd is not None:
        with open(int(token_fd), "rb") as pipe:
            token = pipe.read().decode("ascii", "replace")
    status = run(settings, token, None if control_fd is None else int(control_fd), in_background=in_background)
    if status == RESTART:
        again = [word for word in sys.orig_argv[1:] if not word.startswith(_ONCE)]
        if control_fd is not None or in_background:
            again.append("--background=on")
        if os.environ.pop("EDGEAGENT_SLOT", "factory") != "factory":
            from edgeagent import slots

            again = slots.factory_words(again)
        os.execv(sys.executable, [sys.executable, *again])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
