/* The AEAD in scalar C: for machines without vector registers, and what every other provider is compared with. */
#include <stdio.h>

#include "poly1305.h"

#define ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define QUARTER(a, b, c, d)                                                                                                \
    a += b, d = ROTATE(d ^ a, 16), c += d, b = ROTATE(b ^ c, 12), a += b, d = ROTATE(d ^ a, 8), c += d, b = ROTATE(b ^ c, 7)

/* One block of key stream (RFC 8439, 2.3). */
static void chacha20_block(const uint32_t start[16], uint8_t out[64])
{
    uint32_t x[16];
    memcpy(x, start, sizeof x);
    for (int i = 0; i < 10; i++) {
        QUARTER(x[0], x[4], x[8], x[12]);
        QUARTER(x[1], x[5], x[9], x[13]);
        QUARTER(x[2], x[6], x[10], x[14]);
        QUARTER(x[3], x[7], x[11], x[15]);
        QUARTER(x[0], x[5], x[10], x[15]);
        QUARTER(x[1], x[6], x[11], x[12]);
        QUARTER(x[2], x[7], x[8], x[13]);
        QUARTER(x[3], x[4], x[9], x[14]);
    }
    for (int i = 0; i < 16; i++)
        ea_store32(out + 4 * i, x[i] + start[i]);
}

static void state_of(uint32_t state[16], const uint8_t key[32], uint64_t counter)
{
    state[0] = 0x61707865, state[1] = 0x3320646e, state[2] = 0x79622d32, state[3] = 0x6b206574;
    for (int i = 0; i < 8; i++)
        state[4 + i] = ea_load32(key + 4 * i);
    state[12] = state[13] = 0;
    state[14] = (uint32_t)counter;
    state[15] = (uint32_t)(counter >> 32);
}

static void add_key_stream(uint32_t state[16], uint8_t *text, uint32_t bytes)
{
    uint8_t stream[64];
    for (; bytes >= 64; bytes -= 64, text += 64) {
        state[12]++;
        chacha20_block(state, stream);
        for (int i = 0; i < 64; i += 8)
            ea_store64(text + i, ea_load64(text + i) ^ ea_load64(stream + i));
    }
    if (bytes) {
        state[12]++;
        chacha20_block(state, stream);
        for (uint32_t i = 0; i < bytes; i++)
            text[i] ^= stream[i];
    }
}

void ea_portable_seal_one(const uint8_t key[32], uint64_t counter, uint8_t *text, uint32_t bytes)
{
    uint32_t state[16];
    uint8_t once[64];
    state_of(state, key, counter);
    chacha20_block(state, once);
    add_key_stream(state, text, bytes);
    ea_poly_message(once, text, bytes, text + bytes);
    ea_wipe(once, sizeof once);
}

uint8_t ea_portable_open_one(const uint8_t key[32], uint64_t counter, uint8_t *text, uint32_t bytes)
{
    uint32_t state[16];
    uint8_t once[64], tag[EA_AEAD_TAG];
    state_of(state, key, counter);
    chacha20_block(state, once);
    ea_poly_message(once, text, bytes, tag);
    ea_wipe(once, sizeof once);
    uint8_t ok = ea_tags_equal(tag, text + bytes);
    if (ok)
        add_key_stream(state, text, bytes);
    return ok;
}

static void *start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static char none; /* there is no state, and NULL means failure */
    (void)name, (void)why, (void)why_bytes;
    snprintf(version, EA_AEAD_VERSION_BYTES, "scalar C, %u bit", (unsigned)(8 * sizeof(void *)));
    return &none;
}

static void stop(void *state)
{
    (void)state;
}

static void seal_batch(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                       unsigned n)
{
    (void)state;
    for (unsigned i = 0; i < n; i++)
        ea_portable_seal_one(key, first + i, text[i], bytes[i]);
}

static void open_batch(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                       const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    (void)state;
    for (unsigned i = 0; i < n; i++)
        ok[i] = ea_portable_open_one(key, counter[i], text[i], bytes[i]);
}

const struct ea_aead_ops ea_aead_portable = {start, stop, seal_batch, open_batch};
