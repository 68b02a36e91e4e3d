/* AEAD providers that are libraries of the system, loaded when they are asked for. No header of theirs is needed to build this:
 * what is used is declared here, as their manuals have it. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "aead_impl.h"

struct symbol {
    const char *name;
    void *slot; /* a pointer to a function pointer */
};

/* The first library of `names` (NULL behind the last) that has all `symbols`. It is kept loaded: some libraries leave handlers
 * behind that run at exit. */
static int load(const char *const names[], const struct symbol symbols[], unsigned count, char *why, size_t why_bytes)
{
    void *library = NULL;
    for (unsigned i = 0; names[i] != NULL && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        ea_aead_say(why, why_bytes, "no %s on this system", names[0]);
        return -1;
    }
    for (unsigned i = 0; i < count; i++) {
        void *found = dlsym(library, symbols[i].name);
        if (found == NULL) {
            ea_aead_say(why, why_bytes, "%s has no %s", names[0], symbols[i].name);
            dlclose(library);
            return -1;
        }
        memcpy(symbols[i].slot, &found, sizeof found);
    }
    return 0;
}
#define LOAD(names, symbols) load(names, symbols, (unsigned)(sizeof(symbols) / sizeof(symbols)[0]), why, why_bytes)

static void nonce_of(uint8_t nonce[12], uint64_t counter)
{
    memset(nonce, 0, 4);
    ea_store64(nonce + 4, counter);
}

static uint32_t differ(const uint8_t *a, const uint8_t *b, size_t bytes)
{
    uint32_t difference = 0;
    for (size_t i = 0; i < bytes; i++)
        difference |= (uint32_t)(a[i] ^ b[i]);
    return difference;
}

/* libcrypto, of OpenSSL 1.1 and 3 */

#define EVP_CTRL_AEAD_GET_TAG 0x10
#define EVP_CTRL_AEAD_SET_TAG 0x11

static struct {
    void *(*ctx_new)(void);
    void (*ctx_free)(void *ctx);
    const void *(*cipher)(void);
    int (*init)(void *ctx, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int encrypts);
    int (*update)(void *ctx, uint8_t *out, int *out_bytes, const uint8_t *in, int in_bytes);
    int (*final)(void *ctx, uint8_t *out, int *out_bytes);
    int (*ctrl)(void *ctx, int type, int number, void *at);
    const char *(*version)(int what);
} evp;

/* One context for each direction; the key is given again only when it is another. */
struct libcrypto {
    void *ctx[2];
    int keyed[2];
    uint8_t key[2][32];
};

static void libcrypto_stop(void *state)
{
    struct libcrypto *crypto = state;
    for (int i = 0; i < 2; i++)
        if (crypto->ctx[i] != NULL)
            evp.ctx_free(crypto->ctx[i]);
    ea_wipe(crypto, sizeof *crypto);
    free(crypto);
}

static void *libcrypto_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.1.1", NULL};
    const struct symbol symbols[] = {
        {"EVP_CIPHER_CTX_new", &evp.ctx_new}, {"EVP_CIPHER_CTX_free", &evp.ctx_free},
        {"EVP_chacha20_poly1305", &evp.cipher}, {"EVP_CipherInit_ex", &evp.init}, {"EVP_CipherUpdate", &evp.update},
        {"EVP_CipherFinal_ex", &evp.final}, {"EVP_CIPHER_CTX_ctrl", &evp.ctrl}, {"OpenSSL_version", &evp.version},
    };
    (void)name;
    if (LOAD(names, symbols) < 0)
        return NULL;
    struct libcrypto *crypto = calloc(1, sizeof *crypto);
    if (crypto == NULL) {
        ea_aead_say(why, why_bytes, "out of memory");
        return NULL;
    }
    const void *cipher = evp.cipher();
    for (int i = 0; i < 2; i++) {
        crypto->ctx[i] = evp.ctx_new();
        if (cipher == NULL || crypto->ctx[i] == NULL || evp.init(crypto->ctx[i], cipher, NULL, NULL, NULL, i) != 1) {
            ea_aead_say(why, why_bytes, "libcrypto refuses ChaCha20-Poly1305");
            libcrypto_stop(crypto);
            return NULL;
        }
    }
    snprintf(version, EA_AEAD_VERSION_BYTES, "%s", evp.version(0));
    return crypto;
}

