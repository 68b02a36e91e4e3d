/* What the parts say of themselves, for machines that nothing else of the tests runs on: big endian, 32 bits. */
#include "self_test.h"

#include "checksum.h"
#include "core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RING_BYTES = 1024, KEYPAIRS = 12, FLOW_ROUNDS = 300 };

/* A ring so small that it wraps around every few records, against what was put into it. */
const char *ea_test_ring(void) {
    static _Alignas(8) uint8_t bytes[RING_BYTES];
    struct ea_ring ring = {0};
    uint32_t put = 0, taken = 0, at;
    ea_ring_init(&ring, bytes, sizeof bytes);
    ring.head = ring.tail = UINT32_MAX - 2047; /* so that the counts wrap around too: a multiple of 1024 before */
    for (unsigned round = 0; round < 500; round++) {
        while (put - taken < 6) {
            uint32_t length = (put * 37) % 190;
            uint8_t *room = ea_ring_reserve(&ring, length, 0, &at);
            if (room == NULL) break;
            if ((uintptr_t)room % 8 != 0 || room + length > bytes + sizeof bytes) return "a record is not where it belongs";
            memset(room, (int)(put & 0xFF), length);
            ea_ring_commit(&ring, at, length, 7, put % EA_BUCKETS);
            put++;
        }
        if (put == taken) return "an empty ring has no room";
        if (ea_ring_used(&ring) > sizeof bytes) return "more is used than there is";
        for (unsigned i = 0; i <= round % 3; i++) {
            const struct ea_record *record = ea_ring_peek(&ring, &at);
            if (record == NULL) break;
            const uint8_t *data = (const uint8_t *)(record + 1);
            if (record->kind != 7 || record->bytes != (taken * 37) % 190) return "a record is another one than was put in";
            for (uint32_t k = 0; k < record->bytes; k++) {
                if (data[k] != (taken & 0xFF)) return "a record's bytes are others";
            }
            ea_ring_next(&ring, at, record);
            taken++;
        }
    }
    return put > 400 ? NULL : "hardly any record found room";
}

/* RFC 6479 against one bit a counter. */
const char *ea_test_window(void) {
    enum { COUNTERS = 40000 };
    static uint8_t seen[COUNTERS];
    static struct ea_window window;
    uint32_t state = 1, highest = 0;
    memset(seen, 0, sizeof seen);
    memset(&window, 0, sizeof window);
    for (unsigned i = 0; i < 20000; i++) {
        state = state * 1103515245U + 12345U;
        uint32_t ahead = (state >> 8) % 40, counter = highest + ahead;
        if ((state >> 20) % 3 == 0) counter = highest - (state >> 16) % (highest + 1 < 9000 ? highest + 1 : 9000);
        if ((state >> 21) % 997 == 0) counter = highest + 8200;
        if (counter >= COUNTERS) break;
        bool fresh = !seen[counter] && (counter >= highest || highest - counter < EA_WINDOW);
        if (ea_window_accept(&window, counter) != fresh) return fresh ? "a new counter is refused" : "a replay is accepted";
        seen[counter] = 1;
        if (counter > highest) highest = counter;
    }
    if (highest < 20000) return "it was not tried far";
    uint64_t last = EA_REJECT_COUNTER - 1;
    if (!ea_window_accept(&window, last) || ea_window_accept(&window, last)) return "the last counter is not taken once";
    if (!ea_window_accept(&window, last - EA_WINDOW + 1) || ea_window_accept(&window, last - EA_WINDOW)) {
        return "the window is not as long as it is";
    }
    return NULL;
}

static bool tell_peer(struct ea_pump *p, uint16_t slot, uint8_t flags) {
    struct ea_peer_record record = {.slot = slot, .flags = flags, .current = EA_POSITIONS, .mtu = 1420};
    return ea_push(p, EA_DOWN_PEER, &record, sizeof record, NULL, 0) == 0 && ea_follow(p);
}

static bool tell_keypair(struct ea_pump *p, uint16_t slot, uint8_t position, uint32_t index) {
    struct ea_keypair_record record = {.slot = slot, .position = position, .local_index = index, .created_at = p->now};
    return ea_push(p, EA_DOWN_KEYPAIR, &record, sizeof record, NULL, 0) == 0 && ea_follow(p);
}

