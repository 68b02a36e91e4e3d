/* The kernels of the AEAD against arithmetic that is too simple to be wrong, at the edges of 2^130 - 5: one-time keys and texts
 * here are made of bytes that ChaCha20 would give once in the life of the universe. Then the AEAD's own self-test. */
#include <stdio.h>

#include "lanes.h"

#define TEXT_BYTES 700
#define ROUNDS 400

static uint32_t seed = 1;

static uint32_t pick(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)seed * below >> 32);
}

/* h = h·r mod 2^130 - 5, all of them 17 bytes, little-endian. */
static void multiply(uint32_t h[17], const uint32_t r[17])
{
    uint32_t product[34] = {0};
    for (unsigned i = 0; i < 17; i++)
        for (unsigned j = 0; j < 17; j++)
            product[i + j] += h[i] * r[j];
    for (unsigned i = 0; i < 17; i++) /* 2^136 is 320 */
        h[i] = product[i] + 320 * product[i + 17];
    for (unsigned round = 0; round < 3; round++) {
        uint32_t carry = 0;
        for (unsigned i = 0; i < 16; i++) {
            carry += h[i];
            h[i] = carry & 255;
            carry >>= 8;
        }
        carry += h[16];
        h[16] = carry & 3;
        h[0] += 5 * (carry >> 2);
    }
}

static void add_block(uint32_t h[17], const uint8_t block[16], const uint32_t r[17])
{
    for (unsigned i = 0; i < 16; i++)
        h[i] += block[i];
    h[16] += 1;
    multiply(h, r);
}

static void reference(const struct ea_tag_job *job, uint8_t tag[16])
{
    uint32_t r[17] = {0}, h[17] = {0};
    uint8_t block[16];
    for (unsigned i = 0; i < 16; i++)
        r[i] = job->key[i] & (i % 4 == 3 ? 15u : i % 4 == 0 && i ? 252u : 255u);
    for (uint32_t at = 0; at < job->bytes; at += 16) {
        uint32_t left = job->bytes - at < 16 ? job->bytes - at : 16;
        memset(block, 0, sizeof block);
        memcpy(block, job->text + at, left);
        add_block(h, block, r);
    }
    memset(block, 0, sizeof block);
    for (unsigned i = 0; i < 4; i++)
        block[8 + i] = (uint8_t)(job->bytes >> 8 * i);
    add_block(h, block, r);
    for (unsigned round = 0; round < 2; round++) { /* carries that the last multiplication left */
        uint32_t carry = 0;
        for (unsigned i = 0; i < 17; i++) {
            carry += h[i];
            h[i] = carry & (i < 16 ? 255 : 3);
            carry = i < 16 ? carry >> 8 : carry >> 2;
        }
        h[0] += 5 * carry;
    }
    int above = h[16] == 3 && h[0] >= 0xfb;
    for (unsigned i = 1; i < 16; i++)
        above &= h[i] == 255;
    uint32_t carry = above ? 5 : 0;
    for (unsigned i = 0; i < 16; i++) {
        carry += h[i] + job->key[16 + i];
        tag[i] = (uint8_t)carry;
        carry >>= 8;
    }
}

/* Bytes at the ends of their range, in runs, and now and then any. */
static void fill(uint8_t *at, uint32_t bytes)
{
    static const uint8_t ends[] = {0, 0, 255, 255, 255, 1, 2, 3, 4, 5, 0xfa, 0xfb, 0xfc, 0xfe};
    for (uint32_t i = 0; i < bytes;) {
        uint8_t value = pick(8) ? ends[pick(sizeof ends)] : (uint8_t)pick(256);
        for (uint32_t run = 1 + pick(pick(3) ? 2 : 40); run > 0 && i < bytes; run--)
            at[i++] = value;
    }
}

/* Fills `text` with `blocks` blocks (2, 6, 10 …) that under r = 1 sum up to p + distance, distance ≤ 4: the blocks' own bits
 * 2^128, the length's among them, make 3·2^128 + k·2^130, where 2^130 is 5. */
static void sum_up_to(uint8_t *text, uint32_t blocks, int distance)
{
    memset(text, 0, blocks * 16u);
    ea_store64(text, UINT64_MAX - (uint64_t)(4 - distance + 5 * (int)(blocks / 4)));
    ea_store64(text + 8, UINT64_MAX - blocks * 16u);
}

static int check(const struct ea_lanes_kernels *kernels, const struct ea_tag_job *jobs, unsigned n)
{
    kernels->tags(jobs, n);
    for (unsigned i = 0; i < n; i++) {
        uint8_t want[16];
        reference(&jobs[i], want);
        if (memcmp(want, jobs[i].tag, 16) != 0 || jobs[i].tag[16] != 0xa5) {
            printf("%s: message %u of %u, %u bytes: a wrong tag\n", kernels->name, i, n, (unsigned)jobs[i].bytes);
            return -1;
        }
    }
    return 0;
}

static int try_modulus(const struct ea_lanes_kernels *kernels)
{
    static uint8_t text[13][TEXT_BYTES + 16], tag[13][17];
    static const uint8_t one[32] = {1};
    struct ea_tag_job jobs[13];
    for (uint32_t blocks = 2; blocks < TEXT_BYTES / 16; blocks += 4) {
        for (unsigned i = 0; i < 13; i++) {
            sum_up_to(text[i], blocks, (int)i - 8);
            tag[i][16] = 0xa5;
            jobs[i] = (struct ea_tag_job){text[i], blocks * 16, one, tag[i]};
        }
        for (unsigned i = 0; i < 13; i++)
            if (check(kernels, &jobs[i], 1) < 0)
                return -1;
        if (check(kernels, jobs, 13) < 0)
            return -1;
    }
    return 0;
}

static int try_kernels(const struct ea_lanes_kernels *kernels)
{
    static uint8_t text[EA_GROUP][TEXT_BYTES + 16], key[EA_GROUP][32], tag[EA_GROUP][17];
    struct ea_tag_job jobs[EA_GROUP];
    unsigned n = 1 + pick(EA_GROUP);
    uint32_t longest = pick(3) ? pick(100) : pick(TEXT_BYTES);
    for (unsigned i = 0; i < n; i++) {
        fill(text[i], sizeof text[i]);
        fill(key[i], sizeof key[i]);
        tag[i][16] = 0xa5;
        jobs[i] = (struct ea_tag_job){text[i], longest, key[i], tag[i]};
        longest -= pick(4) ? 0 : pick(longest + 1);
    }
    return check(kernels, jobs, n);
}

int main(void)
{
    static const struct ea_lanes_kernels *const all[] = {&ea_lanes_128, &ea_lanes_256, &ea_lanes_512};
    for (unsigned k = 0; k < sizeof all / sizeof all[0]; k++) {
        if (!all[k]->here())
            continue;
        if (try_modulus(all[k]) < 0)
            return 1;
        for (unsigned round = 0; round < ROUNDS; round++)
            if (try_kernels(all[k]) < 0)
                return 1;
        printf("%s: %d rounds\n", all[k]->name, ROUNDS);
    }
    const char *wrong = ea_aead_self_test();
    printf("self-test: %s\n", wrong ? wrong : "passes");
    return wrong != NULL;
}