static int libcrypto_begin(struct libcrypto *crypto, int encrypts, const uint8_t key[32], uint64_t counter)
{
    uint8_t nonce[12];
    nonce_of(nonce, counter);
    int same = crypto->keyed[encrypts] && differ(crypto->key[encrypts], key, 32) == 0;
    if (!same)
        memcpy(crypto->key[encrypts], key, 32);
    crypto->keyed[encrypts] = evp.init(crypto->ctx[encrypts], NULL, NULL, same ? NULL : key, nonce, encrypts) == 1;
    return crypto->keyed[encrypts];
}

static void libcrypto_seal(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                           unsigned n)
{
    struct libcrypto *crypto = state;
    for (unsigned i = 0; i < n; i++) {
        int out = 0;
        uint8_t none[16];
        if (!libcrypto_begin(crypto, 1, key, first + i)) { /* it allocates, and is out of memory */
            ea_portable_seal_one(key, first + i, text[i], bytes[i]);
            continue;
        }
        if (bytes[i])
            evp.update(crypto->ctx[1], text[i], &out, text[i], (int)bytes[i]);
        evp.final(crypto->ctx[1], none, &out);
        evp.ctrl(crypto->ctx[1], EVP_CTRL_AEAD_GET_TAG, EA_AEAD_TAG, text[i] + bytes[i]);
    }
}

static void libcrypto_open(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                           const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    struct libcrypto *crypto = state;
    for (unsigned i = 0; i < n; i++) {
        int out = 0;
        uint8_t none[16];
        if (!libcrypto_begin(crypto, 0, key, counter[i])) {
            ok[i] = ea_portable_open_one(key, counter[i], text[i], bytes[i]);
            continue;
        }
        int good = evp.ctrl(crypto->ctx[0], EVP_CTRL_AEAD_SET_TAG, EA_AEAD_TAG, text[i] + bytes[i]) == 1;
        if (bytes[i])
            good &= evp.update(crypto->ctx[0], text[i], &out, text[i], (int)bytes[i]) == 1;
        ok[i] = good && evp.final(crypto->ctx[0], none, &out) == 1;
    }
}

const struct ea_aead_ops ea_aead_libcrypto = {libcrypto_start, libcrypto_stop, libcrypto_seal, libcrypto_open};

/* libgcrypt */

#define GCRY_CIPHER_CHACHA20 316
#define GCRY_CIPHER_MODE_POLY1305 10
#define GCRYCTL_DISABLE_SECMEM 37
#define GCRYCTL_INITIALIZATION_FINISHED 38
#define GCRYCTL_INITIALIZATION_FINISHED_P 39

static struct {
    const char *(*check_version)(const char *wanted);
    unsigned (*control)(int command, ...);
    unsigned (*open)(void **handle, int algorithm, int mode, unsigned flags);
    void (*close)(void *handle);
    unsigned (*setkey)(void *handle, const void *key, size_t bytes);
    unsigned (*setiv)(void *handle, const void *iv, size_t bytes);
    unsigned (*encrypt)(void *handle, void *out, size_t out_bytes, const void *in, size_t in_bytes);
    unsigned (*decrypt)(void *handle, void *out, size_t out_bytes, const void *in, size_t in_bytes);
    unsigned (*gettag)(void *handle, void *tag, size_t bytes);
    unsigned (*checktag)(void *handle, const void *tag, size_t bytes);
} gcry;

struct libgcrypt {
    void *handle;
    int keyed;
    uint8_t key[32];
};

static void libgcrypt_stop(void *state)
{
    struct libgcrypt *crypt = state;
    gcry.close(crypt->handle);
    ea_wipe(crypt, sizeof *crypt);
    free(crypt);
}

