/* ChaCha20 (RFC 8439, 2.3), CHACHA_LANES blocks side by side: a template, included once for each width.
 *
 * Before: CHACHA(name) makes names; CHACHA_LANES is 4, 8 or 16; CHACHA_VECTOR is a vector of as many uint32_t; and
 * CHACHA_ROTATE(vector, bits), CHACHA_EMIT(blocks, x): a static function that turns the sixteen words' vectors x[] into bytes. */

#define QUARTER(a, b, c, d)                                                                                                \
    do {                                                                                                                   \
        a += b, c##_ = d ^ a, d = CHACHA_ROTATE(c##_, 16);                                                                 \
        c += d, c##_ = b ^ c, b = CHACHA_ROTATE(c##_, 12);                                                                 \
        a += b, c##_ = d ^ a, d = CHACHA_ROTATE(c##_, 8);                                                                  \
        c += d, c##_ = b ^ c, b = CHACHA_ROTATE(c##_, 7);                                                                  \
    } while (0)

static __attribute__((noinline)) void CHACHA(blocks)(const uint32_t key[8], struct ea_blocks *blocks)
{
    const CHACHA_VECTOR none = {0};
    CHACHA_VECTOR number, low, high;
    memcpy(&number, blocks->block, sizeof number);
    memcpy(&low, blocks->nonce_low, sizeof low);
    memcpy(&high, blocks->nonce_high, sizeof high);
    CHACHA_VECTOR x0 = none + 0x61707865u, x1 = none + 0x3320646eu, x2 = none + 0x79622d32u, x3 = none + 0x6b206574u;
    CHACHA_VECTOR x4 = none + key[0], x5 = none + key[1], x6 = none + key[2], x7 = none + key[3];
    CHACHA_VECTOR x8 = none + key[4], x9 = none + key[5], x10 = none + key[6], x11 = none + key[7];
    CHACHA_VECTOR x12 = number, x13 = none, x14 = low, x15 = high;
    CHACHA_VECTOR x8_, x9_, x10_, x11_;
    for (int i = 0; i < 10; i++) {
        QUARTER(x0, x4, x8, x12);
        QUARTER(x1, x5, x9, x13);
        QUARTER(x2, x6, x10, x14);
        QUARTER(x3, x7, x11, x15);
        QUARTER(x0, x5, x10, x15);
        QUARTER(x1, x6, x11, x12);
        QUARTER(x2, x7, x8, x13);
        QUARTER(x3, x4, x9, x14);
    }
    CHACHA_VECTOR x[16] = {x0 + 0x61707865u, x1 + 0x3320646eu, x2 + 0x79622d32u, x3 + 0x6b206574u,
                           x4 + key[0],      x5 + key[1],      x6 + key[2],      x7 + key[3],
                           x8 + key[4],      x9 + key[5],      x10 + key[6],     x11 + key[7],
                           x12 + number,     x13,              x14 + low,        x15 + high};
    CHACHA_EMIT(blocks, x);
}

#undef QUARTER
#undef CHACHA
#undef CHACHA_LANES
#undef CHACHA_VECTOR
#undef CHACHA_ROTATE
#undef CHACHA_EMIT
