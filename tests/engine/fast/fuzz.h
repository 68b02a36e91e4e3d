/* Between a fuzz target and its driver: libFuzzer, or fuzz_main.c. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* The target. Returns 0; what is wrong it says with abort(), or a sanitizer does. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The target's too, if it likes: writes a valid input of at most `size_max` bytes, made with fuzz_draw and fuzz_below.
 * Returns its length. Without a clue chance finds no second packet of a flow. Left out where libFuzzer drives. */
size_t fuzz_valid(uint8_t *out, size_t size_max);

/* The driver's: 64 random bits, and a number below `end`, which is not 0. */
uint64_t fuzz_draw(void);
size_t fuzz_below(size_t end);

#endif