static void *libgcrypt_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static const char *const names[] = {"libgcrypt.so.20", NULL};
    const struct symbol symbols[] = {
        {"gcry_check_version", &gcry.check_version}, {"gcry_control", &gcry.control}, {"gcry_cipher_open", &gcry.open},
        {"gcry_cipher_close", &gcry.close}, {"gcry_cipher_setkey", &gcry.setkey}, {"gcry_cipher_setiv", &gcry.setiv},
        {"gcry_cipher_encrypt", &gcry.encrypt}, {"gcry_cipher_decrypt", &gcry.decrypt},
        {"gcry_cipher_gettag", &gcry.gettag}, {"gcry_cipher_checktag", &gcry.checktag},
    };
    (void)name;
    if (LOAD(names, symbols) < 0)
        return NULL;
    const char *found = gcry.check_version(NULL); /* which is its initialisation, too */
    if (!gcry.control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
        gcry.control(GCRYCTL_DISABLE_SECMEM, 0);
        gcry.control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    }
    struct libgcrypt *crypt = calloc(1, sizeof *crypt);
    if (crypt == NULL || gcry.open(&crypt->handle, GCRY_CIPHER_CHACHA20, GCRY_CIPHER_MODE_POLY1305, 0) != 0) {
        ea_aead_say(why, why_bytes, "libgcrypt refuses ChaCha20-Poly1305");
        free(crypt);
        return NULL;
    }
    snprintf(version, EA_AEAD_VERSION_BYTES, "libgcrypt %s", found);
    return crypt;
}

static int libgcrypt_begin(struct libgcrypt *crypt, const uint8_t key[32], uint64_t counter)
{
    uint8_t nonce[12];
    nonce_of(nonce, counter);
    if (!crypt->keyed || differ(crypt->key, key, 32) != 0) {
        memcpy(crypt->key, key, 32);
        crypt->keyed = gcry.setkey(crypt->handle, key, 32) == 0;
    }
    return crypt->keyed && gcry.setiv(crypt->handle, nonce, sizeof nonce) == 0;
}

static void libgcrypt_seal(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                           unsigned n)
{
    struct libgcrypt *crypt = state;
    for (unsigned i = 0; i < n; i++) {
        if (!libgcrypt_begin(crypt, key, first + i)) {
            ea_portable_seal_one(key, first + i, text[i], bytes[i]);
            continue;
        }
        gcry.encrypt(crypt->handle, text[i], bytes[i], NULL, 0);
        gcry.gettag(crypt->handle, text[i] + bytes[i], EA_AEAD_TAG);
    }
}

static void libgcrypt_open(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                           const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    struct libgcrypt *crypt = state;
    for (unsigned i = 0; i < n; i++)
        if (libgcrypt_begin(crypt, key, counter[i]))
            ok[i] = gcry.decrypt(crypt->handle, text[i], bytes[i], NULL, 0) == 0 &&
                    gcry.checktag(crypt->handle, text[i] + bytes[i], EA_AEAD_TAG) == 0;
        else
            ok[i] = ea_portable_open_one(key, counter[i], text[i], bytes[i]);
}

const struct ea_aead_ops ea_aead_libgcrypt = {libgcrypt_start, libgcrypt_stop, libgcrypt_seal, libgcrypt_open};

/* libsodium */

static struct {
    int (*init)(void);
    const char *(*version)(void);
    int (*encrypt)(uint8_t *out, uint8_t *tag, unsigned long long *tag_bytes, const uint8_t *text, unsigned long long bytes,
                   const uint8_t *ad, unsigned long long ad_bytes, const uint8_t *secret, const uint8_t *nonce,
                   const uint8_t *key);
    int (*decrypt)(uint8_t *out, uint8_t *secret, const uint8_t *text, unsigned long long bytes, const uint8_t *tag,
                   const uint8_t *ad, unsigned long long ad_bytes, const uint8_t *nonce, const uint8_t *key);
} sodium;

static void nothing_to_stop(void *state)
{
    (void)state;
}

static void *libsodium_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static const char *const names[] = {"libsodium.so.23", "libsodium.so.26", NULL};
    const struct symbol symbols[] = {
        {"sodium_init", &sodium.init}, {"sodium_version_string", &sodium.version},
        {"crypto_aead_chacha20poly1305_ietf_encrypt_detached", &sodium.encrypt},
        {"crypto_aead_chacha20poly1305_ietf_decrypt_detached", &sodium.decrypt},
    };
    (void)name;
    if (LOAD(names, symbols) < 0)
        return NULL;
    if (sodium.init() < 0) {
        ea_aead_say(why, why_bytes, "libsodium does not initialise");
        return NULL;
    }
    snprintf(version, EA_AEAD_VERSION_BYTES, "libsodium %s", sodium.version());
    return &sodium;
}

