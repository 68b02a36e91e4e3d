/* Drives a fuzz target where libFuzzer is not: mutations of what the target takes for valid, under sanitizers.
 *
 *   PROGRAM [-runs=N] [-seed=N] [-max_total_time=S] [-artifact_prefix=PATH] [-seeds=FOLDER] [FILE ...]
 *
 * The options are libFuzzer's, so that a target is called the same way with either; -seeds writes valid inputs for
 * libFuzzer to begin with. With FILEs each is run once: so a crash is repeated. Prints the seed; the input of a crash is
 * left as `PATH`crash-SEED-RUN.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fuzz.h"

enum { INPUT_MAX = 1 << 17, MUTATIONS_MAX = 8, SEED_FILES = 64, CLOCK_EACH_RUNS = 16 };

/* A target without one begins with bytes at random. */
__attribute__((weak)) size_t fuzz_valid(uint8_t *out, size_t size_max);

/* Of the sanitizers: called once something was found, before the process ends. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

/* abort() is how a target says that something is wrong: then the input is kept too. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "handle_abort=1";
}

static uint64_t state, seed;
static unsigned long run;
static uint8_t input[INPUT_MAX];
static size_t input_bytes;
static const char *prefix = "";

/* splitmix64 */
uint64_t fuzz_draw(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15U;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

size_t fuzz_below(size_t end)
{
    return (size_t)(fuzz_draw() % end);
}

static void make(void)
{
    if (fuzz_valid) {
        input_bytes = fuzz_valid(input, INPUT_MAX / 2);
        return;
    }
    input_bytes = fuzz_below(fuzz_draw() & 1 ? 2048 : 64) + 1;
    for (size_t i = 0; i < input_bytes; i++)
        input[i] = (uint8_t)fuzz_draw();
}

static void mutate(void)
{
    size_t size = input_bytes, at;

    if (size == 0)
        return;
    at = fuzz_below(fuzz_draw() & 1 || size < 120 ? size : 120); /* headers are in front */
    switch (fuzz_below(6)) {
    case 0:
        input[at] ^= (uint8_t)(1U << fuzz_below(8));
        break;
    case 1:
        input[at] = (uint8_t)fuzz_draw();
        break;
    case 2:
        input[at] = fuzz_draw() & 1 ? 0xFF : 0;
        break;
    case 3:
        input_bytes = at;
        break;
    case 4:
        memmove(input + at, input + at + 1, size - at - 1);
        input_bytes = size - 1;
        break;
    default:
        for (int i = 0; i < 3 && input_bytes < INPUT_MAX; i++)
            input[input_bytes++] = (uint8_t)fuzz_draw();
    }
}

static int save(const char *path)
{
    FILE *file = fopen(path, "wb");
    int bad = file == NULL || fwrite(input, 1, input_bytes, file) != input_bytes;

    if (file != NULL && fclose(file) != 0)
        bad = 1;
    if (bad)
        perror(path);
    return bad;
}

static void keep_crash(void)
{
    char path[4096];

    snprintf(path, sizeof path, "%scrash-%llu-%lu", prefix, (unsigned long long)seed, run);
    if (!save(path))
        fprintf(stderr, "wrote %s\n", path);
}

static int repeat(const char *path)
{
    FILE *file = fopen(path, "rb");

    if (file == NULL) {
        perror(path);
        return 1;
    }
    input_bytes = fread(input, 1, sizeof input, file);
    fclose(file);
    LLVMFuzzerTestOneInput(input, input_bytes);
    printf("%s: nothing found\n", path);
    return 0;
}

static int write_seeds(const char *folder)
{
    char path[4096];

    for (unsigned i = 0; i < SEED_FILES; i++) {
        make();
        snprintf(path, sizeof path, "%s/%02u", folder, i);
        if (save(path))
            return 1;
    }
    return 0;
}

static const char *option(const char *argument, const char *name)
{
    size_t length = strlen(name);

    return strncmp(argument, name, length) == 0 ? argument + length : NULL;
}

int main(int argc, char **argv)
{
    unsigned long runs = 0, seconds = 0;
    const char *value, *folder = NULL;
    time_t end;
    int files = 0, bad = 0;

    seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i++) {
        if ((value = option(argv[i], "-runs=")) != NULL)
            runs = strtoul(value, NULL, 10);
        else if ((value = option(argv[i], "-seed=")) != NULL)
            seed = strtoull(value, NULL, 10);
        else if ((value = option(argv[i], "-max_total_time=")) != NULL)
            seconds = strtoul(value, NULL, 10);
        else if ((value = option(argv[i], "-artifact_prefix=")) != NULL)
            prefix = value;
        else if ((value = option(argv[i], "-seeds=")) != NULL)
            folder = value;
        else if (argv[i][0] != '-')
            files++, bad |= repeat(argv[i]);
        else
            return fprintf(stderr, "%s: no such option\n", argv[i]), 2;
    }
    if (files)
        return bad;
    state = seed;
    if (folder != NULL)
        return write_seeds(folder);
    if (!runs && !seconds)
        runs = 20000;
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(keep_crash);
    printf("%s -seed=%llu\n", argv[0], (unsigned long long)seed);
    fflush(stdout);
    end = time(NULL) + (time_t)seconds;
    for (run = 0; !runs || run < runs; run++) {
        if (seconds && run % CLOCK_EACH_RUNS == 0 && time(NULL) >= end)
            break;
        make();
        for (size_t left = fuzz_below(MUTATIONS_MAX + 1); left; left--)
            mutate();
        LLVMFuzzerTestOneInput(input, input_bytes);
    }
    printf("%lu runs, nothing found\n", run);
    return 0;
}
