/* The Internet checksum (RFC 1071) and big-endian fields.
 *
 * A sum is kept as a number congruent modulo 65535 to the bytes read as big-endian 16-bit words, in 64 bits: sums of a
 * packet's parts, lengths and 32-bit fields just add up (2^16 ≡ 1), as many as 2^32 of them. A last odd byte counts as
 * the high one. Bytes are summed in machine words of native order, which RFC 1071, section 2(B) allows: the 16-bit
 * result is swapped once.
 */
#ifndef EA_CHECKSUM_H
#define EA_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t ea_get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t ea_get32(const uint8_t *at)
{
    return (uint32_t)ea_get16(at) << 16 | ea_get16(at + 2);
}

static inline void ea_put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void ea_put32(uint8_t *at, uint32_t value)
{
    ea_put16(at, value >> 16);
    ea_put16(at + 2, value);
}

/* Congruent, 16 bits; 0 and 65535 both stand for 0. */
static inline uint32_t ea_fold(uint64_t sum)
{
    uint32_t folded;

    sum = (sum >> 32) + (sum & 0xFFFFFFFF);
    folded = (uint32_t)(sum >> 32) + (uint32_t)(sum >> 16 & 0xFFFF) + (uint32_t)(sum & 0xFFFF);
    folded = (folded >> 16) + (folded & 0xFFFF);
    return (folded >> 16) + (folded & 0xFFFF);
}

/* sum mod 65535. */
static inline uint32_t ea_reduce(uint64_t sum)
{
    uint32_t folded = ea_fold(sum);

    return folded == 0xFFFF ? 0 : folded;
}

/* -sum mod 65535: what a checksum field has to hold. It is never 65535. */
static inline uint32_t ea_negate(uint64_t sum)
{
    return 0xFFFF - ea_fold(sum) == 0xFFFF ? 0 : 0xFFFF - ea_fold(sum);
}

static inline uint32_t ea_from_native(uint64_t sum)
{
    uint16_t folded = (uint16_t)ea_fold(sum);
    uint8_t bytes[2];

    memcpy(bytes, &folded, 2);
    return ea_get16(bytes);
}

/* Sums blocks of EA_SUM_BLOCK bytes, and copies them where `out` is not NULL. Returns a sum in native order. */
#define EA_SUM_BLOCK 32

#if (defined(__SSE2__) || defined(__ARM_NEON)) && !defined(EA_NO_SIMD)

typedef uint64_t ea_lanes __attribute__((vector_size(16)));

static inline uint64_t ea_sum_blocks(uint8_t *out, const uint8_t *in, size_t blocks)
{
    const ea_lanes low = {0xFFFFFFFF, 0xFFFFFFFF};
    ea_lanes a = {0, 0}, b = {0, 0}, x, y;

    for (; blocks; blocks--, in += EA_SUM_BLOCK) {
        memcpy(&x, in, 16);
        memcpy(&y, in + 16, 16);
        if (out) {
            memcpy(out, &x, 16);
            memcpy(out + 16, &y, 16);
            out += EA_SUM_BLOCK;
        }
        a += (x & low) + (x >> 32);
        b += (y & low) + (y >> 32);
    }
    a += b;
    return a[0] + a[1];
}

#else

/* Machine words with their carries counted apart: an add and an add-with-carry each on most machines. */
static inline uint64_t ea_sum_blocks(uint8_t *out, const uint8_t *in, size_t blocks)
{
    size_t words[EA_SUM_BLOCK / sizeof(size_t)], a = 0, b = 0, carries = 0;

    for (; blocks; blocks--, in += EA_SUM_BLOCK) {
        memcpy(words, in, EA_SUM_BLOCK);
        if (out) {
            memcpy(out, words, EA_SUM_BLOCK);
            out += EA_SUM_BLOCK;
        }
#pragma GCC unroll 8
        for (size_t i = 0; i < EA_SUM_BLOCK / sizeof(size_t); i += 2) {
            a += words[i];
            carries += a < words[i];
            b += words[i + 1];
            carries += b < words[i + 1];
        }
    }
    return ((uint64_t)a >> 32) + (a & 0xFFFFFFFF) + ((uint64_t)b >> 32) + (b & 0xFFFFFFFF) + carries;
}

#endif

static inline uint32_t ea_sum_or_copy(uint8_t *out, const uint8_t *in, size_t size)
{
    size_t done = size & ~(size_t)(EA_SUM_BLOCK - 1);
    uint64_t total = size < EA_SUM_BLOCK ? 0 : ea_sum_blocks(out, in, size / EA_SUM_BLOCK);
    uint32_t word;

    for (; done < size; done += sizeof word) {
        size_t left = size - done;

        word = 0;
        memcpy(&word, in + done, left < sizeof word ? left : sizeof word);
        if (out)
            memcpy(out + done, &word, left < sizeof word ? left : sizeof word);
        total += word;
    }
    return ea_from_native(total);
}

static inline uint32_t ea_sum(const uint8_t *data, size_t size)
{
    return ea_sum_or_copy(NULL, data, size);
}

/* Copies `size` bytes that do not overlap, and returns their sum. */
static inline uint32_t ea_copy_sum(uint8_t *out, const uint8_t *in, size_t size)
{
    return ea_sum_or_copy(out, in, size);
}

#endif
