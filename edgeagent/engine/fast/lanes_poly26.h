/* Arithmetic mod 2^130 - 5 in POLY_LANES lanes, five limbs of 26 bits in 64-bit lanes. POLY_MULTIPLY: 32×32→64 of low halves.
 *
 * Bounds: limbs that `poly_multiply` returns are below 2^26 + 2^11, so the sum of two of them is below 2^28 and a sum of five
 * products below 2^60. */

#define POLY_BIT ((uint64_t)1 << 24) /* 2^128, in the last limb */
#define POLY_LIMBS 5
#define POLY_TAG ea_poly_tag26
#define MASK26 ((POLY_VECTOR){0} + 0x3ffffff)

struct poly_limbs {
    POLY_VECTOR l[5];
};

struct poly_times {
    POLY_VECTOR r[5], s[5]; /* s = 5r */
};

EA_INLINE struct poly_limbs poly_split(POLY_VECTOR low, POLY_VECTOR high, POLY_VECTOR bit)
{
    return (struct poly_limbs){{low & MASK26, low >> 26 & MASK26, (low >> 52 | high << 12) & MASK26, high >> 14 & MASK26,
                                high >> 40 | bit}};
}

EA_INLINE struct poly_times poly_times(struct poly_limbs r)
{
    struct poly_times times;
    EA_UNROLL
    for (int i = 0; i < 5; i++) {
        times.r[i] = r.l[i];
        times.s[i] = r.l[i] + (r.l[i] << 2);
    }
    return times;
}

EA_INLINE struct poly_limbs poly_multiply(struct poly_limbs h, const struct poly_times *by)
{
    POLY_VECTOR d[5];
    EA_UNROLL
    for (int i = 0; i < 5; i++) {
        d[i] = POLY_MULTIPLY(h.l[0], by->r[i]);
        EA_UNROLL
        for (int j = 1; j < 5; j++)
            d[i] += POLY_MULTIPLY(h.l[j], j <= i ? by->r[i - j] : by->s[5 + i - j]);
    }
    POLY_VECTOR carry;
    /* Two chains of carries side by side, from limb 0 and from limb 3. */
    d[1] += d[0] >> 26, d[0] &= MASK26;
    d[4] += d[3] >> 26, d[3] &= MASK26;
    d[2] += d[1] >> 26, d[1] &= MASK26;
    carry = d[4] >> 26, d[0] += carry + (carry << 2), d[4] &= MASK26;
    d[3] += d[2] >> 26, d[2] &= MASK26;
    d[1] += d[0] >> 26, d[0] &= MASK26;
    d[4] += d[3] >> 26, d[3] &= MASK26;
    return (struct poly_limbs){{d[0], d[1], d[2], d[3], d[4]}};
}