/* Keypairs come and go in an order of their own; each look-up against a list. Indices have few homes, so that they collide. */
static const char *test_indices(struct ea_pump *p) {
    uint32_t list[KEYPAIRS] = {0}, state = 7;
    for (unsigned i = 0; i < 2000; i++) {
        state = state * 1103515245U + 12345U;
        unsigned number = (state >> 16) % KEYPAIRS;
        uint16_t slot = (uint16_t)(number / EA_POSITIONS);
        uint8_t position = (uint8_t)(number % EA_POSITIONS);
        if (state & 1U << 30) {
            list[number] = 1 + number + (state >> 20 & 3U) * 0x10000U;
            if (!tell_keypair(p, slot, position, list[number])) return "a keypair is not taken";
        } else {
            ea_forget_keypair(p, &p->peers[slot].keypair[position]);
            list[number] = 0;
        }
        for (unsigned k = 0; k < KEYPAIRS; k++) {
            for (uint32_t high = 0; high < 4; high++) {
                uint32_t index = 1 + k + high * 0x10000U;
                const struct ea_keypair *found = ea_find_keypair(p, index);
                bool should = list[k] == index;
                if ((found != NULL) != should) return should ? "a keypair is not found" : "a keypair is found that is gone";
                if (should && found != &p->peers[k / EA_POSITIONS].keypair[k % EA_POSITIONS]) return "it is another keypair";
            }
        }
    }
    return p->figures.drops[EA_DROP_RECORD] == 0 ? NULL : "records were refused";
}

static bool add_flow(struct ea_pump *p, uint16_t slot, bool inbound, const uint8_t *packet) {
    struct ea_flow_record record = {.slot = slot, .inbound = inbound};
    return ea_push(p, EA_DOWN_FLOW, &record, sizeof record, packet, 40) == 0 && ea_follow(p);
}

/* What is found was told, and of a peer that is there; what was just told is found. */
static const char *test_flows(struct ea_pump *p) {
    uint8_t packet[40] = {0x45, 0, 0, 40};
    packet[9] = 17;
    for (unsigned i = 0; i < FLOW_ROUNDS; i++) {
        packet[12] = (uint8_t)(i >> 8);
        packet[15] = (uint8_t)i;
        packet[19] = (uint8_t)(i * 3);
        bool inbound = i & 1;
        uint16_t slot = (uint16_t)(i % 3);
        if (ea_flow_peer(p, packet, sizeof packet, inbound, slot) != NULL) return "a flow is found that nobody told of";
        if (!add_flow(p, slot, inbound, packet)) return "a flow is not taken";
        if (ea_flow_peer(p, packet, sizeof packet, inbound, slot) != &p->peers[slot]) return "a flow is not found";
        if (ea_flow_peer(p, packet, sizeof packet, !inbound, slot) != NULL) return "a flow is found in the other direction";
        if (inbound && ea_flow_peer(p, packet, sizeof packet, true, 3) != NULL) return "a flow is another peer's too";
    }
    if (p->figures.flows_used > p->figures.flows_max || p->figures.flows_evicted == 0) return "flows are not counted";
    if (!tell_peer(p, (uint16_t)((FLOW_ROUNDS - 1) % 3), EA_PEER_NEW)) return "a peer is not taken";
    if (ea_flow_peer(p, packet, sizeof packet, true, 2) != NULL) return "a flow outlives its peer";
    return NULL;
}

/* A flow of ports that an entry of the owner's holds: found by its own packets, seen to be used, and ended. */
static const char *test_exact(struct ea_pump *p) {
    struct ea_config config = {.mtu = 1420, .router = 1, .report_ms = 100, .new_flows_per_s = 1000, .exact = 1};
    struct ea_flow_record record = {.slot = 1, .inbound = 1, .entry = 2, .generation = 0x01020304};
    uint8_t packet[40] = {0x45, 0, 0, 40}, marks[2];
    packet[9] = 6;
    packet[20] = 0x12; /* ports, in both of their bytes */
    packet[22] = 0x34;
    packet[33] = 0x10;
    ea_mark(p, 1, 0x01020304);
    if (ea_push(p, EA_DOWN_CONFIG, &config, sizeof config, NULL, 0) != 0 || !ea_follow(p)) return "a configuration is not taken";
    if (ea_push(p, EA_DOWN_FLOW, &record, sizeof record, packet, 40) != 0 || !ea_follow(p)) return "an exact flow is not taken";
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) != &p->peers[1]) return "an exact flow is not found";
    ea_take_marks(p, marks);
    if (marks[0] != 0 || marks[1] != EA_MARK_USED) return "the use of a flow is not seen";
    packet[33] = 0x11;
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) == NULL) return "the end of a connection is not carried";
    ea_take_marks(p, marks);
    if (marks[1] != (EA_MARK_USED | EA_MARK_CLOSING)) return "the end of a connection is not seen";
    packet[33] = 0x02;
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) != NULL) return "a SYN is carried";
    packet[33] = 0x10;
    packet[22] = 0x35;
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) != NULL) return "a flow is found by another port";
    packet[22] = 0x34;
    packet[6] = 0x20;
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) != NULL) return "a fragment is carried";
    packet[6] = 0;
    ea_mark(p, 1, 0x01020305);
    if (ea_flow_peer(p, packet, sizeof packet, true, 1) != NULL) return "a flow is found that was ended";
    return p->figures.drops[EA_DROP_RECORD] == 0 ? NULL : "records were refused";
}

