/* The library's version, and its self-test: first what it takes for granted of compiler, machine and kernel, then what
 * each part says of itself. A part adds its own to `parts`. */
#include "version.h"

#include "aead.h"
#include "self_test.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Rings and counters are shared between threads by atomics of 32 bits and of pointers. Where these are calls to
 * libatomic, they take locks. */
_Static_assert(__atomic_always_lock_free(sizeof(uint32_t), 0), "32-bit atomics take locks on this machine");
_Static_assert(__atomic_always_lock_free(sizeof(void *), 0), "atomics of pointers take locks on this machine");
_Static_assert(sizeof(int) == 4 && sizeof(void *) >= 4, "int of 32 bits, pointers of 32 or more");

#define ADDERS 2
#define ADDITIONS 20000

typedef const char *(*part_test)(void); /* NULL, or what is wrong */

static const char *test_byte_order(void) {
    /* volatile: what the compiler could work out beforehand would say nothing of this machine */
    volatile unsigned char bytes[4] = {0x01, 0x02, 0x03, 0x04};
    unsigned char copy[4];
    uint32_t value;
    for (size_t i = 0; i < sizeof copy; i++) copy[i] = bytes[i];
    memcpy(&value, copy, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return value == 0x01020304U ? NULL : "built for big endian, and the machine is not";
#elif __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return value == 0x04030201U ? NULL : "built for little endian, and the machine is not";
#else
#error "neither big nor little endian"
#endif
}

static const char *test_unaligned_loads(void) {
    volatile unsigned char source[24];
    unsigned char bytes[24];
    for (unsigned i = 0; i < sizeof source; i++) source[i] = (unsigned char)(0xF0U + i);
    for (unsigned i = 0; i < sizeof bytes; i++) bytes[i] = source[i];
    for (unsigned at = 0; at < 16; at++) {
        uint64_t value, want = 0;
        memcpy(&value, bytes + at, sizeof value);
        for (unsigned i = 0; i < sizeof value; i++) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            want = want << 8 | source[at + i];
#else
            want |= (uint64_t)source[at + i] << (8 * i);
#endif
        }
        if (value != want) return "eight bytes copied from an odd address are not what was there";
    }
    return NULL;
}

static uint32_t additions;

static void *add(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < ADDITIONS; i++) __atomic_fetch_add(&additions, 1, __ATOMIC_RELAXED);
    return NULL;
}

static const char *test_atomics(void) {
    pthread_t adders[ADDERS];
    unsigned started = 0;
    __atomic_store_n(&additions, 0, __ATOMIC_RELAXED);
    while (started < ADDERS && pthread_create(&adders[started], NULL, add, NULL) == 0) started++;
    for (unsigned i = 0; i < started; i++) pthread_join(adders[i], NULL);
    if (started < ADDERS) return "no second thread can be started";
    if (__atomic_load_n(&additions, __ATOMIC_ACQUIRE) != ADDERS * ADDITIONS) return "additions of two threads were lost";
    return NULL;
}

static const char *test_clock(void) {
    struct timespec before, after;
    if (clock_gettime(CLOCK_MONOTONIC, &before) != 0) return "the kernel has no CLOCK_MONOTONIC";
    for (unsigned i = 0; i < 1000; i++) {
        if (clock_gettime(CLOCK_MONOTONIC, &after) != 0) return "the kernel has no CLOCK_MONOTONIC";
        if (after.tv_sec < before.tv_sec || (after.tv_sec == before.tv_sec && after.tv_nsec < before.tv_nsec)) {
            return "CLOCK_MONOTONIC goes back";
        }
        before = after;
    }
    return NULL;
}

static const struct {
    const char *name;
    part_test test;
} parts[] = {
    {"byte order", test_byte_order},
    {"unaligned loads", test_unaligned_loads},
    {"atomics", test_atomics},
    {"clock", test_clock},
    {"AEAD", ea_aead_self_test},
    {"rings", ea_test_ring},
    {"replay window", ea_test_window},
    {"tables", ea_test_tables},
    {"offload", ea_test_offload},
    {"passage", ea_test_passage},
};

const char *ea_version(void) {
    return EA_VERSION;
}

int ea_self_test(char *why, size_t why_bytes) {
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const char *wrong = parts[i].test();
        if (wrong != NULL) {
            if (why_bytes > 0) snprintf(why, why_bytes, "%s: %s", parts[i].name, wrong);
            return (int)i + 1;
        }
    }
    return 0;
}
