"""Rigs: which devices there are, how each is powered, spoken to and written, and how it comes from off to online."""