const char *ea_test_tables(void) {
    struct ea_limits limits = {4, 64, 1 << 18, 1 << 18, 2};
    struct ea_pump *p = ea_new(&limits, "portable", "portable");
    if (p == NULL) return "there can be no pump";
    const char *wrong = NULL;
    for (uint16_t slot = 0; slot < 4; slot++) {
        if (!tell_peer(p, slot, EA_PEER_NEW)) wrong = "a peer is not taken";
    }
    if (wrong == NULL) wrong = test_indices(p);
    if (wrong == NULL) wrong = test_flows(p);
    if (wrong == NULL) wrong = test_exact(p);
    ea_free(p);
    return wrong;
}

/* A super-packet of TCP with known bytes, of three segments. */
static const uint8_t SUPER_HEAD[EA_VNET_BYTES + 40] = {
    1, 1, 0, 0, 0, 0, 0, 0, 0, 0, /* flags and kind; the numbers are in native byte order */
    0x45, 0, 0, 48, 0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, /* IPv4 */
    0x13, 0x88, 0x17, 0x70, 0, 0, 3, 0xE8, 0, 0, 0, 77, 0x50, 0x19, 1, 0xF6, 0, 0, 0, 0, /* TCP: ACK, PSH, FIN */
};

struct joined {
    uint8_t bytes[128];
    size_t count;
    unsigned frames;
};

static void see(void *context, const struct iovec *iov, int n_iov) {
    struct joined *joined = context;
    joined->frames++;
    joined->count = 0;
    for (int i = 0; i < n_iov; i++) {
        if (joined->count + iov[i].iov_len > sizeof joined->bytes) return;
        memcpy(joined->bytes + joined->count, iov[i].iov_base, iov[i].iov_len);
        joined->count += iov[i].iov_len;
    }
}

const char *ea_test_offload(void) {
    static const uint8_t flags[3] = {0x10, 0x10, 0x19};
    static const uint16_t sums[3][2] = {{0x26C4, 0xA649}, {0x26C3, 0xA043}, {0x26C3, 0x0336}}; /* of packets.py */
    uint8_t frame[sizeof SUPER_HEAD + 8], out[3][64];
    uint16_t numbers[4] = {40, 3, 20, 16};
    struct ea_split split;
    memcpy(frame, SUPER_HEAD, sizeof SUPER_HEAD);
    memcpy(frame + 2, numbers, sizeof numbers);
    memcpy(frame + sizeof SUPER_HEAD, "abcdefgh", 8);
    if (ea_split_begin(&split, frame, sizeof frame) != EA_SPLIT_OK || split.count != 3) return "a super-packet is not cut up";
    for (unsigned i = 0; i < 3; i++) {
        size_t bytes = ea_split_next(&split, out[i]), want = i < 2 ? 43 : 42;
        if (bytes != want || ea_get16(out[i] + 2) != want || ea_get16(out[i] + 4) != 7 + i) return "a segment's IP header is wrong";
        if (ea_get16(out[i] + 10) != sums[i][0]) return "a segment's IP checksum is wrong";
        if (ea_get32(out[i] + 24) != 1000 + 3 * i || out[i][33] != flags[i]) return "a segment's TCP header is wrong";
        if (ea_get16(out[i] + 36) != sums[i][1]) return "a segment's TCP checksum is wrong";
        if (memcmp(out[i] + 40, "abcdefgh" + 3 * i, bytes - 40) != 0) return "a segment's payload is wrong";
    }
    static struct ea_coalesce join;
    struct joined joined = {.count = 0};
    out[2][33] = 0x18; /* behind a FIN nothing merges, so without */
    ea_put16(out[2] + 36, ea_get16(out[2] + 36) + 1);
    ea_coalesce_begin(&join, false, true);
    for (unsigned i = 0; i < 3; i++) {
        if (!ea_coalesce_add(&join, out[i], i < 2 ? 43 : 42)) return "a segment is not taken";
    }
    ea_coalesce_flush(&join, see, &joined);
    memcpy(numbers, joined.bytes + 2, sizeof numbers);
    if (joined.frames != 1 || joined.count != sizeof frame || joined.bytes[1] != EA_GSO_TCPV4) return "segments are not joined";
    if (numbers[0] != 40 || numbers[1] != 3 || numbers[2] != 20 || numbers[3] != 16) return "the vnet header is wrong";
    if (memcmp(joined.bytes + 50, "abcdefgh", 8) != 0 || ea_get16(joined.bytes + 12) != 48) return "what is joined is wrong";
    return NULL;
}

