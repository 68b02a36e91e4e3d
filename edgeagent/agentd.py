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
    """`--SETTING=VALUE …`, and `--control-fd=N` or `--token-fd=N`, or `--background=on`."""
    diet.begin()
    from edgeagent.config import ConfigError, load
    from edgeagent.daemon import RESTART, run

    given: dict[str, str | None] = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        given[name] = value
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
        if os.path.exists(f"{settings.state_dir}/slots/choice"):
            from edgeagent import slots

            kept = [word for word in arguments if not word.startswith(_ONCE)]
            slots.relaunch(kept + ["--background=on"] * (control_fd is not None or in_background))
        words = [word for word in sys.orig_argv[1:] if not word.startswith(_ONCE)]
        if control_fd is not None or in_background:
            words.append("--background=on")
        os.execv(sys.executable, [sys.executable, *words])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
