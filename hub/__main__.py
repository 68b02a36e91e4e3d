"""`python -m hub` is `edgehub`."""

from hub.cli import main

main()