static void libsodium_seal(void *state, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                           unsigned n)
{
    (void)state;
    uint8_t nonce[12];
    for (unsigned i = 0; i < n; i++) {
        nonce_of(nonce, first + i);
        sodium.encrypt(text[i], text[i] + bytes[i], NULL, text[i], bytes[i], NULL, 0, NULL, nonce, key);
    }
}

static void libsodium_open(void *state, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                           const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    (void)state;
    uint8_t nonce[12];
    for (unsigned i = 0; i < n; i++) {
        nonce_of(nonce, counter[i]);
        ok[i] = sodium.decrypt(text[i], NULL, text[i], bytes[i], text[i] + bytes[i], NULL, 0, nonce, key) == 0;
    }
}

const struct ea_aead_ops ea_aead_libsodium = {libsodium_start, nothing_to_stop, libsodium_seal, libsodium_open};

/* Nettle 3 */

#define NETTLE_CTX_BYTES 1024 /* struct chacha_poly1305_ctx has about 250 */

static struct {
    int (*major)(void);
    int (*minor)(void);
    void (*set_key)(void *ctx, const uint8_t *key);
    void (*set_nonce)(void *ctx, const uint8_t *nonce);
    void (*encrypt)(void *ctx, size_t bytes, uint8_t *out, const uint8_t *in);
    void (*decrypt)(void *ctx, size_t bytes, uint8_t *out, const uint8_t *in);
    void (*digest)(void *ctx, size_t bytes, uint8_t *tag);
} nettle;

static void nettle_stop(void *state)
{
    ea_wipe(state, NETTLE_CTX_BYTES);
    free(state);
}

static void *nettle_start(const char *name, char version[EA_AEAD_VERSION_BYTES], char *why, size_t why_bytes)
{
    static const char *const names[] = {"libnettle.so.8", NULL};
    const struct symbol symbols[] = {
        {"nettle_version_major", &nettle.major}, {"nettle_version_minor", &nettle.minor},
        {"nettle_chacha_poly1305_set_key", &nettle.set_key}, {"nettle_chacha_poly1305_set_nonce", &nettle.set_nonce},
        {"nettle_chacha_poly1305_encrypt", &nettle.encrypt}, {"nettle_chacha_poly1305_decrypt", &nettle.decrypt},
        {"nettle_chacha_poly1305_digest", &nettle.digest},
    };
    (void)name;
    if (LOAD(names, symbols) < 0)
        return NULL;
    void *ctx = aligned_alloc(64, NETTLE_CTX_BYTES);
    if (ctx == NULL)
        ea_aead_say(why, why_bytes, "out of memory");
    snprintf(version, EA_AEAD_VERSION_BYTES, "nettle %d.%d", nettle.major(), nettle.minor());
    return ctx;
}

static void nettle_seal(void *ctx, const uint8_t key[32], uint64_t first, uint8_t *const text[], const uint32_t bytes[],
                        unsigned n)
{
    uint8_t nonce[12];
    nettle.set_key(ctx, key);
    for (unsigned i = 0; i < n; i++) {
        nonce_of(nonce, first + i);
        nettle.set_nonce(ctx, nonce);
        nettle.encrypt(ctx, bytes[i], text[i], text[i]);
        nettle.digest(ctx, EA_AEAD_TAG, text[i] + bytes[i]);
    }
}

static void nettle_open(void *ctx, const uint8_t key[32], const uint64_t counter[], uint8_t *const text[],
                        const uint32_t bytes[], unsigned n, uint8_t ok[])
{
    uint8_t nonce[12], tag[EA_AEAD_TAG];
    nettle.set_key(ctx, key);
    for (unsigned i = 0; i < n; i++) {
        nonce_of(nonce, counter[i]);
        nettle.set_nonce(ctx, nonce);
        nettle.decrypt(ctx, bytes[i], text[i], text[i]);
        nettle.digest(ctx, EA_AEAD_TAG, tag);
        ok[i] = ea_tags_equal(tag, text[i] + bytes[i]);
    }
}

const struct ea_aead_ops ea_aead_nettle = {nettle_start, nettle_stop, nettle_seal, nettle_open};
