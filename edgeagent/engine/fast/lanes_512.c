/* Kernels for x86-64 with AVX-512: 16 blocks of ChaCha20, 8 messages of Poly1305 by IFMA. */
#include "lanes.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "lanes_cpu.h"
#include "poly1305.h"

EA_TARGET_BEGIN("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")
#include "lanes_emit8.h"

typedef uint32_t ea_v16 __attribute__((vector_size(64)));

#define ROTATE_4(x, bits) ((ea_v4)_mm_rol_epi32((__m128i)(x), bits))
#define ROTATE_8(x, bits) ((ea_v8)_mm256_rol_epi32((__m256i)(x), bits))
#define ROTATE_16(x, bits) ((ea_v16)_mm512_rol_epi32((__m512i)(x), bits))

/* Four vectors of four 128-bit parts: part p of vector v becomes part v of vector p. */
EA_INLINE void transpose_parts(__m512i v[4])
{
    __m512i low01 = _mm512_shuffle_i64x2(v[0], v[1], 0x44), high01 = _mm512_shuffle_i64x2(v[0], v[1], 0xee);
    __m512i low23 = _mm512_shuffle_i64x2(v[2], v[3], 0x44), high23 = _mm512_shuffle_i64x2(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i64x2(low01, low23, 0x88);
    v[1] = _mm512_shuffle_i64x2(low01, low23, 0xdd);
    v[2] = _mm512_shuffle_i64x2(high01, high23, 0x88);
    v[3] = _mm512_shuffle_i64x2(high01, high23, 0xdd);
}

EA_INLINE void emit16(struct ea_blocks *blocks, const ea_v16 x[16])
{
    __m512i quarter[4][4]; /* [c][i]: words 4i to 4i + 3 of the blocks c, c + 4, c + 8, c + 12 */
    EA_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i a = (__m512i)x[4 * i], b = (__m512i)x[4 * i + 1], c = (__m512i)x[4 * i + 2], d = (__m512i)x[4 * i + 3];
        __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
        __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
        quarter[0][i] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quarter[1][i] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quarter[2][i] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quarter[3][i] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    EA_UNROLL
    for (unsigned c = 0; c < 4; c++) {
        transpose_parts(quarter[c]);
        EA_UNROLL
        for (unsigned part = 0; part < 4; part++) {
            unsigned lane = c + 4 * part;
            __mmask64 bytes = _bzhi_u64(UINT64_MAX, blocks->bytes[lane]);
            __m512i text = _mm512_maskz_loadu_epi8(bytes, blocks->from[lane]);
            _mm512_mask_storeu_epi8(blocks->to[lane], bytes, _mm512_xor_si512(text, quarter[c][part]));
        }
    }
}

#define CHACHA(name) chacha4_##name
#define CHACHA_LANES 4
#define CHACHA_VECTOR ea_v4
#define CHACHA_ROTATE ROTATE_4
#define CHACHA_EMIT ea_emit4
#include "lanes_chacha.h"

#define CHACHA(name) chacha8_##name
#define CHACHA_LANES 8
#define CHACHA_VECTOR ea_v8
#define CHACHA_ROTATE ROTATE_8
#define CHACHA_EMIT ea_emit8
#include "lanes_chacha.h"

#define CHACHA(name) chacha16_##name
#define CHACHA_LANES 16
#define CHACHA_VECTOR ea_v16
#define CHACHA_ROTATE ROTATE_16
#define CHACHA_EMIT emit16
#include "lanes_chacha.h"

static void blocks_512(const uint32_t key[8], struct ea_blocks *blocks, unsigned n)
{
    if (n <= 4)
        chacha4_blocks(key, blocks);
    else if (n <= 8)
        chacha8_blocks(key, blocks);
    else
        chacha16_blocks(key, blocks);
}

typedef uint64_t poly8 __attribute__((vector_size(64)));

EA_INLINE void columns8(poly8 column[8], const uint8_t *const text[8], size_t at)
{
    __m512i even[4], odd[4];
    EA_UNROLL
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_loadu_si512(text[2 * i] + at), b = _mm512_loadu_si512(text[2 * i + 1] + at);
        even[i] = _mm512_unpacklo_epi64(a, b);
        odd[i] = _mm512_unpackhi_epi64(a, b);
    }
    transpose_parts(even);
    transpose_parts(odd);
    EA_UNROLL
    for (int i = 0; i < 4; i++) {
        column[2 * i] = (poly8)even[i];
        column[2 * i + 1] = (poly8)odd[i];
    }
}

#define POLY_LANES 8
#define POLY_VECTOR poly8
#define POLY_LOW(sum, a, b) ((poly8)_mm512_madd52lo_epu64((__m512i)(sum), (__m512i)(a), (__m512i)(b)))
#define POLY_HIGH(sum, a, b) ((poly8)_mm512_madd52hi_epu64((__m512i)(sum), (__m512i)(a), (__m512i)(b)))
#define POLY_COLUMNS columns8
#define POLY_LOW64(a, b) ((poly8)_mm512_unpacklo_epi64((__m512i)(a), (__m512i)(b)))
#define POLY_HIGH64(a, b) ((poly8)_mm512_unpackhi_epi64((__m512i)(a), (__m512i)(b)))
#define POLY_ORDER {0, 4, 1, 5, 2, 6, 3, 7}
#define POLY_MESSAGE_COST 3
#include "lanes_poly44.h"
#include "lanes_poly.h"

EA_TARGET_END

static int here(void)
{
    return (ea_cpu_features() & EA_CPU_AVX512) != 0;
}

#else

static int here(void)
{
    return 0;
}

#define blocks_512 NULL
#define poly_tags NULL

#endif

const struct ea_lanes_kernels ea_lanes_512 = {
    "lanes-512", "16 lanes of 512 bits: AVX-512 with IFMA", 16, here, blocks_512, poly_tags};
