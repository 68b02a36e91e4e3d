/* What the owner hears of traffic that it does not see: one report of each peer that had some, now and then. */
#include "core.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* Traffic after so long a silence is news. News comes no more often than this: a peer that is heard elsewhere than it is answered
 * would be news in each turn. */
enum { QUIET_S = 1, URGENT_MS = 5 };
/* A way that was not heard for longer is not one of a talk: whoever only sends is not answered. */
enum { TALK_S = 1 };

void ea_ring_bell(struct ea_pump *p) {
    uint64_t one = 1;
    if (atomic_exchange_explicit(&p->rung, 1, memory_order_acq_rel) == 0 && write(p->up_fd, &one, sizeof one) < 0) {
        atomic_store_explicit(&p->rung, 0, memory_order_release);
    }
}

struct ea_report *ea_report_of(struct ea_pump *p, struct ea_peer *peer) {
    if (peer->reported) {
        peer->reported = false;
        p->to_report[p->reports++] = (uint16_t)(peer - p->peers);
        if (p->now - peer->active_at >= QUIET_S * EA_NS) p->urgent = true;
    }
    peer->active_at = p->now;
    return &peer->report;
}

static bool same_way(const struct ea_way *a, const struct ea_way *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

bool ea_same_remote(const struct ea_way *a, const struct ea_way *b) {
    return a->kind == b->kind && a->family == b->family && a->port == b->port && a->channel == b->channel &&
           a->session == b->session && memcmp(a->address, b->address, sizeof a->address) == 0;
}

/* Whether packets from there are what is expected of this peer: the source address of ours is not always pinned. */
static bool is_expected(const struct ea_peer *peer, const struct ea_way *from) {
    const struct ea_way *way = &peer->way[0];
    if (peer->ways == 0 || !ea_same_remote(way, from)) return false;
    return way->kind != EA_WAY_UDP ||
           (way->interface == from->interface && memcmp(way->local, from->local, sizeof way->local) == 0);
}

/* It has answered by the way that it is sent to: by another uplink is another way. */
static void take_answer(struct ea_pump *p, struct ea_peer *peer, const struct ea_way *from, bool is_data) {
    const struct ea_way *way = &peer->way[0];
    if (peer->ways == 0 || !ea_same_remote(way, from) || (way->interface != 0 && way->interface != from->interface)) return;
    if (is_data) peer->talked_at = p->now;
    peer->unanswered_since = 0;
    peer->overdue = false;
    if (peer->awaited && p->awaiteds == 1) { /* mostly it is the only one, and nothing has to wake us for it */
        peer->awaited = false;
        p->awaiteds = 0;
        p->look_at = INT64_MAX;
    }
}

void ea_await(struct ea_pump *p, struct ea_peer *peer) {
    if (peer->unanswered_since != 0) return;
    peer->unanswered_since = p->now;
    if (peer->quiet_ms == 0 || peer->talked_at == 0 || p->now - peer->talked_at > TALK_S * EA_NS) return;
    int64_t at = p->now + peer->quiet_ms * 1000000LL;
    if (!peer->awaited) {
        peer->awaited = true;
        p->awaited[p->awaiteds++] = (uint16_t)(peer - p->peers);
    }
    if (at < p->look_at) p->look_at = at;
}

void ea_look_for_silence(struct ea_pump *p) {
    if (p->now < p->look_at) return;
    unsigned kept = 0;
    p->look_at = INT64_MAX;
    for (unsigned i = 0; i < p->awaiteds; i++) {
        struct ea_peer *peer = &p->peers[p->awaited[i]];
        int64_t at = peer->unanswered_since + peer->quiet_ms * 1000000LL;
        if (peer->live && peer->unanswered_since != 0 && peer->quiet_ms != 0 && at > p->now) {
            p->awaited[kept++] = p->awaited[i];
            if (at < p->look_at) p->look_at = at;
            continue;
        }
        peer->awaited = false;
        if (peer->live && peer->unanswered_since != 0 && peer->quiet_ms != 0) {
            peer->overdue = true;
            ea_report_of(p, peer);
            p->urgent = true;
        }
    }
    p->awaiteds = kept;
}

void ea_report_heard(struct ea_pump *p, struct ea_peer *peer, const struct ea_way *from, uint64_t wire_bytes,
                     uint32_t datagrams, uint32_t empty) {
    struct ea_report *report = ea_report_of(p, peer);
    unsigned at = 0;
    take_answer(p, peer, from, datagrams > empty);
    while (at < report->heards && !same_way(&report->heard[at].way, from)) at++;
    if (at == report->heards) {
        if (report->heards < EA_HEARD) {
            report->heards++;
        } else { /* the one heard least lately gives way, and what it carried is counted with the new one */
            at = 0;
            for (unsigned i = 1; i < EA_HEARD; i++) {
                if (report->heard[i].at < report->heard[at].at) at = i;
            }
        }
        report->heard[at].way = *from;
        if (!is_expected(peer, from)) p->urgent = true;
    }
    report->heard[at].at = p->now;
    report->heard[at].bytes += wire_bytes;
    report->heard[at].datagrams += datagrams;
    report->heard[at].empty += empty;
}

int64_t ea_report_due(const struct ea_pump *p) {
    if (p->reports == 0) return INT64_MAX;
    int64_t wait_ms = p->config.report_ms;
    if (p->urgent && wait_ms > URGENT_MS) wait_ms = URGENT_MS;
    return p->reported_at + wait_ms * 1000000;
}

static void begin_anew(struct ea_report *report) {
    uint16_t slot = report->slot;
    uint64_t tx_bytes = report->tx_bytes, rx_bytes = report->rx_bytes;
    memset(report, 0, sizeof *report);
    report->slot = slot;
    report->tx_bytes = tx_bytes;
    report->rx_bytes = rx_bytes;
}

void ea_report(struct ea_pump *p) {
    struct ea_ring *ring = &p->up[EA_RING_REPORT];
    unsigned kept = 0;
    for (unsigned i = 0; i < p->reports; i++) {
        struct ea_peer *peer = &p->peers[p->to_report[i]];
        uint32_t at;
        uint8_t *room = ea_ring_reserve(ring, sizeof peer->report, 0, &at);
        if (room == NULL) { /* it goes on counting until there is room */
            p->to_report[kept++] = p->to_report[i];
            continue;
        }
        const struct ea_keypair *current = peer->live ? ea_current_keypair(peer) : NULL;
        if (current != NULL) peer->report.send_counter = current->counter;
        peer->report.generation = peer->generation;
        peer->report.unanswered_since = peer->unanswered_since;
        memcpy(room, &peer->report, sizeof peer->report);
        ea_ring_commit(ring, at, sizeof peer->report, EA_UP_REPORT, EA_NO_BUCKET);
        begin_anew(&peer->report);
        peer->reported = true;
        peer->unsent_told = false;
    }
    p->reports = kept;
    p->urgent = false;
    p->reported_at = p->now;
    ea_ring_bell(p);
}
