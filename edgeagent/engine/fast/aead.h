/* ChaCha20-Poly1305 (RFC 8439) for WireGuard transport messages (paper 5.4.6), by whichever provider is fastest here.
 *
 * A message's nonce is 4 zero bytes and its 64-bit little-endian counter; there is no additional data. Messages are handled in
 * batches of up to EA_AEAD_BATCH_MAX, in place, at any address, of up to EA_AEAD_BYTES_MAX bytes each, with 16 bytes of tag
 * behind the text.
 *
 * Providers: "lanes" is our own, which works on several messages side by side in the lanes of vector registers, by the widest
 * registers that this CPU has ("lanes-512", "lanes-256", "lanes-128" force a width); "portable" is scalar C; "libcrypto",
 * "libgcrypt", "libsodium", "nettle" are loaded when they are asked for; "af_alg" is the kernel's.
 *
 * A provider belongs to one thread. Nothing but ea_aead_new allocates on our side (libcrypto and af_alg may, inside). */
#ifndef EA_AEAD_H
#define EA_AEAD_H

#include <stddef.h>
#include <stdint.h>

#ifndef EA_API
#define EA_API __attribute__((visibility("default")))
#endif

#define EA_AEAD_BATCH_MAX 64
#define EA_AEAD_BYTES_MAX 65536u /* of text: the largest IP packet, padded to 16 */
#define EA_AEAD_TAG 16

struct ea_aead;

/* The names that ea_aead_new takes, by number from 0; NULL after the last. */
EA_API const char *ea_aead_provider(unsigned number);

/* A provider that has passed its known-answer test. NULL when it is not there or gives wrong answers: `why` (NUL-terminated,
 * cut at why_bytes, which is at least 1) says it in words. Takes a few milliseconds. One thread at a time may call it. */
EA_API struct ea_aead *ea_aead_new(const char *name, char *why, size_t why_bytes);
EA_API void ea_aead_free(struct ea_aead *aead);

/* The name that it was asked for by, and what is behind it: a library's version, a kernel's release, the width of the lanes. */
EA_API const char *ea_aead_name(const struct ea_aead *aead);
EA_API const char *ea_aead_version(const struct ea_aead *aead);

/* n ≤ EA_AEAD_BATCH_MAX messages under one key, message i with counter first + i: text[i], bytes[i] long, is encrypted in
 * place and its tag written behind it. */
EA_API void ea_aead_seal(struct ea_aead *aead, const uint8_t key[32], uint64_t first, uint8_t *const text[],
                         const uint32_t bytes[], unsigned n);

/* n ≤ EA_AEAD_BATCH_MAX messages under one key, with any counters. bytes[i] is without the tag, which follows the text and is
 * left as it is. ok[i] = 1 and text[i] is the plaintext, or ok[i] = 0 and text[i] is anything, never to be used. */
EA_API void ea_aead_open(struct ea_aead *aead, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                         const uint32_t bytes[], unsigned n, uint8_t ok[]);

/* Nanoseconds of this thread's CPU time for each message of `bytes` sealed under new counters in batches of `batch`: the best of
 * several rounds that take `milliseconds` together. A negative number when memory is short or an argument is out of range. */
EA_API double ea_aead_measure(struct ea_aead *aead, uint32_t bytes, unsigned batch, unsigned milliseconds);

/* The known-answer test of our own code, in each width that this CPU has, for ea_self_test. NULL, or what is wrong. */
const char *ea_aead_self_test(void);

#endif
