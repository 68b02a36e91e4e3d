/* Arithmetic mod 2^130 - 5 in POLY_LANES lanes, limbs of 44, 44 and 42 bits, by AVX-512 IFMA, which multiplies 52×52 bits and adds
 * the low or high 52 of the product: POLY_LOW, POLY_HIGH(sum, a, b).
 *
 * Bounds: limbs that `poly_multiply` returns are below 2^44 + 2^9, so a sum of two is below 2^46; s is below 2^49; so sums of
 * three high halves are below 2^45 and stay whole when they are shifted by 8 or 10. */

#define POLY_BIT ((uint64_t)1 << 40)
#define POLY_LIMBS 3
#define POLY_TAG ea_poly_tag44
#define MASK44 ((POLY_VECTOR){0} + 0xfffffffffff)
#define MASK42 ((POLY_VECTOR){0} + 0x3ffffffffff)

struct poly_limbs {
    POLY_VECTOR l[3];
};

struct poly_times {
    POLY_VECTOR r[3], s[3]; /* s = 20r: the limbs' bases multiply to 2^132 */
};

EA_INLINE struct poly_limbs poly_split(POLY_VECTOR low, POLY_VECTOR high, POLY_VECTOR bit)
{
    return (struct poly_limbs){{low & MASK44, (low >> 44 | high << 20) & MASK44, high >> 24 | bit}};
}

EA_INLINE struct poly_times poly_times(struct poly_limbs r)
{
    struct poly_times times;
    EA_UNROLL
    for (int i = 0; i < 3; i++) {
        times.r[i] = r.l[i];
        times.s[i] = (r.l[i] << 2) + (r.l[i] << 4);
    }
    return times;
}

EA_INLINE struct poly_limbs poly_multiply(struct poly_limbs h, const struct poly_times *by)
{
    const POLY_VECTOR none = {0};
    POLY_VECTOR low[3], high[3], carry;
    EA_UNROLL
    for (int i = 0; i < 3; i++) {
        low[i] = POLY_LOW(none, h.l[0], by->r[i]);
        high[i] = POLY_HIGH(none, h.l[0], by->r[i]);
        EA_UNROLL
        for (int j = 1; j < 3; j++) {
            POLY_VECTOR factor = j <= i ? by->r[i - j] : by->s[3 + i - j];
            low[i] = POLY_LOW(low[i], h.l[j], factor);
            high[i] = POLY_HIGH(high[i], h.l[j], factor);
        }
    }
    low[1] += (low[0] >> 44) + (high[0] << 8), low[0] &= MASK44;
    low[2] += (low[1] >> 44) + (high[1] << 8), low[1] &= MASK44;
    carry = (low[2] >> 42) + (high[2] << 10), low[2] &= MASK42;
    low[0] += carry + (carry << 2);
    low[1] += low[0] >> 44, low[0] &= MASK44;
    return (struct poly_limbs){{low[0], low[1], low[2]}};
}
