#!/bin/sh
# What each start of the agent would compile otherwise, for the Python that is here now. Where there is no room, or it does
# not work, each start compiles.
home=$(dirname "$0")
exec /usr/bin/python3 -I -X no_debug_ranges -c 'import sys; sys.path.insert(0, sys.argv[1])
from edgeagent.bytecodejob import main; sys.exit(main(sys.argv[1:]))' "$home/edgeagent.pyz"
