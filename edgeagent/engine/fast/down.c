/* The owner's records, followed one by one. What makes no sense is counted, and without effect. */
#include "core.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

int ea_push(struct ea_pump *p, unsigned kind, const void *head, size_t head_bytes, const void *body, size_t body_bytes) {
    uint32_t at;
    if (head_bytes + body_bytes > EA_RECORD_MAX || head_bytes % 8 != 0) return EMSGSIZE;
    bool can_be_lost = kind == EA_DOWN_SEAL || kind == EA_DOWN_SEND || kind == EA_DOWN_TUN || kind == EA_DOWN_OPEN;
    uint32_t bytes = (uint32_t)(head_bytes + body_bytes);
    uint8_t *room = ea_ring_reserve(&p->down, bytes, can_be_lost ? p->down.size / 4 : 0, &at);
    if (room == NULL) return EAGAIN;
    memcpy(room, head, head_bytes);
    if (body_bytes > 0) memcpy(room + head_bytes, body, body_bytes);
    ea_ring_commit(&p->down, at, bytes, kind, EA_NO_BUCKET);
    /* Sequentially consistent on both sides: either it sees the record before it sleeps, or we see that it sleeps. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_exchange_explicit(&p->asleep, 0, memory_order_seq_cst)) {
        uint64_t one = 1;
        if (write(p->wake_fd, &one, sizeof one) < 0) return 0; /* it is readable already */
    }
    return 0;
}

/* Lengths and bytes of `count` packets from `body`. False: they do not fit into `bytes`. */
static bool packets_of(uint8_t *body, size_t bytes, uint32_t count, const uint32_t **lengths, uint8_t **packets) {
    size_t table = ((size_t)count * 4 + 7) & ~(size_t)7;
    if (count == 0 || count > EA_RECORD_MAX / 4 || table > bytes) return false;
    *lengths = (const void *)body;
    *packets = body + table;
    size_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        if ((*lengths)[i] > EA_RECORD_MAX) return false;
        total += (*lengths)[i];
    }
    return total <= bytes - table;
}

static bool is_way(const struct ea_way *way) {
    return way->kind <= EA_WAY_UP && (way->kind == EA_WAY_NONE || way->kind == EA_WAY_UP || way->family == 4 || way->family == 6);
}

static bool set_peer(struct ea_pump *p, const struct ea_peer_record *record, const struct ea_way *ways, size_t bytes) {
    if (record->slot >= p->limits.peers || record->ways > EA_WAYS || record->current > EA_POSITIONS ||
        bytes < record->ways * sizeof *ways) {
        return false;
    }
    for (unsigned i = 0; i < record->ways; i++) {
        if (!is_way(&ways[i])) return false;
    }
    struct ea_peer *peer = &p->peers[record->slot];
    if (record->flags & (EA_PEER_NEW | EA_PEER_GONE)) {
        for (unsigned i = 0; i < EA_POSITIONS; i++) ea_forget_keypair(p, &peer->keypair[i]);
        ea_lose_flows(p, peer);
        if (peer->live) p->figures.peers_used--;
        peer->live = false;
        peer->generation++;
        memset(&peer->report, 0, sizeof peer->report);
        peer->report.slot = record->slot;
        if (peer->generation == 1) peer->reported = true;
        if (record->flags & EA_PEER_GONE) return true;
        peer->live = true;
        peer->confirmed = EA_POSITIONS;
        peer->active_at = 0;
        peer->unanswered_since = peer->talked_at = 0;
        peer->overdue = false;
        p->figures.peers_used++;
    } else if (!peer->live) {
        return false;
    }
    if (peer->ways == 0 || record->ways == 0 || !ea_same_remote(&peer->way[0], &ways[0])) {
        peer->unanswered_since = peer->talked_at = 0;
        peer->overdue = false;
    }
    bool is_new[EA_WAYS] = {false};
    for (unsigned i = 1; i < record->ways; i++) {
        is_new[i] = true;
        for (unsigned k = 0; k < peer->ways; k++) is_new[i] = is_new[i] && !ea_same_remote(&peer->way[k], &ways[i]);
    }
    peer->quiet_ms = record->quiet_ms;
    peer->ways = record->ways;
    peer->told = record->current;
    if (peer->told == peer->confirmed) peer->confirmed = EA_POSITIONS; /* it has heard: from here on its word counts */
    peer->mtu = record->mtu;
    memcpy(peer->way, ways, record->ways * sizeof *ways);
    for (unsigned i = 1; i < peer->ways && peer->unanswered_since != 0; i++) {
        if (is_new[i]) ea_repeat(p, peer, i);
    }
    return true;
}

