/* Kernels for vectors of 128 bits, which the compiler makes for the machine that it compiles for: SSE2, NEON, or plain registers.
 * Poly1305 is scalar here, two messages in turns: two lanes of 26-bit limbs are no faster than one 64×64→128 multiplier. */
#include "lanes.h"
#include "lanes_emit.h"
#include "poly1305.h"

#define ROTATE_128(x, bits) ((x) << (bits) | (x) >> (32 - (bits)))

#define CHACHA(name) chacha4_##name
#define CHACHA_LANES 4
#define CHACHA_VECTOR ea_v4
#define CHACHA_ROTATE ROTATE_128
#define CHACHA_EMIT ea_emit4
#include "lanes_chacha.h"

#if defined(__x86_64__)

#include <tmmintrin.h>

#include "lanes_cpu.h"

EA_TARGET_BEGIN("ssse3")

/* Rotations by whole bytes are one shuffle. */
EA_INLINE ea_v4 rotate_ssse3(ea_v4 x, const int bits)
{
    if (bits == 16)
        return (ea_v4)_mm_shuffle_epi8((__m128i)x, _mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    if (bits == 8)
        return (ea_v4)_mm_shuffle_epi8((__m128i)x, _mm_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14));
    return ROTATE_128(x, bits);
}

#define CHACHA(name) chacha4_ssse3_##name
#define CHACHA_LANES 4
#define CHACHA_VECTOR ea_v4
#define CHACHA_ROTATE rotate_ssse3
#define CHACHA_EMIT ea_emit4
#include "lanes_chacha.h"

EA_TARGET_END

static int has_ssse3; /* as `here` has found it, for all threads alike */

static int here(void)
{
    __atomic_store_n(&has_ssse3, (ea_cpu_features() & EA_CPU_SSSE3) != 0, __ATOMIC_RELAXED);
    return 1;
}

static void blocks_128(const uint32_t key[8], struct ea_blocks *blocks, unsigned n)
{
    (void)n; /* the idle lanes cost nothing */
    if (__atomic_load_n(&has_ssse3, __ATOMIC_RELAXED))
        chacha4_ssse3_blocks(key, blocks);
    else
        chacha4_blocks(key, blocks);
}

#else

static int here(void)
{
    return 1;
}

static void blocks_128(const uint32_t key[8], struct ea_blocks *blocks, unsigned n)
{
    (void)n;
    chacha4_blocks(key, blocks);
}

#endif

static void tags_128(const struct ea_tag_job *jobs, unsigned n)
{
    unsigned i = 0;
#ifdef __SIZEOF_INT128__
    /* A block has to wait for the one before; the other message's need not. */
    for (; i + 1 < n; i += 2) {
        const struct ea_tag_job *a = &jobs[i], *b = &jobs[i + 1];
        struct ea_poly first, second;
        uint32_t done = 0;
        ea_poly_start(&first, a->key);
        ea_poly_start(&second, b->key);
        for (; b->bytes - done >= 16; done += 16) {
            ea_poly_block(&first, ea_load64(a->text + done), ea_load64(a->text + done + 8));
            ea_poly_block(&second, ea_load64(b->text + done), ea_load64(b->text + done + 8));
        }
        ea_poly_rest(&first, a->key, a->text, a->bytes, done, a->tag);
        ea_poly_rest(&second, b->key, b->text, b->bytes, done, b->tag);
    }
#endif
    for (; i < n; i++)
        ea_poly_message(jobs[i].key, jobs[i].text, jobs[i].bytes, jobs[i].tag);
}

const struct ea_lanes_kernels ea_lanes_128 = {"lanes-128", "4 lanes of 128 bits", 4, here, blocks_128, tags_128};
