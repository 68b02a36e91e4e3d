/* The multi-buffer AEAD: takes a batch apart into lanes' work, and puts it together again. */
#include "lanes.h"

#include <stdio.h>
#include <stdlib.h>

static const struct ea_lanes_kernels *const KERNELS[] = {&ea_lanes_512, &ea_lanes_256, &ea_lanes_128};
#define KERNEL_COUNT (sizeof KERNELS / sizeof KERNELS[0])

static const uint8_t ZEROES[64];

struct lanes {
    struct ea_blocks blocks;
    const struct ea_lanes_kernels *kernels;
    unsigned pending; /* lanes of `blocks` that are taken */
    uint32_t key[8];
    uint8_t once[EA_GROUP][64];            /* the one-time keys: 32 bytes of a message's block 0 */
    uint8_t tag[EA_GROUP][EA_AEAD_TAG];    /* what tags should be */
    uint8_t ahead[EA_LANES_MAX][64];       /* key stream made before its message is known to be good */
    uint8_t sink[64];                      /* what idle lanes make */
    uint8_t order[EA_AEAD_BATCH_MAX];      /* message numbers, the longest first */
    struct ea_tag_job jobs[EA_GROUP];
} __attribute__((aligned(64)));

static void *lanes_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    const struct ea_lanes_kernels *kernels = NULL;
    for (size_t k = 0; k < KERNEL_COUNT && kernels == NULL; k++)
        if ((strcmp(name, "lanes") == 0 || strcmp(name, KERNELS[k]->name) == 0) && KERNELS[k]->here())
            kernels = KERNELS[k];
    if (kernels == NULL) {
        ea_aead_say(why, why_bytes, "this CPU has no such vector registers");
        return NULL;
    }
    struct lanes *lanes = aligned_alloc(64, sizeof *lanes);
    if (lanes == NULL) {
        ea_aead_say(why, why_bytes, "out of memory");
        return NULL;
    }
    memset(lanes, 0, sizeof *lanes);
    lanes->kernels = kernels;
    snprintf(version, EA_AEAD_VERSION_BYTES, "%s", kernels->version);
    return lanes;
}

static void lanes_stop(void *state)
{
    ea_wipe(state, sizeof(struct lanes));
    free(state);
}

static void set_key(struct lanes *lanes, const uint8_t key[32])
{
    for (int i = 0; i < 8; i++)
        lanes->key[i] = ea_load32(key + 4 * i);
}

static void flush(struct lanes *lanes)
{
    unsigned n = lanes->pending;
    if (n == 0)
        return;
    for (unsigned lane = n; lane < lanes->kernels->blocks_max; lane++) { /* idle lanes write, too */
        lanes->blocks.from[lane] = ZEROES;
        lanes->blocks.to[lane] = lanes->sink;
        lanes->blocks.bytes[lane] = 64;
    }
    lanes->kernels->blocks(lanes->key, &lanes->blocks, n);
    lanes->pending = 0;
}

static inline void push(struct lanes *lanes, uint32_t block, uint64_t counter, const uint8_t *from, uint8_t *to, uint32_t bytes)
{
    struct ea_blocks *blocks = &lanes->blocks;
    unsigned lane = lanes->pending++;
    blocks->block[lane] = block;
    blocks->nonce_low[lane] = (uint32_t)counter;
    blocks->nonce_high[lane] = (uint32_t)(counter >> 32);
    blocks->from[lane] = from;
    blocks->to[lane] = to;
    blocks->bytes[lane] = bytes;
    if (lanes->pending == lanes->kernels->blocks_max)
        flush(lanes);
}

/* A message's blocks of text, of which the first `skip` have been done. */
static inline void push_text(struct lanes *lanes, uint64_t counter, uint8_t *text, uint32_t bytes, uint32_t skip)
{
    for (uint32_t at = skip * 64; at < bytes; at += 64)
        push(lanes, at / 64 + 1, counter, text + at, text + at, bytes - at < 64 ? bytes - at : 64);
}

