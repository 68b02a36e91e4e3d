"""What developers run; no part of the agent."""

from pathlib import Path

# Object files of the C library, for whoever builds it here: tests, tools and `./dev`, which removes them with `clean`.
OBJECTS = Path(__file__).parents[1] / "build" / "objects"
