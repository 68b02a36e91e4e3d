#!/bin/sh
# -P: nothing is imported from the directory at hand.
exec /usr/bin/python3 -P /usr/lib/edgeagent/edgeagent.pyz "$@"
