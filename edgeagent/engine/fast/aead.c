/* The table of AEAD providers, and how fast one of them is. */
#include "aead_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const struct {
    const char *name;
    const struct ea_aead_ops *ops;
} PROVIDERS[] = {
    {"lanes", &ea_aead_lanes},
    {"lanes-512", &ea_aead_lanes},
    {"lanes-256", &ea_aead_lanes},
    {"lanes-128", &ea_aead_lanes},
    {"libcrypto", &ea_aead_libcrypto},
    {"libgcrypt", &ea_aead_libgcrypt},
    {"libsodium", &ea_aead_libsodium},
    {"nettle", &ea_aead_nettle},
    {"af_alg", &ea_aead_af_alg},
    {"portable", &ea_aead_portable},
};
#define PROVIDER_COUNT (sizeof PROVIDERS / sizeof PROVIDERS[0])

#define MEASURE_BATCHES_MAX 1000000u /* a clock that stands still must not keep us here */

void ea_aead_say(char *why, size_t why_bytes, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, why_bytes, format, arguments);
    va_end(arguments);
}

const char *ea_aead_provider(unsigned number)
{
    return number < PROVIDER_COUNT ? PROVIDERS[number].name : NULL;
}

struct ea_aead *ea_aead_new(const char *name, char *why, size_t why_bytes)
{
    size_t number = 0;
    while (number < PROVIDER_COUNT && strcmp(PROVIDERS[number].name, name) != 0)
        number++;
    if (number == PROVIDER_COUNT) {
        ea_aead_say(why, why_bytes, "no provider of this name");
        return NULL;
    }
    struct ea_aead *aead = calloc(1, sizeof *aead);
    if (aead == NULL) {
        ea_aead_say(why, why_bytes, "out of memory");
        return NULL;
    }
    aead->name = PROVIDERS[number].name;
    aead->ops = PROVIDERS[number].ops;
    aead->state = aead->ops->start(aead->name, aead->version, why, why_bytes);
    if (aead->state == NULL) {
        free(aead);
        return NULL;
    }
    if (ea_aead_known_answers(aead, why, why_bytes) < 0) {
        ea_aead_free(aead);
        return NULL;
    }
    return aead;
}

void ea_aead_free(struct ea_aead *aead)
{
    if (aead == NULL)
        return;
    aead->ops->stop(aead->state);
    free(aead);
}

const char *ea_aead_name(const struct ea_aead *aead)
{
    return aead->name;
}

const char *ea_aead_version(const struct ea_aead *aead)
{
    return aead->version;
}

void ea_aead_seal(struct ea_aead *aead, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                  unsigned n)
{
    aead->ops->seal(aead->state, key, first, text, bytes, n);
}

void ea_aead_open(struct ea_aead *aead, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                  const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    aead->ops->open(aead->state, key, counter, text, bytes, n, ok);
}

const char *ea_aead_self_test(void)
{
    static const char *const names[] = {"portable", "lanes-128", "lanes-256", "lanes-512"};
    static char why[160];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const struct ea_aead_ops *ops = i == 0 ? &ea_aead_portable : &ea_aead_lanes;
        struct ea_aead aead = {.ops = ops, .name = names[i]};
        char wrong[120];
        aead.state = ops->start(names[i], aead.version, wrong, sizeof wrong);
        if (aead.state == NULL)
            continue; /* not on this CPU */
        int result = ea_aead_known_answers(&aead, wrong, sizeof wrong);
        ops->stop(aead.state);
        if (result < 0) {
            ea_aead_say(why, sizeof why, "%s: %s", names[i], wrong);
            return why;
        }
    }
    return NULL;
}

/* CPU time: what other threads take meanwhile is not the provider's. */
static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

double ea_aead_measure(struct ea_aead *aead, uint32_t bytes, unsigned batch, unsigned milliseconds)
{
    if (bytes > EA_AEAD_BYTES_MAX || batch < 1 || batch > EA_AEAD_BATCH_MAX)
        return -1;
    /* As the data path has them: a cache line apart, the text 16 bytes behind the start of one. */
    size_t stride = ((size_t)bytes + 16 + EA_AEAD_TAG + 63) & ~(size_t)63;
    uint8_t *memory = calloc(batch, stride + 64);
    if (memory == NULL)
        return -1;
    uint8_t *text[EA_AEAD_BATCH_MAX], key[32];
    uint32_t sizes[EA_AEAD_BATCH_MAX];
    for (unsigned i = 0; i < batch; i++) {
        text[i] = memory + i * (stride + 64) + 16;
        sizes[i] = bytes;
    }
    memset(key, 0x5a, sizeof key);
    uint64_t counter = 0;
    unsigned repeats = 1;
    double best = -1, begin = now_ns(), end = begin + milliseconds * 1e6, now = begin;
    for (unsigned done = 0; done < MEASURE_BATCHES_MAX; done += repeats) {
        double start = now;
        for (unsigned i = 0; i < repeats; i++, counter += batch)
            ea_aead_seal(aead, key, counter, text, sizes, batch);
        now = now_ns();
        double each = (now - start) / ((double)repeats * batch);
        if (done > 0 && (best < 0 || each < best)) /* the first call warms up */
            best = each;
        if (now >= end && best >= 0)
            break;
        /* A round is about a tenth of the time, so that the clock's own cost does not count. */
        if (now - start < (end - begin) / 20 && repeats < 4096)
            repeats *= 2;
    }
    free(memory);
    return best;
}
