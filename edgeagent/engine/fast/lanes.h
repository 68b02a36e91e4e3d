/* The multi-buffer AEAD: what lanes.c, which deals out the work, asks of the kernels for one width of vector registers.
 *
 * ChaCha20 has a block in each 32-bit lane, whichever message it is of: full messages, small ones and the blocks of the one-time
 * keys all fill lanes alike, and only the last call of a batch may have idle ones. Poly1305 has a message in each 64-bit lane, or
 * for a message alone, a block (Goll and Gueron, "Vectorization of Poly1305 message authentication code", 2015). */
#ifndef EA_LANES_H
#define EA_LANES_H

#include "aead_impl.h"

#define EA_LANES_MAX 16 /* blocks that the widest kernel takes at once */
#define EA_GROUP 16     /* messages worked on together: 16 full ones stay in 32 KiB of L1 cache */

/* Blocks of key stream to be made: lane i, block[i] of the message with the counter nonce_low[i], nonce_high[i]; bytes[i] (1 to 64)
 * of it are added to from[i] and stored at to[i]. */
struct ea_blocks {
    uint32_t block[EA_LANES_MAX], nonce_low[EA_LANES_MAX], nonce_high[EA_LANES_MAX];
    const uint8_t *from[EA_LANES_MAX];
    uint8_t *to[EA_LANES_MAX];
    uint32_t bytes[EA_LANES_MAX];
} __attribute__((aligned(64)));

/* The tag of bytes of ciphertext under the one-time key r ‖ pad. 16 more bytes can be read behind the text. */
struct ea_tag_job {
    const uint8_t *text;
    uint32_t bytes;
    const uint8_t *key;
    uint8_t *tag;
};

struct ea_lanes_kernels {
    const char *name;
    const char *version;
    unsigned blocks_max;
    int (*here)(void); /* 1 when this CPU has the instructions */
    /* n ≤ blocks_max blocks; those behind n are overwritten. key: 8 words. */
    void (*blocks)(const uint32_t key[8], struct ea_blocks *blocks, unsigned n);
    /* n ≤ EA_GROUP jobs, the longest first. */
    void (*tags)(const struct ea_tag_job *jobs, unsigned n);
};

extern const struct ea_lanes_kernels ea_lanes_128, ea_lanes_256, ea_lanes_512;

/* Vector kernels are compiled for what the CPU may have, function by function. */
#ifdef __clang__
#define EA_TARGET_BEGIN(features)                                                                                          \
    EA_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define EA_TARGET_END _Pragma("clang attribute pop")
#else
#define EA_TARGET_BEGIN(features) _Pragma("GCC push_options") EA_PRAGMA(GCC target(features))
#define EA_TARGET_END _Pragma("GCC pop_options")
#endif
#define EA_PRAGMA(text) _Pragma(#text)
/* A loop over what must be registers: without optimisation beyond -O2, GCC would keep arrays of them in memory. */
#ifdef __clang__
#define EA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define EA_UNROLL _Pragma("GCC unroll 16")
#endif
#define EA_INLINE static inline __attribute__((always_inline))

#endif
