"""The deterministic simulator: the production machines of agent and hub, on one heap of virtual time and one seed.

`world` (time, dice, trace) · `net` (IP for datagrams) · `stream`, `broker` (MQTT) · `flash` (what survives) · `tunnel`
(a bare WireGuard machine) · `device`, `hub` (a process each) · `traffic` (the oracle of packets) · `audit` (the oracle
of messages) · `mesh` (all of it, with invariants: begin there) · `chaos` (random disturbances) · `figure` (the cost).
"""
