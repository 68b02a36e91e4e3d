"""What a relay decides, without sockets, clocks or entropy of its own."""
