/* Poly1305 (RFC 8439, 2.5) of one AEAD message in scalar C: 64×64→128 where the machine has it, else five limbs of 26 bits.
 *
 * The time depends on the length only. The AEAD's own padding is part of it: every block is 16 bytes, so every block has the bit
 * 2^128, and the last one is the two lengths (RFC 8439, 2.8), the first of which is 0 here. */
#ifndef EA_POLY1305_H
#define EA_POLY1305_H

#include "aead_impl.h"

#define EA_CLAMP_LOW 0x0ffffffc0fffffffu
#define EA_CLAMP_HIGH 0x0ffffffc0ffffffcu

/* tag = (low + high·2^64 + top·2^128 mod 2^130 - 5) + pad mod 2^128; top < 2^62. */
static inline void ea_poly_tag(uint64_t low, uint64_t high, uint64_t top, const uint8_t pad[16], uint8_t tag[16])
{
    uint64_t excess = (top >> 2) * 5;
    top &= 3;
    low += excess;
    uint64_t carry = low < excess;
    high += carry;
    top += high < carry;
    /* Minus p is plus 5 minus 2^130: bit 130 of the sum says whether the value was p or more. */
    uint64_t less_low = low + 5;
    carry = less_low < 5;
    uint64_t less_high = high + carry;
    uint64_t less_top = top + (less_high < carry);
    uint64_t take = (uint64_t)0 - (less_top >> 2);
    low = (low & ~take) | (less_low & take);
    high = (high & ~take) | (less_high & take);
    uint64_t pad_low = ea_load64(pad);
    low += pad_low;
    high += ea_load64(pad + 8) + (low < pad_low);
    ea_store64(tag, low);
    ea_store64(tag + 8, high);
}

#ifdef __SIZEOF_INT128__

__extension__ typedef unsigned __int128 ea_u128;

struct ea_poly {
    uint64_t r0, r1, s1; /* s1 = r1·5/4, which is whole: clamping left r1 a multiple of 4 */
    uint64_t h0, h1, h2; /* h2 < 8 between blocks */
};

static inline void ea_poly_start(struct ea_poly *poly, const uint8_t key[32])
{
    poly->r0 = ea_load64(key) & EA_CLAMP_LOW;
    poly->r1 = ea_load64(key + 8) & EA_CLAMP_HIGH;
    poly->s1 = poly->r1 + (poly->r1 >> 2);
    poly->h0 = poly->h1 = poly->h2 = 0;
}

static inline __attribute__((always_inline)) void ea_poly_block(struct ea_poly *poly, uint64_t low, uint64_t high)
{
    ea_u128 sum = (ea_u128)poly->h0 + low;
    uint64_t h0 = (uint64_t)sum;
    sum = (ea_u128)poly->h1 + high + (uint64_t)(sum >> 64);
    uint64_t h1 = (uint64_t)sum;
    uint64_t h2 = poly->h2 + (uint64_t)(sum >> 64) + 1;
    ea_u128 d0 = (ea_u128)h0 * poly->r0 + (ea_u128)h1 * poly->s1;
    ea_u128 d1 = (ea_u128)h0 * poly->r1 + (ea_u128)h1 * poly->r0 + h2 * poly->s1;
    h2 *= poly->r0;
    d1 += (uint64_t)(d0 >> 64);
    h2 += (uint64_t)(d1 >> 64);
    uint64_t excess = (h2 >> 2) + (h2 & ~(uint64_t)3); /* (h2 / 4) · 5 */
    sum = (ea_u128)(uint64_t)d0 + excess;
    poly->h0 = (uint64_t)sum;
    sum = (ea_u128)(uint64_t)d1 + (uint64_t)(sum >> 64);
    poly->h1 = (uint64_t)sum;
    poly->h2 = (h2 & 3) + (uint64_t)(sum >> 64);
}

static inline void ea_poly_finish(const struct ea_poly *poly, const uint8_t pad[16], uint8_t tag[16])
{
    ea_poly_tag(poly->h0, poly->h1, poly->h2, pad, tag);
}

#else

struct ea_poly {
    uint32_t r[5], s[5], h[5]; /* s = 5r; limbs of 26 bits, h[1] may be a little more */
};

static inline void ea_poly_limbs(uint32_t limb[5], uint64_t low, uint64_t high)
{
    limb[0] = (uint32_t)low & 0x3ffffff;
    limb[1] = (uint32_t)(low >> 26) & 0x3ffffff;
    limb[2] = (uint32_t)(low >> 52 | high << 12) & 0x3ffffff;
    limb[3] = (uint32_t)(high >> 14) & 0x3ffffff;
    limb[4] = (uint32_t)(high >> 40);
}

