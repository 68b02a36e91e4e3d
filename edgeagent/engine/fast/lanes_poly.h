/* Poly1305 tags in vector lanes: a message in each lane, or the blocks of one message. A template: lanes_poly26.h or lanes_poly44.h
 * comes before, and POLY_LANES, POLY_VECTOR (of uint64_t); POLY_COLUMNS(column, text, at): column[j] = 64-bit word j, from byte
 * `at`, of each lane's text, POLY_LANES words; POLY_LOW64(a, b), POLY_HIGH64(a, b): of the blocks that a, then b hold, the first
 * and second words, in the order POLY_ORDER; POLY_MESSAGE_COST, what a step costs in blocks of the scalar code. */

#define POLY_ALONE_BLOCKS (8 * POLY_MESSAGE_COST) /* a message alone is not worth the powers of r below this */

static const uint8_t poly_zeroes[16];

union poly_words {
    uint64_t word[POLY_LANES];
    POLY_VECTOR vector;
};

/* Block number `block` of a message, its end filled up with zeroes; what is read behind it is the room of its tag. */
EA_INLINE void poly_load(const struct ea_tag_job *job, uint32_t block, uint64_t *low, uint64_t *high)
{
    const uint8_t *at = job->text + (size_t)block * 16;
    uint32_t left = job->bytes - block * 16;
    *low = ea_load64(at);
    *high = ea_load64(at + 8);
    if (left < 16) {
        *low &= left >= 8 ? UINT64_MAX : ((uint64_t)1 << 8 * left) - 1;
        *high &= left <= 8 ? 0 : ((uint64_t)1 << 8 * (left - 8)) - 1;
    }
}

EA_INLINE struct poly_limbs poly_add(struct poly_limbs a, struct poly_limbs b)
{
    EA_UNROLL
    for (int i = 0; i < POLY_LIMBS; i++)
        a.l[i] += b.l[i];
    return a;
}

/* a where the mask is set, else b. */
EA_INLINE struct poly_limbs poly_select(POLY_VECTOR mask, struct poly_limbs a, struct poly_limbs b)
{
    EA_UNROLL
    for (int i = 0; i < POLY_LIMBS; i++)
        a.l[i] = (a.l[i] & mask) | (b.l[i] & ~mask);
    return a;
}

/* n ≤ POLY_LANES messages, the longest first. */
static __attribute__((noinline)) void poly_messages(const struct ea_tag_job *jobs, unsigned n)
{
    const POLY_VECTOR none = {0}, bit = none + POLY_BIT;
    const uint8_t *text[POLY_LANES];
    union poly_words low, high, mask;
    uint32_t blocks[POLY_LANES];
    EA_UNROLL
    for (unsigned i = 0; i < POLY_LANES; i++) {
        const struct ea_tag_job *job = &jobs[i < n ? i : 0];
        text[i] = job->text;
        blocks[i] = (job->bytes + 15) / 16;
        low.word[i] = ea_load64(job->key);
        high.word[i] = ea_load64(job->key + 8);
    }
    struct poly_times r = poly_times(poly_split(low.vector & EA_CLAMP_LOW, high.vector & EA_CLAMP_HIGH, none));
    struct poly_limbs h = {{none}};
    uint32_t step = 0, common = jobs[n - 1].bytes / 16;
    for (; step + POLY_LANES / 2 <= common; step += POLY_LANES / 2) {
        POLY_VECTOR column[POLY_LANES];
        POLY_COLUMNS(column, text, (size_t)step * 16);
        EA_UNROLL
        for (int j = 0; j < POLY_LANES; j += 2)
            h = poly_multiply(poly_add(h, poly_split(column[j], column[j + 1], bit)), &r);
    }
    for (; step < blocks[0]; step++) {
        EA_UNROLL
        for (unsigned i = 0; i < POLY_LANES; i++) {
            low.word[i] = high.word[i] = mask.word[i] = 0;
            if (step < blocks[i]) {
                poly_load(&jobs[i < n ? i : 0], step, &low.word[i], &high.word[i]);
                mask.word[i] = UINT64_MAX;
            }
        }
        struct poly_limbs next = poly_multiply(poly_add(h, poly_split(low.vector, high.vector, bit)), &r);
        h = poly_select(mask.vector, next, h); /* a lane whose message has ended stays as it is */
    }
    EA_UNROLL
    for (unsigned i = 0; i < POLY_LANES; i++)
        high.word[i] = jobs[i < n ? i : 0].bytes;
    h = poly_multiply(poly_add(h, poly_split(none, high.vector, bit)), &r);
    union poly_words out[POLY_LIMBS];
    EA_UNROLL
    for (int limb = 0; limb < POLY_LIMBS; limb++)
        out[limb].vector = h.l[limb];
    for (unsigned i = 0; i < n; i++) {
        uint64_t limbs[POLY_LIMBS];
        EA_UNROLL
        for (int limb = 0; limb < POLY_LIMBS; limb++)
            limbs[limb] = out[limb].word[i];
        POLY_TAG(limbs, jobs[i].key + 16, jobs[i].tag);
    }
}

