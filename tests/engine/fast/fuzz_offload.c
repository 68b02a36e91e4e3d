/* Fuzz target: arbitrary bytes into split and coalesce; what comes out stays within its bounds.
 *
 * The first byte chooses. Odd: the rest is a frame from the TUN. Even: the rest is packets, each behind two bytes of
 * length, for one or more batches.
 */
#include "../../../edgeagent/engine/fast/checksum.h"
#include "../../../edgeagent/engine/fast/offload.h"

#include <limits.h>
#include <stdlib.h>

#include "fuzz.h"

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

#ifndef FUZZ_WITHOUT_VALID
/* Writes a TCP segment or datagram of `payload` bytes, all of them `port`. Returns its length. */
static size_t put_packet(uint8_t *at, unsigned six, unsigned udp, size_t payload, uint32_t seq, unsigned port)
{
    size_t ip = six ? 40 : 20, header = udp ? 8 : 20, total = ip + header + payload;
    uint8_t *transport = at + ip;
    uint64_t addresses;

    memset(at, 0, ip + header);
    memset(transport + header, (int)port & 0xFF, payload);
    if (six) {
        at[0] = 0x60;
        ea_put16(at + 4, (uint32_t)(total - 40));
        at[6] = udp ? 17 : 6;
        at[7] = 64;
        at[8] = at[24] = 0xFD;
        addresses = ea_sum(at + 8, 32);
    } else {
        at[0] = 0x45;
        ea_put16(at + 2, (uint32_t)total);
        at[6] = 0x40; /* DF */
        at[8] = 64;
        at[9] = udp ? 17 : 6;
        at[12] = at[16] = 10;
        ea_put16(at + 10, ea_negate(ea_sum(at, 20)));
        addresses = ea_sum(at + 12, 8);
    }
    ea_put16(transport, port);
    if (udp) {
        ea_put16(transport + 4, (uint32_t)(total - ip));
    } else {
        ea_put32(transport + 4, seq);
        transport[12] = 0x50;
        transport[13] = 0x10; /* ACK */
    }
    ea_put16(transport + (udp ? 6 : 16),
             ea_negate(addresses + (udp ? 17 : 6) + (total - ip) + ea_sum(transport, total - ip)));
    return total;
}

static size_t make_frame(uint8_t *out)
{
    unsigned six = fuzz_draw() & 1, udp = fuzz_draw() & 1;
    size_t payload = fuzz_below(fuzz_draw() & 1 ? 64000 : 3000) + 1;
    uint32_t seq = (uint32_t)fuzz_draw();
    unsigned port = (unsigned)fuzz_below(256);
    uint16_t header = (uint16_t)((six ? 40 : 20) + (udp ? 8 : 20));
    uint16_t fields[4] = {header, (uint16_t)(fuzz_below(1500) + 1), six ? 40 : 20, udp ? 6 : 16};

    out[0] = 1;
    out[1] = 1;
    out[2] = udp ? 5 : six ? 4 : 1;
    if (!(fuzz_draw() & 3)) {
        out[1] = fuzz_draw() & 1;
        out[2] = 0; /* not to be cut; its checksum perhaps to be finished */
    }
    memcpy(out + 3, fields, sizeof fields);
    return 11 + put_packet(out + 11, six, udp, payload, seq, port);
}

static size_t make_batch(uint8_t *out, size_t size_max)
{
    unsigned six = fuzz_draw() & 1, udp = fuzz_draw() & 1, ports = (unsigned)fuzz_below(fuzz_draw() & 7 ? 3 : 256) + 1;
    size_t payload = fuzz_below(200) + 1, count = fuzz_below(fuzz_draw() & 7 ? 40 : 1500) + 1, at = 1;
    uint32_t seqs[256] = {0};

    out[0] = (uint8_t)(fuzz_draw() << 1);
    for (; count && at + 2 + 60 + payload < size_max; count--) {
        unsigned port = (unsigned)fuzz_below(ports);
        size_t size = put_packet(out + at + 2, six, udp, payload, seqs[port], port);

        seqs[port] += (uint32_t)payload;
        ea_put16(out + at, (uint32_t)size);
        at += 2 + size;
    }
    return at;
}

size_t fuzz_valid(uint8_t *out, size_t size_max)
{
    require(size_max >= 1 << 16);
    return fuzz_draw() & 1 ? make_frame(out) : make_batch(out, size_max);
}
#endif
