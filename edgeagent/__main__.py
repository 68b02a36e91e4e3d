"""`python -m edgeagent` is the command `edgeagent`."""

import sys

from edgeagent.cli import main

sys.exit(main())
