"""Rigs: the whole thing on emulated machines. The agent is a black box here, seen by its commands and by packets."""