/* A packet through two pumps, by a socketpair for each TUN; what is between them is carried by hand. */
const char *ea_test_passage(void) {
    struct ea_limits limits = {2, 64, 1 << 18, 1 << 18, 0};
    struct ea_pump *pump[2] = {ea_new(&limits, NULL, NULL), ea_new(&limits, NULL, NULL)};
    int tun[2][2] = {{-1, -1}, {-1, -1}};
    static uint8_t frame[EA_VNET_BYTES + 60], pulled[4096], back[128];
    const char *wrong = NULL;
    memset(frame, 0, sizeof frame);
    frame[10] = 0x45;
    frame[13] = 60;
    frame[22] = frame[26] = 10;
    for (unsigned i = 20; i < 60; i++) frame[EA_VNET_BYTES + i] = (uint8_t)i;
    for (unsigned i = 0; i < 2; i++) {
        struct ea_way way = {.kind = EA_WAY_UP, .family = 4};
        struct ea_peer_record peer = {.flags = EA_PEER_NEW, .ways = 1, .current = 0, .mtu = 1420};
        struct ea_keypair_record keypair = {.local_index = 0x01020304U + i, .remote_index = 0x01020305U - i};
        struct ea_flow_record flow = {.inbound = (uint8_t)i};
        if (pump[i] == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, tun[i]) != 0) {
            wrong = "there can be no pump";
            break;
        }
        keypair.created_at = pump[i]->now;
        memset(keypair.send_key, 1 + (int)i, 32);
        memset(keypair.receive_key, 2 - (int)i, 32);
        ea_set_tun(pump[i], tun[i][0], 0);
        if (ea_push(pump[i], EA_DOWN_PEER, &peer, sizeof peer, &way, sizeof way) != 0 ||
            ea_push(pump[i], EA_DOWN_KEYPAIR, &keypair, sizeof keypair, NULL, 0) != 0 ||
            ea_push(pump[i], EA_DOWN_FLOW, &flow, sizeof flow, frame + EA_VNET_BYTES, 60) != 0) {
            wrong = "a record finds no room";
        }
        while (ea_follow(pump[i])) {}
    }
    if (wrong == NULL && write(tun[0][1], frame, sizeof frame) != sizeof frame) wrong = "a frame cannot be written";
    if (wrong == NULL) {
        ea_turn(pump[0], 0);
        size_t size = ea_pull(pump[0], EA_RING_TUN, pulled, sizeof pulled);
        struct ea_send_record send = {.way = {.kind = EA_WAY_UP, .family = 4}, .count = 1};
        uint32_t body[2 + 26] = {32 + 64};
        static const uint8_t head[16] = {4, 0, 0, 0, 5, 3, 2, 1}; /* the other one's index, little-endian; counter 0 */
        if (size != 8 + 8 + 96 || memcmp(pulled + 16, head, sizeof head) != 0) {
            wrong = "a packet is not sealed";
        } else {
            memcpy(body + 2, pulled + 16, 96);
            if (ea_push(pump[1], EA_DOWN_OPEN, &send, sizeof send, body, 8 + 96) != 0) wrong = "a record finds no room";
            ea_turn(pump[1], 0);
            if (read(tun[1][1], back, sizeof back) != sizeof frame || memcmp(back, frame, sizeof frame) != 0) {
                wrong = "a packet comes out otherwise than it went in";
            }
        }
    }
    for (unsigned i = 0; i < 2; i++) {
        ea_free(pump[i]);
        for (unsigned k = 0; k < 2; k++) {
            if (tun[i][k] >= 0) close(tun[i][k]);
        }
    }
    return wrong;
}
