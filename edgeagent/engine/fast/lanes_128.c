/* Kernels for vectors of 128 bits, which the compiler makes for the machine that it compiles for: SSE2, NEON, or plain registers.
 * Poly1305 is scalar here: two lanes of 26-bit limbs are no faster than one 64×64→128 multiplier. */
#include "lanes.h"
#include "lanes_emit.h"
#include "poly1305.h"

static int here(void)
{
    return 1;
}

#define ROTATE_128(x, bits) ((x) << (bits) | (x) >> (32 - (bits)))

#define CHACHA(name) chacha4_##name
#define CHACHA_LANES 4
#define CHACHA_VECTOR ea_v4
#define CHACHA_ROTATE ROTATE_128
#define CHACHA_EMIT ea_emit4
#include "lanes_chacha.h"

static void blocks_128(const uint32_t key[8], struct ea_blocks *blocks, unsigned n)
{
    (void)n; /* the idle lanes cost nothing */
    chacha4_blocks(key, blocks);
}

static void tags_128(const struct ea_tag_job *jobs, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        ea_poly_message(jobs[i].key, jobs[i].text, jobs[i].bytes, jobs[i].tag);
}

const struct ea_lanes_kernels ea_lanes_128 = {"lanes-128", "4 lanes of 128 bits", 4, here, blocks_128, tags_128};