/* A vector of blocks of one message, some of which are zeroes before its beginning or the block of its lengths. */
static struct poly_limbs poly_edge(const struct ea_tag_job *job, uint32_t first, uint32_t lead)
{
    static const uint8_t order[POLY_LANES] = POLY_ORDER;
    uint32_t blocks = (job->bytes + 15) / 16;
    union poly_words low, high, bit;
    EA_UNROLL
    for (unsigned i = 0; i < POLY_LANES; i++) {
        uint32_t at = first + order[i];
        low.word[i] = high.word[i] = bit.word[i] = 0;
        if (at < lead)
            continue;
        bit.word[i] = POLY_BIT;
        if (at - lead < blocks)
            poly_load(job, at - lead, &low.word[i], &high.word[i]);
        else
            high.word[i] = job->bytes;
    }
    return poly_split(low.vector, high.vector, bit.vector);
}

/* Lane i has every POLY_LANES-th block and the power r^POLY_LANES; at the end it is multiplied by what its last block needs. */
static __attribute__((noinline)) void poly_alone(const struct ea_tag_job *job)
{
    static const uint8_t order[POLY_LANES] = POLY_ORDER;
    const POLY_VECTOR none = {0}, bit = none + POLY_BIT;
    POLY_VECTOR low = none + (ea_load64(job->key) & EA_CLAMP_LOW), high = none + (ea_load64(job->key + 8) & EA_CLAMP_HIGH);
    struct poly_limbs power[POLY_LANES + 1], last; /* power[e] = r^e; last: lane i has r^(POLY_LANES - order[i]) */
    struct poly_times by = {0};
    union poly_words mask;
    power[1] = last = poly_split(low, high, none);
    EA_UNROLL
    for (unsigned e = 2; e <= POLY_LANES; e++) {
        unsigned half = e > 4 ? 4 : e > 2 ? 2 : 1; /* few have to wait for another */
        if (e == half + 1)
            by = poly_times(power[half]);
        power[e] = poly_multiply(power[e - half], &by);
        EA_UNROLL
        for (unsigned i = 0; i < POLY_LANES; i++)
            mask.word[i] = e + order[i] == POLY_LANES ? UINT64_MAX : 0;
        last = poly_select(mask.vector, power[e], last);
    }
    struct poly_times many = poly_times(power[POLY_LANES]), each = poly_times(last);
    uint32_t total = (job->bytes + 15) / 16 + 1, lead = (POLY_LANES - total % POLY_LANES) % POLY_LANES;
    uint32_t end = total + lead - POLY_LANES;
    struct poly_limbs h = poly_edge(job, 0, lead);
    for (uint32_t at = POLY_LANES; at < end; at += POLY_LANES) {
        POLY_VECTOR a, b;
        memcpy(&a, job->text + (size_t)(at - lead) * 16, sizeof a);
        memcpy(&b, job->text + (size_t)(at - lead) * 16 + sizeof a, sizeof b);
        h = poly_add(poly_multiply(h, &many), poly_split(POLY_LOW64(a, b), POLY_HIGH64(a, b), bit));
    }
    if (end > 0)
        h = poly_add(poly_multiply(h, &many), poly_edge(job, end, lead));
    h = poly_multiply(h, &each);
    uint64_t limbs[POLY_LIMBS] = {0};
    EA_UNROLL
    for (int limb = 0; limb < POLY_LIMBS; limb++) {
        union poly_words out = {.vector = h.l[limb]};
        EA_UNROLL
        for (unsigned i = 0; i < POLY_LANES; i++)
            limbs[limb] += out.word[i];
    }
    POLY_TAG(limbs, job->key + 16, job->tag);
}

static void poly_tags(const struct ea_tag_job *jobs, unsigned n)
{
    for (unsigned done = 0; done < n; done += POLY_LANES) {
        unsigned together = n - done < POLY_LANES ? n - done : POLY_LANES;
        const struct ea_tag_job *job = jobs + done;
        /* In blocks of the scalar code: what the longest costs all lanes, against each by itself. */
        uint32_t alone = 0, shared = (job->bytes / 16 + 4) * POLY_MESSAGE_COST;
        for (unsigned i = 0; i < together; i++) {
            uint32_t blocks = job[i].bytes / 16 + 2;
            alone += blocks < POLY_ALONE_BLOCKS ? blocks : POLY_ALONE_BLOCKS + blocks * POLY_MESSAGE_COST / POLY_LANES;
        }
        if (shared <= alone) {
            poly_messages(job, together);
            continue;
        }
        for (unsigned i = 0; i < together; i++)
            if (job[i].bytes / 16 + 2 < POLY_ALONE_BLOCKS)
                ea_poly_message(job[i].key, job[i].text, job[i].bytes, job[i].tag);
            else
                poly_alone(&job[i]);
    }
}
