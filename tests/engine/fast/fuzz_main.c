/* Drives a fuzz target without libFuzzer: fuzz_main [ROUNDS [SEED]]. Prints the seed; a crash comes again with it.
 *
 * Inputs are mutations of a few that are valid, written below: without a clue, chance finds no second packet of a flow.
 */
#include "../../../edgeagent/engine/fast/checksum.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INPUT_MAX = 1 << 17, MUTATIONS_MAX = 8 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state;

/* splitmix64 */
static uint64_t draw(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15U;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static size_t below(size_t end)
{
    return (size_t)(draw() % end);
}

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
    unsigned six = draw() & 1, udp = draw() & 1;
    size_t payload = below(draw() & 1 ? 64000 : 3000) + 1;
    uint32_t seq = (uint32_t)draw();
    unsigned port = (unsigned)below(256);
    uint16_t header = (uint16_t)((six ? 40 : 20) + (udp ? 8 : 20));
    uint16_t fields[4] = {header, (uint16_t)(below(1500) + 1), six ? 40 : 20, udp ? 6 : 16};

    out[0] = 1;
    out[1] = 1;
    out[2] = udp ? 5 : six ? 4 : 1;
    if (!(draw() & 3)) {
        out[1] = draw() & 1;
        out[2] = 0; /* not to be cut; its checksum perhaps to be finished */
    }
    memcpy(out + 3, fields, sizeof fields);
    return 11 + put_packet(out + 11, six, udp, payload, seq, port);
}

static size_t make_batch(uint8_t *out)
{
    unsigned six = draw() & 1, udp = draw() & 1, ports = (unsigned)below(draw() & 7 ? 3 : 256) + 1;
    size_t payload = below(200) + 1, count = below(draw() & 7 ? 40 : 1500) + 1, at = 1;
    uint32_t seqs[256] = {0};

    out[0] = (uint8_t)(draw() << 1);
    for (; count && at + 2 + 60 + payload < INPUT_MAX / 2; count--) {
        unsigned port = (unsigned)below(ports);
        size_t size = put_packet(out + at + 2, six, udp, payload, seqs[port], port);

        seqs[port] += (uint32_t)payload;
        ea_put16(out + at, (uint32_t)size);
        at += 2 + size;
    }
    return at;
}

static size_t mutate(uint8_t *data, size_t size)
{
    size_t at = below(draw() & 1 ? size : size < 120 ? size : 120);

    switch (below(5)) {
    case 0:
        data[at] ^= (uint8_t)(1U << below(8));
        return size;
    case 1:
        data[at] = (uint8_t)draw();
        return size;
    case 2:
        data[at] = draw() & 1 ? 0xFF : 0;
        return size;
    case 3:
        return at + 1;
    default:
        if (size < INPUT_MAX - 4)
            for (int i = 0; i < 3; i++)
                data[size++] = (uint8_t)draw();
        return size;
    }
}

int main(int argc, char **argv)
{
    static uint8_t buffer[INPUT_MAX];
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);

    printf("%s %lu %llu\n", argv[0], rounds, (unsigned long long)seed);
    fflush(stdout);
    state = seed;
    for (; rounds; rounds--) {
        size_t size = draw() & 1 ? make_frame(buffer) : make_batch(buffer);

        for (size_t left = below(MUTATIONS_MAX + 1); left; left--)
            size = mutate(buffer, size);
        LLVMFuzzerTestOneInput(buffer, size);
    }
    return 0;
}
