"""Guests from Debian's packages: a kernel, an initrd and a root file system each, made without root's rights."""
