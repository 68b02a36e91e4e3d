"""For which machine a program or a kernel is, against a board's ABI."""

from __future__ import annotations

import struct

# ABI without its libc -> (e_machine, 64-bit, big-endian), System V ABI and its processor supplements
MACHINES = {
    "x86-64": (62, True, False),
    "aarch64": (183, True, False),
    "armv7hf": (40, False, False),
    "armv6hf": (40, False, False),
    "mips": (8, False, True),
    "mipshf": (8, False, True),
    "mipsel": (8, False, False),
    "mipselhf": (8, False, False),
}
_NAMES = {3: "x86 (32 bits)", 8: "MIPS", 20: "PowerPC", 40: "ARM", 62: "x86-64", 183: "AArch64", 243: "RISC-V"}
_ARM_HARD_FLOAT = 0x400


def mismatch(program: bytes, abi: str) -> str:
    """Empty when an ELF program fits `abi` (as aarch64-glibc); else what it is, for a sentence: "is for …"."""
    machine, wide, big = MACHINES[abi.rsplit("-", 1)[0]]
    if len(program) < 52 or program[:4] != b"\x7fELF" or program[4] not in (1, 2) or program[5] not in (1, 2):
        return "is no ELF program"
    order = ">" if program[5] == 2 else "<"
    (found,) = struct.unpack_from(order + "H", program, 18)
    if (found, program[4] == 2, program[5] == 2) != (machine, wide, big):
        name = _NAMES.get(found, f"machine {found}")
        bits, end = 64 if program[4] == 2 else 32, "big" if program[5] == 2 else "little"
        return f"is for {name} ({bits} bits, {end}-endian)"
    if abi.startswith("armv"):
        (flags,) = struct.unpack_from(order + "I", program, 36)
        if flags >> 24 == 5 and not flags & _ARM_HARD_FLOAT:
            return "is for ARM with soft float (armel)"
    return ""


def kernel_machine(kernel: bytes) -> str:
    """aarch64 or arm of a Linux image of the Raspberry Pi's boot partition, also one packed by gzip; empty: unknown."""
    if kernel[56:60] == b"ARM\x64":  # Documentation/arch/arm64/booting.rst
        return "aarch64"
    if kernel[36:40] == b"\x18\x28\x6f\x01":  # zImage
        return "arm"
    return ""
