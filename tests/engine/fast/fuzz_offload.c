/* Fuzz target: arbitrary bytes into split and coalesce; what comes out stays within its bounds.
 *
 * The first byte chooses. Odd: the rest is a frame from the TUN. Even: the rest is packets, each behind two bytes of
 * length, for one or more batches.
 */
#include "../../../edgeagent/engine/fast/checksum.h"
#include "../../../edgeagent/engine/fast/offload.h"

#include <limits.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds)
        abort();
}

/* Exactly as long as it is, so that a sanitizer sees each byte read or written beyond. */
static uint8_t *exact(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    require(copy != NULL);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

static void check_headers(const uint8_t *packet, uint32_t bytes)
{
    if (packet[0] >> 4 == 4) {
        require(ea_get16(packet + 2) == bytes);
        require(!ea_reduce(ea_sum(packet, (packet[0] & 15U) * 4)));
    } else {
        require(ea_get16(packet + 4) == bytes - 40);
    }
}

static void try_split(const uint8_t *data, size_t size)
{
    uint8_t *frame = exact(data, size);
    struct ea_split s;

    if (ea_split_begin(&s, frame, size) == EA_SPLIT_OK) {
        uint64_t payload = 0;

        require(s.count >= 1 && s.count <= EA_SEGMENTS_MAX && s.packet_bytes <= EA_IP_MAX);
        require(s.last_bytes <= s.packet_bytes);
        for (uint32_t i = 0; i < s.count; i++) {
            uint32_t expected = i + 1 < s.count ? s.packet_bytes : s.last_bytes;
            uint8_t *out = exact(frame, expected);

            require(ea_split_next(&s, out) == expected);
            payload += expected - s.body;
            if (s.gso_bytes)
                check_headers(out, expected);
            free(out);
        }
        require(s.body + payload == size - EA_VNET_BYTES);
        require(!ea_split_next(&s, NULL));
    }
    free(frame);
}

struct seen {
    unsigned frames;
    uint64_t payload;
};

static void see(void *context, const struct iovec *iov, int n_iov)
{
    struct seen *seen = context;
    struct ea_vnet vnet;
    size_t total = 0;

    require(n_iov >= 2 && n_iov <= IOV_MAX && iov[0].iov_len == EA_VNET_BYTES);
    memcpy(&vnet, iov[0].iov_base, sizeof vnet);
    for (int i = 1; i < n_iov; i++) {
        uint8_t *read = exact(iov[i].iov_base, iov[i].iov_len);

        total += iov[i].iov_len;
        free(read);
    }
    require(total <= EA_IP_MAX);
    require(vnet.kind ? n_iov > 2 && total > vnet.header_bytes : n_iov == 2);
    if (vnet.kind)
        check_headers(iov[1].iov_base, (uint32_t)total);
    seen->frames++;
    seen->payload += total + (size_t)(n_iov - 2) * vnet.header_bytes;
}

static void try_coalesce(const uint8_t *data, size_t size, bool udp, bool verify)
{
    static struct ea_coalesce c;
    static uint8_t *packets[EA_COALESCE_PACKETS];
    unsigned n = 0;
    uint64_t bytes = 0;
    struct seen seen = {0};

    ea_coalesce_begin(&c, udp, verify);
    while (size >= 2) {
        size_t length = ea_get16(data);
        uint8_t *packet;

        data += 2;
        size -= 2;
        length = length < size ? length : size;
        packet = exact(data, length);
        if (!ea_coalesce_add(&c, packet, (uint32_t)length)) {
            ea_coalesce_flush(&c, see, &seen);
            while (n)
                free(packets[--n]);
            require(ea_coalesce_add(&c, packet, (uint32_t)length));
        }
        packets[n++] = packet;
        bytes += length;
        data += length;
        size -= length;
    }
    ea_coalesce_flush(&c, see, &seen);
    require(seen.payload == bytes);
    while (n)
        free(packets[--n]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    if (data[0] & 1)
        try_split(data + 1, size - 1);
    else
        try_coalesce(data + 1, size - 1, data[0] & 2, data[0] & 4);
    return 0;
}
