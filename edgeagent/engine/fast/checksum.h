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

/* Accumulators of machine words with their carries counted apart: an add and an add-with-carry each on most machines. */
#define EA_SUM_LANES 4

static inline uint64_t ea_sum_words(uint8_t *out, const uint8_t *in, size_t words)
{
    size_t sums[EA_SUM_LANES] = {0}, carries = 0, lanes[EA_SUM_LANES];
    uint64_t total;

    for (; words >= EA_SUM_LANES; words -= EA_SUM_LANES, in += sizeof lanes) {
        memcpy(lanes, in, sizeof lanes);
        if (out) {
            memcpy(out, lanes, sizeof lanes);
            out += sizeof lanes;
        }
        for (int i = 0; i < EA_SUM_LANES; i++) {
            sums[i] += lanes[i];
            carries += sums[i] < lanes[i];
        }
    }
    for (; words; words--, in += sizeof lanes[0]) {
        memcpy(lanes, in, sizeof lanes[0]);
        if (out) {
            memcpy(out, lanes, sizeof lanes[0]);
            out += sizeof lanes[0];
        }
        sums[0] += lanes[0];
        carries += sums[0] < lanes[0];
    }
    total = carries;
    for (int i = 0; i < EA_SUM_LANES; i++)
        total += ((uint64_t)sums[i] >> 32) + (sums[i] & 0xFFFFFFFF);
    return total;
}

static inline uint32_t ea_sum_or_copy(uint8_t *out, const uint8_t *in, size_t size)
{
    size_t words = size / sizeof(size_t), left = size % sizeof(size_t), last = 0;
    uint64_t total = ea_sum_words(out, in, words);

    if (left) {
        memcpy(&last, in + (size - left), left);
        if (out)
            memcpy(out + (size - left), &last, left);
        total += ((uint64_t)last >> 32) + (last & 0xFFFFFFFF);
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
