/* The known-answer test of AEAD providers: tags that other programs made, scalar C as the twin, forgeries. */
#include <stdlib.h>

#include "aead_impl.h"

#define TEXT_MAX 9000
#define STRIDE (TEXT_MAX + EA_AEAD_TAG + 7) /* odd: most texts of a batch lie at odd addresses */

/* key[i] = i, counter 0x0102030405060708, text[i] = 7i + 3 mod 256: tags by libsodium. A tag covers every byte of the
 * ciphertext, so it stands for all of it. */
static const struct {
    uint32_t bytes;
    uint8_t tag[EA_AEAD_TAG];
} VECTORS[] = {
    {0, {0x27, 0x52, 0xc3, 0x9e, 0x5b, 0x6b, 0x57, 0xe6, 0xb8, 0xf9, 0x24, 0xdb, 0x36, 0x98, 0xb1, 0xba}},
    {1, {0x1f, 0x79, 0xe9, 0x2f, 0x4f, 0x15, 0xf7, 0xbe, 0x4b, 0xa5, 0x5b, 0xb6, 0xfc, 0x08, 0xbd, 0xba}},
    {16, {0xda, 0x73, 0x59, 0x2b, 0x5c, 0x28, 0xfd, 0x4d, 0x8c, 0x61, 0x22, 0xf1, 0xcc, 0x55, 0xa2, 0xa3}},
    {64, {0x1e, 0x41, 0x07, 0x51, 0x04, 0x35, 0xaa, 0xcc, 0x72, 0xbd, 0x3a, 0xb2, 0xde, 0xa4, 0xb8, 0xa2}},
    {300, {0x4e, 0x83, 0x1b, 0x66, 0xdd, 0x40, 0x11, 0x3b, 0x1e, 0x16, 0xbb, 0xa1, 0x65, 0x49, 0x7a, 0x2b}},
    {1420, {0x84, 0xe6, 0xa2, 0xbf, 0x72, 0xf4, 0xf5, 0x6a, 0x9f, 0x70, 0x57, 0xf0, 0x18, 0x45, 0x3f, 0xd3}},
};
#define VECTOR_COUNTER 0x0102030405060708u

static const uint32_t SIZES[] = {0, 1, 15, 16, 17, 32, 63, 64, 65, 128, 255, 256, 257, 1419, 1420, 1421, TEXT_MAX};
#define SIZE_COUNT (sizeof SIZES / sizeof SIZES[0])
static const unsigned BATCHES[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64};
#define BATCH_COUNT (sizeof BATCHES / sizeof BATCHES[0])

struct bench {
    struct ea_aead *aead;
    uint8_t *memory; /* EA_AEAD_BATCH_MAX + 1 texts */
    uint8_t *text[EA_AEAD_BATCH_MAX];
    uint32_t bytes[EA_AEAD_BATCH_MAX];
    uint64_t counter[EA_AEAD_BATCH_MAX];
    uint8_t ok[EA_AEAD_BATCH_MAX];
    uint8_t key[32];
};

