"""Numbers and strings of the WireGuard protocol (WireGuard paper, sections 5 and 6), times in seconds."""

from __future__ import annotations

# Noise_IKpsk2, paper 5.4
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"

KEY_SIZE = 32
TAG_SIZE = 16
MAC_SIZE = 16
COOKIE_SIZE = 16
COOKIE_NONCE_SIZE = 24

# Timers, paper 6.1
REKEY_AFTER_MESSAGES = 1 << 60
REJECT_AFTER_MESSAGES = (1 << 64) - (1 << 13) - 1
REKEY_AFTER_TIME_S = 120.0
REJECT_AFTER_TIME_S = 180.0
REKEY_ATTEMPT_TIME_S = 90.0
REKEY_TIMEOUT_S = 5.0
KEEPALIVE_TIMEOUT_S = 10.0
REKEY_TIMEOUT_JITTER_S = 0.334
HANDSHAKE_ATTEMPTS_MAX = int(REKEY_ATTEMPT_TIME_S / REKEY_TIMEOUT_S)
# The initiator renews on receive when what is left of the key would not survive a lost handshake (paper 6.2).
REKEY_ON_RECEIVE_AFTER_S = REJECT_AFTER_TIME_S - KEEPALIVE_TIMEOUT_S - REKEY_TIMEOUT_S
NEW_HANDSHAKE_AFTER_S = KEEPALIVE_TIMEOUT_S + REKEY_TIMEOUT_S
ZERO_KEYS_AFTER_S = 3 * REJECT_AFTER_TIME_S

# Where each device answers about names: never given to a device, never reached through the tunnel
NAME_SERVER = bytes((100, 100, 100, 100))

# Denial of service, paper 5.3 and 5.4.7
COOKIE_SECRET_MAX_AGE_S = 120.0
COOKIE_LATENCY_S = 5.0
INITIATION_SPACING_MIN_S = 0.020
INITIATION_REPEATED_S = 1.0  # where the way to a peer changes, a younger one is said again as it is
UNDER_LOAD_FOR_S = 1.0
HANDSHAKES_PER_SOURCE_PER_S = 20.0
HANDSHAKES_PER_SOURCE_BURST = 5.0

# Replay window, paper 5.4.6 and RFC 6479: 8,192 bits kept, of which one word is always being overwritten
REPLAY_WORD_BITS = 64
REPLAY_WORDS = 128
REPLAY_WINDOW = REPLAY_WORDS * REPLAY_WORD_BITS - REPLAY_WORD_BITS

PADDING_MULTIPLE = 16
MTU_DEFAULT = 1420
MTU_MAX = 65535
PERSISTENT_KEEPALIVE_MAX_S = 65535
