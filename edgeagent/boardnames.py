"""How the boards of boards/*.toml call themselves, for an agent that has no slice: a copy, which a test holds."""

from __future__ import annotations

# What the device tree, OpenWrt or the firmware says, with the machine behind it where several machines say the same.
NAMES = {
    "Standard PC (Q35 + ICH9, 2009)": "qemu-x86-64",
    "friendlyarm,nanopi-r2s": "nanopi-r2s",
    "glinet,gl-mt3000": "glinet-gl-mt3000",
    "glinet,gl-mt300n-v2": "glinet-gl-mt300n-v2",
    "linux,dummy-virt aarch64": "qemu-arm64",
    "linux,dummy-virt armv7l": "qemu-armhf",
    "mti,malta mipsel": "qemu-mipsel",
    "raspberrypi,3-model-b": "rpi-3b",
    "raspberrypi,4-compute-module": "rpi-cm4",
    "raspberrypi,4-model-b": "rpi-4b",
    "raspberrypi,5-model-b": "rpi-5",
    "raspberrypi,model-zero-2-w": "rpi-zero-2-w",
    "raspberrypi,model-zero-w": "rpi-zero-w",
    "teltonika,rut955": "teltonika-rut955",
}
# (system, machine) of boards that stand for a kind.
GENERIC = {
    ("debian", "aarch64"): "debian-arm64",
    ("debian", "armv7l"): "debian-armhf",
    ("debian", "x86_64"): "debian-x86-64",
    ("openwrt", "mipsel"): "openwrt-mipsel",
    ("openwrt", "x86_64"): "openwrt-x86-64",
}