static bool set_relays(struct ea_pump *p, unsigned count, const struct ea_way *ways, size_t bytes) {
    if (count > EA_RELAYS || bytes < count * sizeof *ways) return false;
    p->relays = count;
    if (count > 0) memcpy(p->relay, ways, count * sizeof *ways);
    return true;
}

static bool set_config(struct ea_pump *p, const struct ea_config *config) {
    if (config->mtu > EA_IP_MAX || config->report_ms == 0 || config->new_flows_per_s == 0) return false;
    p->config = *config;
    return true;
}

static bool follow(struct ea_pump *p, unsigned kind, uint8_t *data, size_t bytes) {
    static const uint8_t head_bytes[] = {
        [EA_DOWN_CONFIG] = sizeof(struct ea_config),     [EA_DOWN_PEER] = sizeof(struct ea_peer_record),
        [EA_DOWN_KEYPAIR] = sizeof(struct ea_keypair_record), [EA_DOWN_FORGET] = sizeof(struct ea_slot),
        [EA_DOWN_FLOW] = sizeof(struct ea_flow_record),  [EA_DOWN_UNFLOW] = 0,
        [EA_DOWN_SEAL] = sizeof(struct ea_slot),         [EA_DOWN_SEND] = sizeof(struct ea_send_record),
        [EA_DOWN_TUN] = sizeof(struct ea_slot),          [EA_DOWN_OPEN] = sizeof(struct ea_send_record),
        [EA_DOWN_RELAYS] = sizeof(struct ea_slot)};
    const uint32_t *lengths;
    uint8_t *packets;
    if (kind < EA_DOWN_CONFIG || kind > EA_DOWN_RELAYS || bytes < head_bytes[kind]) return false;
    uint8_t *body = data + head_bytes[kind];
    size_t rest = bytes - head_bytes[kind];
    const struct ea_slot *slot = (const void *)data;
    const struct ea_send_record *send = (const void *)data;
    bool in_table = (kind == EA_DOWN_FORGET || kind == EA_DOWN_SEAL) && slot->slot < p->limits.peers &&
                    slot->position < EA_POSITIONS;
    switch (kind) {
        case EA_DOWN_CONFIG: return set_config(p, (const void *)data);
        case EA_DOWN_PEER: return set_peer(p, (const void *)data, (const void *)body, rest);
        case EA_DOWN_KEYPAIR: return ea_install_keypair(p, (const void *)data);
        case EA_DOWN_FORGET:
            if (in_table) ea_forget_keypair(p, &p->peers[slot->slot].keypair[slot->position]);
            return in_table;
        case EA_DOWN_FLOW: return ea_add_flow(p, (const void *)data, body, (uint32_t)rest);
        case EA_DOWN_UNFLOW:
            p->flow_epoch++;
            for (unsigned i = 0; i < p->limits.peers; i++) {
                if (p->peers[i].live) ea_lose_flows(p, &p->peers[i]); /* the others are not resident */
            }
            return true;
        case EA_DOWN_SEAL:
            if (!in_table || !packets_of(body, rest, slot->count, &lengths, &packets)) return false;
            ea_seal_packets(p, &p->peers[slot->slot].keypair[slot->position], lengths, slot->count, packets);
            return true;
        case EA_DOWN_SEND:
            if (!is_way(&send->way) || send->way.kind == EA_WAY_UP || !packets_of(body, rest, send->count, &lengths, &packets)) {
                return false; /* what is to be carried otherwise is the owner's already */
            }
            ea_send_raw(p, send, lengths, packets);
            return true;
        case EA_DOWN_TUN:
            if (!packets_of(body, rest, slot->count, &lengths, &packets)) return false;
            ea_write_packets(p, lengths, slot->count, packets);
            return true;
        case EA_DOWN_OPEN:
            if (!is_way(&send->way) || !packets_of(body, rest, send->count, &lengths, &packets)) return false;
            ea_take_datagrams(p, send, lengths, packets);
            return true;
        default: return set_relays(p, slot->slot, (const void *)body, rest);
    }
}

bool ea_follow(struct ea_pump *p) {
    uint32_t at;
    const struct ea_record *record = ea_ring_peek(&p->down, &at);
    if (record == NULL) return false;
    uint8_t *data = (uint8_t *)(uintptr_t)(record + 1);
    if (!follow(p, record->kind, data, record->bytes)) ea_drop(p, EA_DROP_RECORD, 1);
    if (record->kind == EA_DOWN_KEYPAIR) memset(data, 0, record->bytes); /* keys do not stay in the ring */
    ea_ring_next(&p->down, at, record);
    return true;
}
