"""Builds what devices install: .deb, .ipk and .apk packages and one self-contained zipapp of the lean agent.

`contents` makes the zipapp, `imports` finds what of Python's library it wants, `targets` is the table of machines,
`nfpm` writes packages around it.
"""
