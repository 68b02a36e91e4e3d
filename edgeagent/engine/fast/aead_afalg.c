/* The kernel's AEAD by sockets of the family AF_ALG (Linux, Documentation/crypto/userspace-if.rst).
 *
 * Two system calls and copies for each message: slow, but on a SoC with a crypto engine it may be all there is. A key belongs to
 * a pair of sockets; KEYS_MAX of them are kept, the one used longest ago goes. What the kernel refuses is done in scalar C. */
#include <errno.h>
#include <linux/if_alg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "aead_impl.h"

#ifndef SOL_ALG
#define SOL_ALG 279
#endif
#ifndef AF_ALG
#define AF_ALG 38
#endif
/* Since Linux 3.19 and 4.9; headers may be older than the kernel. */
#define SET_AEAD_ASSOCLEN 4
#define SET_AEAD_AUTHSIZE 5

#define KEYS_MAX 4
#define NONCE 12

struct keyed {
    int listener, channel; /* -1, -1: free */
    uint64_t used;
    uint8_t key[32];
};

struct af_alg {
    struct keyed keyed[KEYS_MAX];
    uint64_t uses;
    uint8_t out[EA_AEAD_BYTES_MAX + EA_AEAD_TAG];
};

static void forget(struct keyed *keyed)
{
    if (keyed->channel >= 0)
        close(keyed->channel);
    if (keyed->listener >= 0)
        close(keyed->listener);
    keyed->channel = keyed->listener = -1;
    ea_wipe(keyed->key, sizeof keyed->key);
}

/* 0, or what the kernel answers. */
static int prepare(struct keyed *keyed, const uint8_t key[32])
{
    struct sockaddr_alg address = {.salg_family = AF_ALG, .salg_type = "aead", .salg_name = "rfc7539(chacha20,poly1305)"};
    keyed->listener = socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (keyed->listener >= 0 && bind(keyed->listener, (struct sockaddr *)&address, sizeof address) == 0 &&
        setsockopt(keyed->listener, SOL_ALG, ALG_SET_KEY, key, 32) == 0 &&
        setsockopt(keyed->listener, SOL_ALG, SET_AEAD_AUTHSIZE, NULL, EA_AEAD_TAG) == 0)
        keyed->channel = accept4(keyed->listener, NULL, NULL, SOCK_CLOEXEC);
    if (keyed->channel >= 0) {
        memcpy(keyed->key, key, 32);
        return 0;
    }
    int error = errno;
    forget(keyed);
    return error;
}

static struct keyed *keyed_for(struct af_alg *alg, const uint8_t key[32])
{
    struct keyed *oldest = &alg->keyed[0];
    for (unsigned i = 0; i < KEYS_MAX; i++) {
        struct keyed *keyed = &alg->keyed[i];
        uint32_t difference = 0;
        for (int b = 0; b < 32; b++)
            difference |= (uint32_t)(keyed->key[b] ^ key[b]);
        if (keyed->channel >= 0 && difference == 0) {
            keyed->used = ++alg->uses;
            return keyed;
        }
        if (keyed->used < oldest->used)
            oldest = keyed;
    }
    forget(oldest);
    oldest->used = ++alg->uses;
    return prepare(oldest, key) == 0 ? oldest : NULL;
}

/* A control message at `at`, and where the next one goes. Not by CMSG_NXTHDR, which warns where it is musl's. */
static uint8_t *control_message(uint8_t *at, int type, const void *data, size_t bytes)
{
    struct cmsghdr header = {.cmsg_level = SOL_ALG, .cmsg_type = type};
    header.cmsg_len = (__typeof__(header.cmsg_len))CMSG_LEN(bytes); /* size_t, and socklen_t to musl */
    memcpy(at, &header, sizeof header);
    memcpy(at + CMSG_LEN(0), data, bytes);
    return at + CMSG_SPACE(bytes);
}

