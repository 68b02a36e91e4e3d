/* Two pumps with their threads, and an owner of each that changes peers, keys, ways, flows and sends packets of its own at full
 * speed: for ThreadSanitizer. Also a test that no bell is lost: an owner that waits for one is never left waiting.
 *
 *   PROGRAM SECONDS
 */
#include "pump_kit.h"

#include <poll.h>
#include <pthread.h>

enum { PULL_BYTES = 1 << 18, WAIT_MS = 2000 };

struct owner {
    struct side side, *other;
    unsigned self;
    int64_t until;
    uint64_t rounds, pushed, refused, records, reports, ups, taken, unbelled, marked;
    uint8_t buffer[PULL_BYTES];
};

static void take(struct owner *o) {
    ea_rest(o->side.pump);
    for (unsigned ring = 0; ring < EA_RINGS; ring++) {
        size_t size = ea_pull(o->side.pump, ring, o->buffer, sizeof o->buffer), at = 0;
        while (at < size) {
            struct ea_record record;
            memcpy(&record, o->buffer + at, sizeof record);
            at += sizeof record + ((record.bytes + 7U) & ~7U);
            o->records++;
            o->reports += record.kind == EA_UP_REPORT;
            o->ups += record.kind == EA_UP_FRAME || record.kind == EA_UP_PACKET;
        }
        need(at == size, "records are whole");
    }
}

static void lose(struct owner *o, unsigned kind, const void *head, size_t head_bytes, const void *body, size_t bytes) {
    if (ea_push(o->side.pump, kind, head, head_bytes, body, bytes) == 0) {
        o->pushed++;
    } else {
        o->refused++;
    }
}

/* What an owner says of the peer, mostly what is so already; and now and then that it is somebody else. */
static void talk(struct owner *o) {
    struct ea_config config = {.mtu = 1420, .router = 1, .report_ms = 1, .new_flows_per_s = 1000000};
    struct {
        uint32_t lengths[2];
        uint8_t packets[2000];
    } body;
    struct ea_slot slot = {.slot = 0, .position = 1, .count = 2};
    if (o->rounds % 256 == 0) {
        lose(o, EA_DOWN_CONFIG, &config, sizeof config, NULL, 0);
        if (o->rounds % 1024 == 0) lose(o, EA_DOWN_UNFLOW, "", 0, NULL, 0);
        if (ea_sync(o->side.pump, WAIT_MS)) { /* so there is room */
            tell_peer(&o->side, o->other, o->self, 1, o->rounds % 512 ? EA_PEER_NEW : EA_PEER_GONE);
            tell_flows(&o->side, o->self, 0);
            ea_mark(o->side.pump, 0, (uint32_t)o->rounds); /* the flow into the tunnel is one that the owner may end */
            struct ea_flow_record flow = {.entry = 1, .generation = (uint32_t)o->rounds};
            uint8_t head[40];
            put_packet(head, o->self, 3 - o->self, 0, 0);
            lose(o, EA_DOWN_FLOW, &flow, sizeof flow, head, sizeof head);
        }
    } else if (o->rounds % 256 == 128) {
        ea_mark(o->side.pump, 0, 0); /* as it does here: what follows goes up */
    }
    uint8_t marks[4];
    ea_take_marks(o->side.pump, marks);
    o->marked += marks[0];
    for (unsigned i = 0, at = 0; i < 2; i++, at += 1000) {
        body.lengths[i] = 1000;
        put_packet(body.packets + at, o->self, 3 - o->self, 960, (uint32_t)o->rounds);
    }
    lose(o, EA_DOWN_SEAL, &slot, sizeof slot, &body, sizeof body);
    lose(o, EA_DOWN_TUN, &slot, sizeof slot, &body, sizeof body);
}

/* A frame of a flow that is nobody's comes up with a bell. */
static void expect_bell(struct owner *o) {
    uint8_t frame[10 + 40] = {0};
    uint64_t before = o->ups;
    put_packet(frame + 10, o->self, 77, 0, 0);
    if (write(o->side.tun[1], frame, sizeof frame) < 0) return;
    while (o->ups == before) {
        struct pollfd fd = {ea_fd(o->side.pump), POLLIN, 0};
        if (poll(&fd, 1, WAIT_MS) == 0) {
            o->unbelled++;
            take(o);
            return;
        }
        take(o);
    }
}

static void *own(void *context) {
    struct owner *o = context;
    static _Thread_local uint8_t frame[70000];
    while (now_ns() < o->until) {
        talk(o);
        for (unsigned i = 0; i < 4; i++) {
            memset(frame, 0, 10);
            size_t bytes = 10 + put_packet(frame + 10, o->self, 3 - o->self, 1000, (uint32_t)(o->rounds * 4 + i));
            (void)!write(o->side.tun[1], frame, bytes);
        }
        while (read(o->side.tun[1], frame, sizeof frame) > 0) o->taken++;
        struct ea_figures figures;
        ea_figures(o->side.pump, &figures);
        need(figures.peers_used <= 2, "figures");
        if (o->rounds % 64 == 0) expect_bell(o);
        if (o->rounds % 4096 == 1000) { /* halted and started again, in the middle of it */
            ea_halt(o->side.pump);
            need(ea_start(o->side.pump) == 0, "start");
        }
        take(o);
        o->rounds++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    static struct owner owners[2];
    pthread_t threads[2];
    int bad = 0;
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    for (unsigned i = 0; i < 2; i++) begin_side(&owners[i].side);
    for (unsigned i = 0; i < 2; i++) {
        owners[i].other = &owners[1 - i].side;
        owners[i].self = i + 1;
        owners[i].until = now_ns() + (int64_t)(seconds * 1e9);
        tell_peer(&owners[i].side, owners[i].other, i + 1, 0, EA_PEER_NEW);
        tell_flows(&owners[i].side, i + 1, 0);
        need(ea_start(owners[i].side.pump) == 0, "start");
    }
    for (unsigned i = 0; i < 2; i++) need(pthread_create(&threads[i], NULL, own, &owners[i]) == 0, "thread");
    for (unsigned i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < 2; i++) {
        struct owner *o = &owners[i];
        struct ea_figures figures;
        ea_halt(o->side.pump);
        ea_figures(o->side.pump, &figures);
        printf("rounds=%llu pushed=%llu refused=%llu records=%llu reports=%llu ups=%llu taken=%llu marked=%llu unbelled=%llu in=%llu out=%llu\n",
               (unsigned long long)o->rounds, (unsigned long long)o->pushed, (unsigned long long)o->refused,
               (unsigned long long)o->records, (unsigned long long)o->reports, (unsigned long long)o->ups,
               (unsigned long long)o->taken, (unsigned long long)o->marked, (unsigned long long)o->unbelled, (unsigned long long)figures.datagrams_in,
               (unsigned long long)figures.datagrams_out);
        bad |= o->unbelled != 0 || o->taken == 0 || o->marked == 0 || o->reports == 0 || figures.drops[EA_DROP_RECORD] != 0 ||
               figures.drops[EA_DROP_AUTHENTICATION] != 0 || figures.drops[EA_DROP_REPLAYED] != 0;
        ea_free(o->side.pump);
    }
    return bad;
}
