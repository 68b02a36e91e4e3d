"""Protocol machines without input or output: `now`, entropy and jitter are arguments, sockets belong to others.

Every machine is driven the same way: `handle_…(now, …)`, `poll_timeout()`, `handle_timeout(now)`, and after each
of them the `drain_…()` methods. Nothing in this package reads a clock, a random source, a socket or a file.
"""