/* One message through the kernel into alg->out. 1, or 0: not done (an error of the system) or not authentic, which errno tells. */
static int pass(struct af_alg *alg, int channel, uint32_t operation, uint64_t counter, uint8_t *text, uint32_t in, uint32_t out)
{
    uint8_t control[CMSG_SPACE(4) + CMSG_SPACE(4) + CMSG_SPACE(4 + NONCE)] __attribute__((aligned(8))) = {0};
    uint8_t nonce[4 + NONCE] = {0}; /* struct af_alg_iv: its length in the machine's order, then itself */
    const uint32_t associated = 0, nonce_bytes = NONCE;
    memcpy(nonce, &nonce_bytes, 4);
    ea_store64(nonce + 8, counter);
    uint8_t *next = control_message(control, ALG_SET_OP, &operation, 4);
    next = control_message(next, SET_AEAD_ASSOCLEN, &associated, 4);
    control_message(next, ALG_SET_IV, nonce, sizeof nonce);
    struct iovec vector = {.iov_base = text, .iov_len = in};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    errno = 0;
    if (sendmsg(channel, &message, 0) != (ssize_t)in)
        return 0;
    return read(channel, alg->out, out) == (ssize_t)out;
}

static void *af_alg_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static const uint8_t key[32];
    (void)name;
    struct af_alg *alg = calloc(1, sizeof *alg);
    if (alg == NULL) {
        ea_aead_say(why, why_bytes, "out of memory");
        return NULL;
    }
    for (unsigned i = 0; i < KEYS_MAX; i++)
        alg->keyed[i].listener = alg->keyed[i].channel = -1;
    int error = prepare(&alg->keyed[0], key);
    if (error) {
        ea_aead_say(why, why_bytes, "the kernel has no rfc7539(chacha20,poly1305) for AF_ALG: %s", strerror(error));
        free(alg);
        return NULL;
    }
    /* One that takes a key and then fails each message would be scalar C under another's name. */
    if (!pass(alg, alg->keyed[0].channel, ALG_OP_ENCRYPT, 0, alg->out, 16, 16 + EA_AEAD_TAG)) {
        ea_aead_say(why, why_bytes, "the kernel takes the key and refuses a message: %s", strerror(errno));
        forget(&alg->keyed[0]);
        free(alg);
        return NULL;
    }
    struct utsname kernel;
    snprintf(version, EA_AEAD_VERSION_BYTES, "Linux %.64s", uname(&kernel) == 0 ? kernel.release : "?");
    return alg;
}

static void af_alg_stop(void *state)
{
    struct af_alg *alg = state;
    for (unsigned i = 0; i < KEYS_MAX; i++)
        forget(&alg->keyed[i]);
    ea_wipe(alg, sizeof *alg);
    free(alg);
}

static void af_alg_seal(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                        unsigned n)
{
    struct af_alg *alg = state;
    struct keyed *keyed = keyed_for(alg, key);
    for (unsigned i = 0; i < n; i++) {
        uint32_t sealed = bytes[i] + EA_AEAD_TAG;
        /* An empty message is none to the kernel: sendmsg of nothing begins no operation. */
        if (keyed != NULL && bytes[i] > 0 && pass(alg, keyed->channel, ALG_OP_ENCRYPT, first + i, text[i], bytes[i], sealed)) {
            memcpy(text[i], alg->out, sealed);
            continue;
        }
        if (keyed != NULL && bytes[i] > 0) {
            forget(keyed); /* half of an operation may be left in it */
            keyed = NULL;
        }
        ea_portable_seal_one(key, first + i, text[i], bytes[i]);
    }
}

static void af_alg_open(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                        const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    struct af_alg *alg = state;
    struct keyed *keyed = keyed_for(alg, key);
    for (unsigned i = 0; i < n; i++) {
        uint32_t sealed = bytes[i] + EA_AEAD_TAG;
        ok[i] = 0;
        if (keyed != NULL && bytes[i] > 0) {
            ok[i] = (uint8_t)pass(alg, keyed->channel, ALG_OP_DECRYPT, counter[i], text[i], sealed, bytes[i]);
            if (ok[i])
                memcpy(text[i], alg->out, bytes[i]);
            if (ok[i] || errno == EBADMSG)
                continue;
            forget(keyed);
            keyed = NULL;
        }
        ok[i] = ea_portable_open_one(key, counter[i], text[i], bytes[i]);
    }
}

const struct ea_aead_ops ea_aead_af_alg = {af_alg_start, af_alg_stop, af_alg_seal, af_alg_open};
