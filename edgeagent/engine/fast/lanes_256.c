/* Kernels for x86-64 with AVX2: 8 blocks of ChaCha20, 4 messages of Poly1305. */
#include "lanes.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "lanes_cpu.h"
#include "poly1305.h"

EA_TARGET_BEGIN("avx2")
#include "lanes_emit8.h"

/* Rotations by whole bytes are one shuffle. */
#define ROTATE_BYTES16 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13
#define ROTATE_BYTES8 3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14
#define SHIFTED(x, bits) ((x) << (bits) | (x) >> (32 - (bits)))

EA_INLINE ea_v4 rotate4(ea_v4 x, const int bits)
{
    if (bits == 16)
        return (ea_v4)_mm_shuffle_epi8((__m128i)x, _mm_setr_epi8(ROTATE_BYTES16));
    if (bits == 8)
        return (ea_v4)_mm_shuffle_epi8((__m128i)x, _mm_setr_epi8(ROTATE_BYTES8));
    return SHIFTED(x, bits);
}

EA_INLINE ea_v8 rotate8(ea_v8 x, const int bits)
{
    if (bits == 16)
        return (ea_v8)_mm256_shuffle_epi8((__m256i)x, _mm256_setr_epi8(ROTATE_BYTES16, ROTATE_BYTES16));
    if (bits == 8)
        return (ea_v8)_mm256_shuffle_epi8((__m256i)x, _mm256_setr_epi8(ROTATE_BYTES8, ROTATE_BYTES8));
    return SHIFTED(x, bits);
}

#define CHACHA(name) chacha4_##name
#define CHACHA_LANES 4
#define CHACHA_VECTOR ea_v4
#define CHACHA_ROTATE rotate4
#define CHACHA_EMIT ea_emit4
#include "lanes_chacha.h"

#define CHACHA(name) chacha8_##name
#define CHACHA_LANES 8
#define CHACHA_VECTOR ea_v8
#define CHACHA_ROTATE rotate8
#define CHACHA_EMIT ea_emit8
#include "lanes_chacha.h"

static void blocks_256(const uint32_t key[8], struct ea_blocks *blocks, unsigned n)
{
    if (n <= 4)
        chacha4_blocks(key, blocks);
    else
        chacha8_blocks(key, blocks);
}

typedef uint64_t poly4 __attribute__((vector_size(32)));

EA_INLINE void columns4(poly4 column[4], const uint8_t *const text[4], size_t at)
{
    __m256i row[4];
    EA_UNROLL
    for (int i = 0; i < 4; i++)
        row[i] = _mm256_loadu_si256((const __m256i *)(const void *)(text[i] + at));
    __m256i even01 = _mm256_unpacklo_epi64(row[0], row[1]), odd01 = _mm256_unpackhi_epi64(row[0], row[1]);
    __m256i even23 = _mm256_unpacklo_epi64(row[2], row[3]), odd23 = _mm256_unpackhi_epi64(row[2], row[3]);
    column[0] = (poly4)_mm256_permute2x128_si256(even01, even23, 0x20);
    column[1] = (poly4)_mm256_permute2x128_si256(odd01, odd23, 0x20);
    column[2] = (poly4)_mm256_permute2x128_si256(even01, even23, 0x31);
    column[3] = (poly4)_mm256_permute2x128_si256(odd01, odd23, 0x31);
}

#define POLY_LANES 4
#define POLY_VECTOR poly4
#define POLY_MULTIPLY(a, b) ((poly4)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define POLY_COLUMNS columns4
#define POLY_LOW64(a, b) ((poly4)_mm256_unpacklo_epi64((__m256i)(a), (__m256i)(b)))
#define POLY_HIGH64(a, b) ((poly4)_mm256_unpackhi_epi64((__m256i)(a), (__m256i)(b)))
#define POLY_ORDER {0, 2, 1, 3}
#define POLY_MESSAGE_COST 3
#include "lanes_poly26.h"
#include "lanes_poly.h"

EA_TARGET_END

static int here(void)
{
    return (ea_cpu_features() & EA_CPU_AVX2) != 0;
}

#else

static int here(void)
{
    return 0;
}

#define blocks_256 NULL
#define poly_tags NULL

#endif

const struct ea_lanes_kernels ea_lanes_256 = {"lanes-256", "8 lanes of 256 bits: AVX2", 8, here, blocks_256, poly_tags};
