/* From sixteen vectors of words, one for each word of the block, to bytes: the transposition in 128-bit lanes, and what is added
 * to where. */
#ifndef EA_LANES_EMIT_H
#define EA_LANES_EMIT_H

#include "lanes.h"

typedef uint32_t ea_v4 __attribute__((vector_size(16)));

/* Elements of a, then of b, by number. GCC before 12 has only its own form. */
#if defined(__clang__)
#define EA_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define EA_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (ea_v4){i, j, k, l})
#endif

/* Bytes of a block that is not whole. */
EA_INLINE void ea_emit_part(const uint8_t stream[64], const uint8_t *from, uint8_t *to, uint32_t bytes)
{
    uint32_t at = 0;
    for (; at + 8 <= bytes; at += 8)
        ea_store64(to + at, ea_load64(from + at) ^ ea_load64(stream + at));
    for (; at < bytes; at++)
        to[at] = from[at] ^ stream[at];
}

EA_INLINE ea_v4 ea_little_endian(ea_v4 words)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    words = (words & 0xff00ff00u) >> 8 | (words & 0x00ff00ffu) << 8;
    words = words >> 16 | words << 16;
#endif
    return words;
}

EA_INLINE void ea_emit4_block(struct ea_blocks *blocks, unsigned lane, const ea_v4 words[4])
{
    const uint8_t *from = blocks->from[lane];
    uint8_t *to = blocks->to[lane];
    ea_v4 text;
    if (__builtin_expect(blocks->bytes[lane] == 64, 1)) {
        EA_UNROLL
        for (int i = 0; i < 4; i++) {
            memcpy(&text, from + 16 * i, 16);
            text ^= words[i];
            memcpy(to + 16 * i, &text, 16);
        }
        return;
    }
    uint8_t stream[64];
    memcpy(stream, words, 64);
    ea_emit_part(stream, from, to, blocks->bytes[lane]);
}

EA_INLINE void ea_emit4(struct ea_blocks *blocks, const ea_v4 x[16])
{
    ea_v4 words[4][4]; /* by lane */
    EA_UNROLL
    for (int i = 0; i < 4; i++) {
        ea_v4 a = x[4 * i], b = x[4 * i + 1], c = x[4 * i + 2], d = x[4 * i + 3];
        ea_v4 ab_low = EA_SHUFFLE4(a, b, 0, 4, 1, 5), ab_high = EA_SHUFFLE4(a, b, 2, 6, 3, 7);
        ea_v4 cd_low = EA_SHUFFLE4(c, d, 0, 4, 1, 5), cd_high = EA_SHUFFLE4(c, d, 2, 6, 3, 7);
        words[0][i] = ea_little_endian(EA_SHUFFLE4(ab_low, cd_low, 0, 1, 4, 5));
        words[1][i] = ea_little_endian(EA_SHUFFLE4(ab_low, cd_low, 2, 3, 6, 7));
        words[2][i] = ea_little_endian(EA_SHUFFLE4(ab_high, cd_high, 0, 1, 4, 5));
        words[3][i] = ea_little_endian(EA_SHUFFLE4(ab_high, cd_high, 2, 3, 6, 7));
    }
    EA_UNROLL
    for (unsigned lane = 0; lane < 4; lane++)
        ea_emit4_block(blocks, lane, words[lane]);
}

#endif
