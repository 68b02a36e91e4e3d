"""Simulated boards: a serial port, a switched power supply and a card, behind which a real agent runs."""
