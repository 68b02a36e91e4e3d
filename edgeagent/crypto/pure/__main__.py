"""`python -m edgeagent.crypto.pure`: the known-answer test of the pure provider on this interpreter."""

from .provider import self_test

self_test()
print("pure crypto: all known answers are right")
