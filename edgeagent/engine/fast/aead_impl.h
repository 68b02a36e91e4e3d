/* What providers of the AEAD share among themselves. */
#ifndef EA_AEAD_IMPL_H
#define EA_AEAD_IMPL_H

#include <stdarg.h>
#include <string.h>

#include "aead.h"

#define EA_AEAD_VERSION_BYTES 96

struct ea_aead_ops {
    /* The provider's state, and `version` filled; NULL with the reason in `why`. */
    void *(*start)(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes);
    void (*stop)(void *state);
    void (*seal)(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                 unsigned n);
    void (*open)(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                 const uint32_t bytes[], unsigned n, uint8_t ok[]);
};

struct ea_aead {
    const struct ea_aead_ops *ops;
    void *state;
    const char *name;
    char version[EA_AEAD_VERSION_BYTES];
};

extern const struct ea_aead_ops ea_aead_lanes, ea_aead_portable, ea_aead_libcrypto, ea_aead_libgcrypt, ea_aead_libsodium,
    ea_aead_nettle, ea_aead_af_alg;

/* 0, or -1 with what went wrong in `why`. */
int ea_aead_known_answers(struct ea_aead *aead, char *why, size_t why_bytes);

void ea_aead_say(char *why, size_t why_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* One message by scalar C; what other providers fall back to when the system refuses them memory. */
void ea_portable_seal_one(const uint8_t key[32], uint64_t counter, uint8_t *text, uint32_t bytes);
uint8_t ea_portable_open_one(const uint8_t key[32], uint64_t counter, uint8_t *text, uint32_t bytes);

static inline uint32_t ea_load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
}

static inline uint64_t ea_load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static inline void ea_store32(uint8_t *at, uint32_t value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    memcpy(at, &value, 4);
}

static inline void ea_store64(uint8_t *at, uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    memcpy(at, &value, 8);
}

/* 1 when 16 bytes are equal; the time does not depend on them. */
static inline uint8_t ea_tags_equal(const uint8_t *a, const uint8_t *b)
{
    uint64_t difference = (ea_load64(a) ^ ea_load64(b)) | (ea_load64(a + 8) ^ ea_load64(b + 8));
    difference |= difference >> 32;
    return (uint8_t)(1 & (((difference & 0xffffffff) - 1) >> 32));
}

/* Zeroes that the compiler does not leave out. */
static inline void ea_wipe(void *at, size_t bytes)
{
    memset(at, 0, bytes);
    __asm__ volatile("" : : "r"(at) : "memory");
}

#endif
