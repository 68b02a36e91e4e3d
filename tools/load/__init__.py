"""Many devices in one process, for loads on a hub: real enrolment, real sessions over TLS, no tunnel."""
