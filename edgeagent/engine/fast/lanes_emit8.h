/* lanes_emit.h for vectors of 256 bits, on x86 with AVX2. To be included inside EA_TARGET_BEGIN. */
#ifndef EA_LANES_EMIT8_H
#define EA_LANES_EMIT8_H

#include "lanes_emit.h"

typedef uint32_t ea_v8 __attribute__((vector_size(32)));

EA_INLINE void ea_emit8_block(struct ea_blocks *blocks, unsigned lane, __m256i first, __m256i second)
{
    const uint8_t *from = blocks->from[lane];
    uint8_t *to = blocks->to[lane];
    if (__builtin_expect(blocks->bytes[lane] == 64, 1)) {
        first = _mm256_xor_si256(first, _mm256_loadu_si256((const __m256i *)(const void *)from));
        second = _mm256_xor_si256(second, _mm256_loadu_si256((const __m256i *)(const void *)(from + 32)));
        _mm256_storeu_si256((__m256i *)(void *)to, first);
        _mm256_storeu_si256((__m256i *)(void *)(to + 32), second);
        return;
    }
    uint8_t stream[64];
    memcpy(stream, &first, 32);
    memcpy(stream + 32, &second, 32);
    ea_emit_part(stream, from, to, blocks->bytes[lane]);
}

EA_INLINE void ea_emit8(struct ea_blocks *blocks, const ea_v8 x[16])
{
    __m256i quarter[4][4]; /* [c][i]: words 4i to 4i + 3 of the blocks c and c + 4 */
    EA_UNROLL
    for (int i = 0; i < 4; i++) {
        __m256i a = (__m256i)x[4 * i], b = (__m256i)x[4 * i + 1], c = (__m256i)x[4 * i + 2], d = (__m256i)x[4 * i + 3];
        __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
        __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
        quarter[0][i] = _mm256_unpacklo_epi64(ab_low, cd_low);
        quarter[1][i] = _mm256_unpackhi_epi64(ab_low, cd_low);
        quarter[2][i] = _mm256_unpacklo_epi64(ab_high, cd_high);
        quarter[3][i] = _mm256_unpackhi_epi64(ab_high, cd_high);
    }
    EA_UNROLL
    for (unsigned c = 0; c < 4; c++) {
        const __m256i *q = quarter[c];
        ea_emit8_block(blocks, c, _mm256_permute2x128_si256(q[0], q[1], 0x20), _mm256_permute2x128_si256(q[2], q[3], 0x20));
        ea_emit8_block(blocks, c + 4, _mm256_permute2x128_si256(q[0], q[1], 0x31),
                       _mm256_permute2x128_si256(q[2], q[3], 0x31));
    }
}

#endif
