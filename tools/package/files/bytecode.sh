#!/bin/sh
# What each start of the agent would compile otherwise, for the Python that is here now; `anew` where the agent is another
# one. Without it: where there is none for this Python, as after an upgrade of Debian or in an image that was written on
# a machine without it. Where there is no room, or it does not work, each start compiles.
home=$(dirname "$0")
python=$(readlink -f /usr/bin/python3)
case ${python##*/} in
    python3.*) kept=edgeagent.cpython-3${python##*.}.pyz ;;
    *) exit 0 ;; # nobody says which one it is
esac
[ -w "$home" ] || exit 0
if [ "${1:-}" != anew ]; then
    # Of a Python that is not the system's any more. The agent runs by the one that is: this comes after its start.
    for other in "$home"/edgeagent.cpython-*.pyz; do
        if [ "$other" != "$home/$kept" ]; then rm -f "$other"; fi
    done
    if [ -e "$home/$kept" ]; then exit 0; fi
fi
exec "$python" -I -X no_debug_ranges -c 'import sys; sys.path.insert(0, sys.argv[1])
from edgeagent.bytecodejob import main; sys.exit(main(sys.argv[1:]))' "$home/edgeagent.pyz"