static void write_text(uint8_t *at, uint32_t bytes, unsigned seed)
{
    for (uint32_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(7 * i + 3 + seed);
}

static int is_text(const uint8_t *at, uint32_t bytes, unsigned seed)
{
    unsigned difference = 0;
    for (uint32_t i = 0; i < bytes; i++)
        difference |= (unsigned)(at[i] ^ (uint8_t)(7 * i + 3 + seed));
    return difference == 0;
}

static int vectors(struct bench *bench, char *why, size_t why_bytes)
{
    for (size_t v = 0; v < sizeof VECTORS / sizeof VECTORS[0]; v++) {
        uint32_t bytes = VECTORS[v].bytes;
        write_text(bench->text[0], bytes, 0);
        ea_aead_seal(bench->aead, bench->key, VECTOR_COUNTER, bench->text, &bytes, 1);
        if (!ea_tags_equal(bench->text[0] + bytes, VECTORS[v].tag)) {
            ea_aead_say(why, why_bytes, "known-answer test: a wrong tag of %u bytes", (unsigned)bytes);
            return -1;
        }
    }
    return 0;
}

/* Seals the batch that bench->bytes describes, compares with scalar C, opens it. */
static int twins(struct bench *bench, unsigned n, uint64_t first, char *why, size_t why_bytes)
{
    uint8_t *twin = bench->memory + (size_t)EA_AEAD_BATCH_MAX * STRIDE;
    for (unsigned i = 0; i < n; i++) {
        write_text(bench->text[i], bench->bytes[i], i);
        bench->text[i][bench->bytes[i] + EA_AEAD_TAG] = 0xa5;
        bench->counter[i] = first + i;
        bench->ok[i] = 2;
    }
    ea_aead_seal(bench->aead, bench->key, first, bench->text, bench->bytes, n);
    for (unsigned i = 0; i < n; i++) {
        uint32_t bytes = bench->bytes[i];
        write_text(twin, bytes, i);
        ea_portable_seal_one(bench->key, first + i, twin, bytes);
        if (memcmp(twin, bench->text[i], bytes + EA_AEAD_TAG) != 0 || bench->text[i][bytes + EA_AEAD_TAG] != 0xa5) {
            ea_aead_say(why, why_bytes, "known-answer test: message %u of %u, %u bytes, sealed wrong", i, n, (unsigned)bytes);
            return -1;
        }
    }
    ea_aead_open(bench->aead, bench->key, bench->counter, bench->text, bench->bytes, n, bench->ok);
    for (unsigned i = 0; i < n; i++)
        if (bench->ok[i] != 1 || !is_text(bench->text[i], bench->bytes[i], i)) {
            ea_aead_say(why, why_bytes, "known-answer test: message %u of %u, %u bytes, not opened", i, n,
                        (unsigned)bench->bytes[i]);
            return -1;
        }
    return 0;
}

static int batches(struct bench *bench, char *why, size_t why_bytes)
{
    for (size_t s = 0; s < SIZE_COUNT; s++) {
        bench->bytes[0] = SIZES[s];
        if (twins(bench, 1, UINT64_MAX - 8192 + s, why, why_bytes) < 0)
            return -1;
    }
    for (size_t b = 0; b < BATCH_COUNT; b++) {
        for (unsigned i = 0; i < BATCHES[b]; i++) /* sizes that are equal, nearly so, and not at all */
            bench->bytes[i] = b % 3 == 0 ? 64 : b % 3 == 1 ? 176 + i % 3 * 16 : SIZES[i % (SIZE_COUNT - 1)];
        if (twins(bench, BATCHES[b], 0xfffffff0u + b, why, why_bytes) < 0)
            return -1;
    }
    return 0;
}

/* Of a batch, four messages are spoilt, by a bit of the tag's first and last byte, of the text, of the counter. */
static int forgeries(struct bench *bench, char *why, size_t why_bytes)
{
    enum { N = 17 };
    for (unsigned i = 0; i < N; i++) {
        bench->bytes[i] = 100 + i / 5;
        write_text(bench->text[i], bench->bytes[i], i);
        bench->counter[i] = 1000 + i;
    }
    ea_aead_seal(bench->aead, bench->key, 1000, bench->text, bench->bytes, N);
    bench->text[0][bench->bytes[0]] ^= 1;
    bench->text[3][bench->bytes[3] + EA_AEAD_TAG - 1] ^= 128;
    bench->text[8][57] ^= 16;
    bench->counter[16] ^= (uint64_t)1 << 63;
    ea_aead_open(bench->aead, bench->key, bench->counter, bench->text, bench->bytes, N, bench->ok);
    for (unsigned i = 0; i < N; i++) {
        int forged = i == 0 || i == 3 || i == 8 || i == 16;
        if (bench->ok[i] != !forged || (!forged && !is_text(bench->text[i], bench->bytes[i], i))) {
            ea_aead_say(why, why_bytes, "known-answer test: a message that was %s was %s", forged ? "forged" : "good",
                        bench->ok[i] ? "opened wrong" : "refused");
            return -1;
        }
    }
    return 0;
}

int ea_aead_known_answers(struct ea_aead *aead, char *why, size_t why_bytes)
{
    struct bench *bench = calloc(1, sizeof *bench);
    uint8_t *memory = calloc(EA_AEAD_BATCH_MAX + 1, STRIDE);
    int result = -1;
    if (bench == NULL || memory == NULL) {
        ea_aead_say(why, why_bytes, "out of memory");
    } else {
        bench->aead = aead;
        bench->memory = memory;
        for (unsigned i = 0; i < EA_AEAD_BATCH_MAX; i++)
            bench->text[i] = memory + (size_t)i * STRIDE;
        for (unsigned i = 0; i < sizeof bench->key; i++)
            bench->key[i] = (uint8_t)i;
        if (vectors(bench, why, why_bytes) == 0 && batches(bench, why, why_bytes) == 0)
            result = forgeries(bench, why, why_bytes);
    }
    free(memory);
    free(bench);
    return result;
}
