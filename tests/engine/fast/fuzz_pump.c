/* Fuzz target: a pump without a thread, with a socketpair for its TUN and two ports on loopback, does whatever the input says.
 *
 * The input is a row of steps: u8 what, u16 little-endian length (of what there is at most), bytes. What: a record of the
 * owner's of some kind, an entry's generation, a frame of the TUN, a datagram to its port, a turn, a pull of what came up. Every eighth byte value
 * seals its bytes first under the keypair of slot 0, so that the inside of the tunnel is reached.
 */
#include "../../../edgeagent/engine/fast/core.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"

enum { PEERS = 3, FLOWS = 64, ENTRIES = 4, RING = 1 << 18, STEPS_MAX = 64, PULL_BYTES = 1 << 17 };

static int tun[2], ports[2];
static struct sockaddr_in to[2];
static uint8_t pulled[PULL_BYTES];

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void open_all(void)
{
    int size = 1 << 20;

    require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, tun) == 0);
    for (unsigned i = 0; i < 2; i++) {
        socklen_t bytes = sizeof to[i];

        setsockopt(tun[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        ports[i] = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
        to[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        require(ports[i] >= 0 && bind(ports[i], (struct sockaddr *)&to[i], sizeof to[i]) == 0);
        require(getsockname(ports[i], (struct sockaddr *)&to[i], &bytes) == 0);
    }
}

static struct ea_way way_to(unsigned i, uint8_t kind)
{
    struct ea_way way = {.kind = kind, .family = 4, .port = ntohs(to[i].sin_port), .session = 7, .channel = 2};

    memcpy(way.address, &to[i].sin_addr, 4);
    return way;
}

static void push(struct ea_pump *p, unsigned kind, const void *data, size_t bytes)
{
    int result = ea_push(p, kind, data, bytes & ~(size_t)7, (const uint8_t *)data + (bytes & ~(size_t)7), bytes & 7);

    require(result == 0 || result == EAGAIN || result == EMSGSIZE);
}

/* Two peers, one of them by a relay, with a keypair each, whose keys are all 1 or all 2. */
static void prepare(struct ea_pump *p)
{
    struct ea_socket sockets[1] = {{.fd = ports[0], .family = 4, .segments = 1}};
    struct ea_way relay = way_to(1, EA_WAY_RELAY);

    ea_set_tun(p, tun[0], 1);
    require(ea_set_sockets(p, sockets, 1) == 0);
    for (uint16_t slot = 0; slot < 2; slot++) {
        struct {
            struct ea_peer_record record;
            struct ea_way way[2];
        } peer = {{.slot = slot, .flags = EA_PEER_NEW, .ways = 2, .current = 1, .mtu = 1420 - slot * 400U, .quiet_ms = 1},
                  {way_to(1, slot ? EA_WAY_RELAY : EA_WAY_UDP), way_to(1, slot ? EA_WAY_UP : EA_WAY_RELAY)}};
        struct ea_keypair_record keypair = {
            .slot = slot, .position = 1, .unconfirmed = 1, .local_index = slot + 1U, .remote_index = slot, .created_at = p->now};

        memset(keypair.send_key, slot + 1, 32);
        memset(keypair.receive_key, slot + 1, 32);
        push(p, EA_DOWN_PEER, &peer, sizeof peer);
        push(p, EA_DOWN_KEYPAIR, &keypair, sizeof keypair);
        for (uint8_t inbound = 0; inbound < 2; inbound++) {
            struct {
                struct ea_flow_record record;
                uint8_t head[64];
            } flow = {{.slot = slot, .inbound = inbound, .entry = inbound}, {0x45}};

            flow.head[12] = flow.head[16] = 10; /* the driver's packets are from 10.0.0.0 to 10.0.0.0 */
            if (slot == 0)
                push(p, EA_DOWN_FLOW, &flow, sizeof flow);
            memset(flow.head, 0, sizeof flow.head);
            flow.head[0] = 0x60;
            flow.head[8] = flow.head[24] = 0xFD;
            if (slot == 1)
                push(p, EA_DOWN_FLOW, &flow, sizeof flow);
        }
    }
    struct {
        struct ea_slot head;
        struct ea_way way;
    } relays = {{.slot = 1}, relay};
    relays.way.channel = 0;
    push(p, EA_DOWN_RELAYS, &relays, sizeof relays);
}

static void pull(struct ea_pump *p, unsigned ring)
{
    size_t size = ea_pull(p, ring, pulled, sizeof pulled), at = 0;

    while (at < size) {
        struct ea_record record;

        require(size - at >= sizeof record);
        memcpy(&record, pulled + at, sizeof record);
        at += sizeof record;
        require(record.kind >= EA_UP_DATAGRAM && record.kind <= EA_UP_REPORT && record.bytes <= EA_RECORD_MAX + 64);
        require(record.bytes <= size - at);
        if (record.kind == EA_UP_REPORT) {
            struct ea_report report;

            require(ring == EA_RING_REPORT && record.bytes == sizeof report);
            memcpy(&report, pulled + at, sizeof report);
            require(report.slot < PEERS && report.heards <= EA_HEARD);
        }
        at += (record.bytes + 7U) & ~7U;
    }
    require(at == size);
}

static void send_sealed(struct ea_pump *p, unsigned port, uint64_t counter, const uint8_t *data, size_t bytes)
{
    static uint8_t datagram[EA_HEADER + 65536 + EA_TAG];
    uint8_t key[32], *text[1] = {datagram + EA_HEADER};
    uint32_t size = bytes < 60000 ? (uint32_t)bytes : 60000;

    memset(key, 1, sizeof key);
    memset(datagram, 0, EA_HEADER);
    datagram[0] = 4;
    datagram[4] = 1;
    for (unsigned i = 0; i < 8; i++)
        datagram[8 + i] = (uint8_t)(counter >> (8 * i));
    if (size)
        memcpy(datagram + EA_HEADER, data, size);
    ea_aead_seal(p->small, key, counter, text, &size, 1);
    (void)!sendto(ports[port], datagram, EA_HEADER + size + EA_TAG, 0, (struct sockaddr *)&to[0], sizeof to[0]);
}

static void check(struct ea_pump *p)
{
    struct ea_figures figures;
    unsigned live = 0, keypairs = 0, entries = 0, flows = 0;

    ea_figures(p, &figures);
    require(figures.peers_used <= figures.peers_max && figures.flows_used <= figures.flows_max);
    require(ea_ring_used(&p->down) <= RING && p->down.peak <= RING && figures.net_peak <= RING && figures.tun_peak <= RING);
    require(p->in.count == 0 && (p->out.count == 0 || p->stuck.is) && p->reports <= PEERS && p->awaiteds <= PEERS);
    for (unsigned i = 0; i < PEERS; i++) {
        live += p->peers[i].live;
        require(p->peers[i].ways <= EA_WAYS && p->peers[i].told <= EA_POSITIONS && p->peers[i].confirmed <= EA_POSITIONS);
        for (unsigned k = 0; k < EA_POSITIONS; k++) {
            struct ea_keypair *keypair = &p->peers[i].keypair[k];

            keypairs += keypair->live;
            require(!keypair->live || (p->peers[i].live && ea_find_keypair(p, keypair->local_index) == keypair));
        }
    }
    for (unsigned i = 0; i < FLOWS; i++) {
        const struct ea_flow *flow = &p->flows[i];
        const struct ea_peer *peer = &p->peers[flow->slot];

        flows += flow->live && flow->epoch == p->flow_epoch && peer->live && peer->generation == flow->generation;
        require(flow->entry <= ENTRIES);
    }
    require(flows == figures.flows_used);
    for (uint32_t i = 0; i <= p->index_mask; i++)
        entries += p->index_slots[i] != 0;
    require(live == figures.peers_used && keypairs == entries);
}

static void step(struct ea_pump *p, uint8_t what, const uint8_t *data, size_t bytes)
{
    _Alignas(8) static uint8_t record[EA_RECORD_MAX + 8];

    switch (what & 15) {
    case 12:
    case 13:
        if (bytes) /* an empty one would be the end of the socketpair */
            (void)!write(tun[1], data, bytes);
        break;
    case 14:
        if (what & 16)
            send_sealed(p, what >> 5 & 1, bytes > 4 && (what & 128) ? UINT64_MAX >> data[0] % 64 : data[0] % 200U, data, bytes);
        else
            (void)!sendto(ports[what >> 5 & 1], data, bytes, 0, (struct sockaddr *)&to[0], sizeof to[0]);
        break;
    case 0:
        if (bytes > 1) { /* of the owner's entries, while the pump is what it is */
            uint8_t marks[ENTRIES];

            ea_mark(p, data[0] % (ENTRIES + 1U), data[1] % 3U);
            ea_take_marks(p, marks);
            for (unsigned i = 0; i < ENTRIES; i++)
                require(marks[i] <= (EA_MARK_USED | EA_MARK_CLOSING));
        }
        /* fall through */
    case 15:
        ea_turn(p, 0);
        check(p);
        if (what & 16)
            pull(p, what >> 5 & 3);
        break;
    default:
        bytes = bytes < EA_RECORD_MAX ? bytes : EA_RECORD_MAX;
        memcpy(record, data, bytes);
        push(p, what & 15, record, bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool opened;
    struct ea_limits limits = {PEERS, FLOWS, RING, RING, ENTRIES};
    struct ea_pump *p = ea_new(&limits, "portable", "portable");

    if (!opened)
        open_all();
    opened = true;
    require(p != NULL);
    prepare(p);
    ea_turn(p, 0);
    require(p->figures.drops[EA_DROP_RECORD] == 0 && p->figures.peers_used == 2);
    for (unsigned steps = 0; size >= 3 && steps < STEPS_MAX; steps++) {
        size_t bytes = data[1] | (size_t)data[2] << 8;
        uint8_t what = data[0];

        data += 3;
        size -= 3;
        bytes = bytes < size ? bytes : size;
        step(p, what, data, bytes);
        data += bytes;
        size -= bytes;
    }
    for (unsigned i = 0; i < 4; i++) {
        ea_turn(p, 0);
        check(p);
    }
    for (unsigned ring = 0; ring <= EA_RINGS; ring++)
        pull(p, ring);
    ea_free(p);
    for (unsigned i = 0; i < 2; i++) {
        while (recv(tun[i], pulled, sizeof pulled, MSG_DONTWAIT) >= 0) {}
        while (recv(ports[i], pulled, sizeof pulled, MSG_DONTWAIT) >= 0 || errno == ECONNREFUSED) {}
    }
    return 0;
}

#ifndef FUZZ_WITHOUT_VALID
static size_t put_packet(uint8_t *at, size_t payload)
{
    unsigned six = fuzz_draw() & 1;
    size_t ip = six ? 40 : 20, total = ip + 20 + payload;

    memset(at, (int)(fuzz_draw() & 0xFF), total);
    memset(at, 0, ip + 20);
    at[0] = six ? 0x60 : 0x45;
    at[six ? 4 : 2] = (uint8_t)((six ? total - 40 : total) >> 8);
    at[six ? 5 : 3] = (uint8_t)(six ? total - 40 : total);
    at[six ? 6 : 9] = fuzz_draw() & 1 ? 6 : 17;
    at[six ? 8 : 12] = at[six ? 24 : 16] = six ? 0xFD : 10;
    at[ip + 12] = 0x50;
    at[ip + 13] = (uint8_t)(fuzz_draw() & 3 ? 0x10 : 2);
    return total;
}

/* A record as it is meant to be: a struct of small numbers, then packets. */
static size_t put_record(uint8_t *at, unsigned kind)
{
    static const size_t heads[] = {[EA_DOWN_CONFIG] = 16, [EA_DOWN_PEER] = 16, [EA_DOWN_KEYPAIR] = 88, [EA_DOWN_FORGET] = 8,
                                   [EA_DOWN_FLOW] = 8,    [EA_DOWN_UNFLOW] = 0, [EA_DOWN_SEAL] = 8,    [EA_DOWN_SEND] = 64,
                                   [EA_DOWN_TUN] = 8,     [EA_DOWN_OPEN] = 64,  [EA_DOWN_RELAYS] = 8};
    size_t head = heads[kind], bytes = head;

    memset(at, 0, head);
    if (kind == EA_DOWN_SEAL || kind == EA_DOWN_SEND || kind == EA_DOWN_TUN || kind == EA_DOWN_OPEN) {
        uint32_t count = (uint32_t)fuzz_below(fuzz_draw() & 3 ? 4 : 90) + 1, length;

        memcpy(at + head - 4, &count, 4);
        bytes += (count * 4 + 7) & ~7U;
        for (uint32_t i = 0; i < count; i++) {
            length = (uint32_t)put_packet(at + bytes, fuzz_below(300));
            memcpy(at + head + i * 4, &length, 4);
            bytes += length;
        }
        if (head == 64) {
            struct ea_way way = {.kind = (uint8_t)fuzz_below(4), .family = 4, .port = (uint16_t)fuzz_draw(), .address = {127, 0, 0, 1}};

            memcpy(at, &way, sizeof way);
        } else {
            at[0] = (uint8_t)fuzz_below(3);
            at[2] = 1;
        }
    } else {
        for (size_t i = 0; i < head; i++)
            at[i] = fuzz_draw() & 1 ? (uint8_t)fuzz_below(4) : 0;
        if (kind == EA_DOWN_PEER || kind == EA_DOWN_RELAYS)
            for (unsigned i = 0; i < 4; i++, bytes += sizeof(struct ea_way)) {
                struct ea_way way = {.kind = (uint8_t)fuzz_below(4), .family = 4, .port = (uint16_t)fuzz_draw(), .address = {127, 0, 0, 1}};

                memcpy(at + bytes, &way, sizeof way);
            }
        if (kind == EA_DOWN_FLOW)
            bytes += put_packet(at + bytes, 4);
    }
    return bytes;
}

size_t fuzz_valid(uint8_t *out, size_t size_max)
{
    size_t at = 0;

    require(size_max >= 1 << 16);
    for (unsigned steps = (unsigned)fuzz_below(24) + 1; steps && at + 40000 < size_max; steps--) {
        unsigned what = (unsigned)fuzz_below(16), bits = (unsigned)(fuzz_draw() & 0xF0);
        uint8_t *body = out + at + 3;
        size_t bytes = 0;

        if (what >= 1 && what <= 11) {
            bytes = put_record(body, what);
        } else if (what == 12 || what == 13) {
            memset(body, 0, EA_VNET_BYTES);
            bytes = EA_VNET_BYTES + put_packet(body + EA_VNET_BYTES, fuzz_below(fuzz_draw() & 1 ? 30000 : 1400));
            if (what == 13) { /* to be cut up */
                uint16_t fields[4] = {(uint16_t)(body[10] == 0x60 ? 60 : 40), (uint16_t)(fuzz_below(1400) + 1),
                                      (uint16_t)(body[10] == 0x60 ? 40 : 20), 16};

                body[0] = 1;
                body[1] = body[10] == 0x60 ? 4 : 1;
                body[body[10] == 0x60 ? 16 : 19] = 6;
                memcpy(body + 2, fields, sizeof fields);
            }
        } else if (what == 14) {
            bytes = put_packet(body, fuzz_below(1400));
        }
        out[at] = (uint8_t)(what | bits);
        out[at + 1] = (uint8_t)bytes;
        out[at + 2] = (uint8_t)(bytes >> 8);
        at += 3 + bytes;
    }
    return at;
}
#endif
