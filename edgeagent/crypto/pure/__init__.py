"""The pure Python provider. This directory runs unchanged under MicroPython: copy it there under any package name.

For that: relative imports, no `typing`, `dataclasses`, `enum` or `__future__`, byte orders given by position, and
nothing from the standard library but `hashlib.sha512` where it exists. tests/micropython proves it.

Nothing here is constant-time. Python integers take longer when they are larger, and X25519 and Ed25519 branch on secret
bits. Somebody who can measure this process well enough, on the device or beside it, can learn keys from it.
"""
