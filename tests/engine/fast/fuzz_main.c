/* Drives a fuzz target without libFuzzer: fuzz_main [ROUNDS [SEED]]. Prints the seed; a crash comes again with it.
 *
 * Inputs are mutations of a few that are valid, written below: without a clue, chance finds no second packet of a flow.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Header of a TCP segment or datagram with right lengths and IPv4 checksum. Returns its length. */
static size_t put_headers(uint8_t *at, unsigned six, unsigned udp, size_t payload, uint32_t seq, unsigned port)
{
    size_t ip = six ? 40 : 20, header = udp ? 8 : 20, total = ip + header + payload;
    uint32_t sum = 0;

    memset(at, 0, ip + header);
    if (six) {
        at[0] = 0x60;
        at[4] = (uint8_t)((total - 40) >> 8);
        at[5] = (uint8_t)(total - 40);
        at[6] = udp ? 17 : 6;
        at[7] = 64;
        at[8] = at[24] = 0xFD;
    } else {
        at[0] = 0x45;
        at[2] = (uint8_t)(total >> 8);
        at[3] = (uint8_t)total;
        at[6] = 0x40;
        at[8] = 64;
        at[9] = udp ? 17 : 6;
        at[12] = at[16] = 10;
        for (int i = 0; i < 20; i += 2)
            sum += (uint32_t)at[i] << 8 | at[i + 1];
        sum = (sum >> 16) + (sum & 0xFFFF);
        sum = ~((sum >> 16) + sum);
        at[10] = (uint8_t)(sum >> 8);
        at[11] = (uint8_t)sum;
    }
    at += ip;
    at[1] = (uint8_t)port;
    if (udp) {
        at[4] = (uint8_t)((header + payload) >> 8);
        at[5] = (uint8_t)(header + payload);
        at[6] = (uint8_t)draw();
    } else {
        for (int i = 0; i < 4; i++)
            at[4 + i] = (uint8_t)(seq >> (24 - 8 * i));
        at[12] = 0x50;
        at[13] = 0x10;
    }
    return ip + header;
}

static size_t make_frame(uint8_t *out)
{
    unsigned six = draw() & 1, udp = draw() & 1;
    size_t payload = below(draw() & 1 ? 64000 : 3000) + 1;
    uint16_t header = (uint16_t)((six ? 40 : 20) + (udp ? 8 : 20));
    uint16_t fields[4] = {header, (uint16_t)(below(1500) + 1), six ? 40 : 20, udp ? 6 : 16};

    out[0] = 1;
    out[1] = 1;
    out[2] = udp ? 5 : six ? 4 : 1;
    memcpy(out + 3, fields, sizeof fields);
    put_headers(out + 11, six, udp, payload, (uint32_t)draw(), 1);
    memset(out + 11 + header, (int)draw() & 0xFF, payload);
    return 11U + header + payload;
}

static size_t make_batch(uint8_t *out)
{
    unsigned six = draw() & 1, udp = draw() & 1, ports = (unsigned)below(3) + 1;
    size_t payload = below(200) + 1, count = below(draw() & 7 ? 40 : 1500) + 1, at = 1;
    uint32_t seqs[4] = {0};

    out[0] = (uint8_t)(draw() << 1);
    for (; count && at + 2 + 60 + payload < INPUT_MAX / 2; count--) {
        unsigned port = (unsigned)below(ports);
        size_t size = put_headers(out + at + 2, six, udp, payload, seqs[port], port) + payload;

        memset(out + at + 2 + size - payload, (int)port, payload);
        seqs[port] += (uint32_t)payload;
        out[at] = (uint8_t)(size >> 8);
        out[at + 1] = (uint8_t)size;
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
