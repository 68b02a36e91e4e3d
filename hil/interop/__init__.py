"""WireGuard as others have it: the kernel's in a guest, and `edge-wireguard` in the host's place of the network."""