static inline void ea_poly_start(struct ea_poly *poly, const uint8_t key[32])
{
    ea_poly_limbs(poly->r, ea_load64(key) & EA_CLAMP_LOW, ea_load64(key + 8) & EA_CLAMP_HIGH);
    for (int i = 0; i < 5; i++) {
        poly->s[i] = poly->r[i] * 5;
        poly->h[i] = 0;
    }
}

static inline void ea_poly_block(struct ea_poly *poly, uint64_t low, uint64_t high)
{
    const uint32_t *r = poly->r, *s = poly->s;
    uint32_t m[5];
    ea_poly_limbs(m, low, high);
    uint64_t h0 = poly->h[0] + m[0], h1 = poly->h[1] + m[1], h2 = poly->h[2] + m[2], h3 = poly->h[3] + m[3];
    uint64_t h4 = poly->h[4] + m[4] + (1u << 24);
    uint64_t d0 = h0 * r[0] + h1 * s[4] + h2 * s[3] + h3 * s[2] + h4 * s[1];
    uint64_t d1 = h0 * r[1] + h1 * r[0] + h2 * s[4] + h3 * s[3] + h4 * s[2];
    uint64_t d2 = h0 * r[2] + h1 * r[1] + h2 * r[0] + h3 * s[4] + h4 * s[3];
    uint64_t d3 = h0 * r[3] + h1 * r[2] + h2 * r[1] + h3 * r[0] + h4 * s[4];
    uint64_t d4 = h0 * r[4] + h1 * r[3] + h2 * r[2] + h3 * r[1] + h4 * r[0];
    d1 += d0 >> 26;
    d2 += d1 >> 26;
    d3 += d2 >> 26;
    d4 += d3 >> 26;
    d0 = (d0 & 0x3ffffff) + (d4 >> 26) * 5;
    poly->h[0] = (uint32_t)d0 & 0x3ffffff;
    poly->h[1] = ((uint32_t)d1 & 0x3ffffff) + (uint32_t)(d0 >> 26);
    poly->h[2] = (uint32_t)d2 & 0x3ffffff;
    poly->h[3] = (uint32_t)d3 & 0x3ffffff;
    poly->h[4] = (uint32_t)d4 & 0x3ffffff;
}

#endif

/* The value of limbs of 26 bits, each below 2^60, as the tag. */
static inline void ea_poly_tag26(const uint64_t limb[5], const uint8_t pad[16], uint8_t tag[16])
{
    uint64_t l0 = limb[0], l1 = limb[1] + (l0 >> 26), l2 = limb[2] + (l1 >> 26), l3 = limb[3] + (l2 >> 26);
    uint64_t l4 = limb[4] + (l3 >> 26);
    l0 &= 0x3ffffff, l1 &= 0x3ffffff, l2 &= 0x3ffffff, l3 &= 0x3ffffff;
    ea_poly_tag(l0 | l1 << 26 | l2 << 52, l2 >> 12 | l3 << 14 | l4 << 40, l4 >> 24, pad, tag);
}

/* The same for limbs of 44, 44 and 42 bits, each below 2^60. */
static inline void ea_poly_tag44(const uint64_t limb[3], const uint8_t pad[16], uint8_t tag[16])
{
    uint64_t l0 = limb[0], l1 = limb[1] + (l0 >> 44), l2 = limb[2] + (l1 >> 44);
    l0 &= 0xfffffffffff, l1 &= 0xfffffffffff;
    ea_poly_tag(l0 | l1 << 44, l1 >> 20 | l2 << 24, l2 >> 40, pad, tag);
}

#ifndef __SIZEOF_INT128__
static inline void ea_poly_finish(const struct ea_poly *poly, const uint8_t pad[16], uint8_t tag[16])
{
    const uint64_t limb[5] = {poly->h[0], poly->h[1], poly->h[2], poly->h[3], poly->h[4]};
    ea_poly_tag26(limb, pad, tag);
}
#endif

/* What is left of a message when its first `done` bytes, a multiple of 16, have been taken in. */
static inline void ea_poly_rest(struct ea_poly *poly, const uint8_t key[32], const uint8_t *text, uint32_t bytes, uint32_t done,
                                uint8_t tag[16])
{
    for (; bytes - done >= 16; done += 16)
        ea_poly_block(poly, ea_load64(text + done), ea_load64(text + done + 8));
    if (done < bytes) {
        uint8_t last[16] = {0};
        memcpy(last, text + done, bytes - done);
        ea_poly_block(poly, ea_load64(last), ea_load64(last + 8));
    }
    ea_poly_block(poly, 0, bytes);
    ea_poly_finish(poly, key + 16, tag);
}

/* The tag of `bytes` of ciphertext under a one-time key: r ‖ pad. */
static inline void ea_poly_message(const uint8_t key[32], const uint8_t *text, uint32_t bytes, uint8_t tag[16])
{
    struct ea_poly poly;
    ea_poly_start(&poly, key);
    ea_poly_rest(&poly, key, text, bytes, 0, tag);
}

#endif