/* Longest first, so that messages that share a vector have about the same number of blocks. */
static void sort(struct lanes *lanes, const uint32_t bytes[], unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        unsigned at = i;
        for (; at > 0 && bytes[lanes->order[at - 1]] < bytes[i]; at--)
            lanes->order[at] = lanes->order[at - 1];
        lanes->order[at] = (uint8_t)i;
    }
}

static void lanes_seal(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                       unsigned n)
{
    struct lanes *lanes = state;
    set_key(lanes, key);
    sort(lanes, bytes, n);
    for (unsigned done = 0; done < n; done += EA_GROUP) {
        unsigned group = n - done < EA_GROUP ? n - done : EA_GROUP;
        for (unsigned g = 0; g < group; g++) {
            unsigned i = lanes->order[done + g];
            lanes->jobs[g] = (struct ea_tag_job){text[i], bytes[i], lanes->once[g], text[i] + bytes[i]};
            push(lanes, 0, first + i, ZEROES, lanes->once[g], 64);
        }
        for (unsigned g = 0; g < group; g++) {
            unsigned i = lanes->order[done + g];
            push_text(lanes, first + i, text[i], bytes[i], 0);
        }
        flush(lanes);
        lanes->kernels->tags(lanes->jobs, group);
    }
    ea_wipe(lanes->once, sizeof lanes->once);
    ea_wipe(lanes->key, sizeof lanes->key);
}

/* Key stream is made before the tags are checked only where lanes would idle otherwise: for the first messages' first blocks. */
static unsigned push_ahead(struct lanes *lanes, const uint64_t counter[], const uint32_t bytes[], const uint8_t *order,
                           unsigned group, uint32_t ahead[EA_GROUP])
{
    unsigned used = 0;
    for (unsigned g = 0; g < group; g++) {
        uint32_t blocks = (bytes[order[g]] + 63) / 64;
        for (ahead[g] = 0; ahead[g] < blocks && lanes->pending > 0; used++)
            push(lanes, ++ahead[g], counter[order[g]], ZEROES, lanes->ahead[used], 64);
    }
    return used;
}

static void add_ahead(const uint8_t stream[64], uint8_t *text, uint32_t bytes)
{
    if (bytes >= 64) {
        for (int i = 0; i < 64; i += 8)
            ea_store64(text + i, ea_load64(text + i) ^ ea_load64(stream + i));
        return;
    }
    for (uint32_t i = 0; i < bytes; i++)
        text[i] ^= stream[i];
}

static void lanes_open(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                       const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    struct lanes *lanes = state;
    uint32_t ahead[EA_GROUP];
    set_key(lanes, key);
    sort(lanes, bytes, n);
    for (unsigned done = 0; done < n; done += EA_GROUP) {
        unsigned group = n - done < EA_GROUP ? n - done : EA_GROUP;
        const uint8_t *order = lanes->order + done;
        for (unsigned g = 0; g < group; g++) {
            unsigned i = order[g];
            lanes->jobs[g] = (struct ea_tag_job){text[i], bytes[i], lanes->once[g], lanes->tag[g]};
            push(lanes, 0, counter[i], ZEROES, lanes->once[g], 64);
        }
        unsigned used = push_ahead(lanes, counter, bytes, order, group, ahead);
        flush(lanes);
        lanes->kernels->tags(lanes->jobs, group);
        unsigned stream = 0;
        for (unsigned g = 0; g < group; g++) {
            unsigned i = order[g];
            ok[i] = ea_tags_equal(lanes->tag[g], text[i] + bytes[i]);
            for (uint32_t b = 0; b < ahead[g]; b++, stream++)
                if (ok[i])
                    add_ahead(lanes->ahead[stream], text[i] + b * 64, bytes[i] - b * 64);
            if (ok[i])
                push_text(lanes, counter[i], text[i], bytes[i], ahead[g]);
        }
        flush(lanes);
        ea_wipe(lanes->ahead, used * sizeof lanes->ahead[0]);
    }
    ea_wipe(lanes->once, sizeof lanes->once);
    ea_wipe(lanes->key, sizeof lanes->key);
}

const struct ea_aead_ops ea_aead_lanes = {lanes_start, lanes_stop, lanes_seal, lanes_open};
