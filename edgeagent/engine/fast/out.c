/* Into the tunnel: frames of the TUN, and packets that the owner hands over, become sealed datagrams. */
#include "core.h"

#include <string.h>

enum {
    STUCK_MS = 100,       /* how long a full send buffer is waited for that takes nothing at all */
    STUCK_ALONE_MS = 1000, /* the same where there is no other uplink: 64 KiB take so long at 0.5 Mbit/s */
    RETRY_MS = 5          /* how often that is tried: the kernel calls it writable only when half of it is free */
};

static void put_le32(uint8_t *at, uint32_t value) {
    for (unsigned i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static void put_le64(uint8_t *at, uint64_t value) {
    put_le32(at, (uint32_t)value);
    put_le32(at + 4, (uint32_t)(value >> 32));
}

static uint8_t ecn_of(const uint8_t *packet) {
    return packet[0] >> 4 == 4 ? packet[1] & 3 : (packet[1] >> 4) & 3; /* RFC 6040, section 4.1 */
}

/* Whether `count` more may be sealed under it (paper 6.1). */
static bool can_seal(const struct ea_pump *p, const struct ea_keypair *keypair, uint32_t count) {
    return keypair->live && p->now - keypair->created_at < EA_REJECT_AFTER &&
           keypair->counter <= EA_REJECT_COUNTER - count;
}

/* Where the next packet of up to `bytes` is to be written; NULL: a send buffer is full. */
static uint8_t *room_for(struct ea_pump *p, struct ea_keypair *keypair, uint8_t ecn, uint32_t bytes) {
    uint8_t prefix = p->peers[keypair->slot].way[0].kind == EA_WAY_RELAY ? EA_RELAY_HEAD : 0;
    uint32_t want = prefix + EA_HEADER + bytes + 15 + EA_TAG;
    if (p->out.count > 0 && (p->out.keypair != keypair || p->out.ecn != ecn || p->out.prefix != prefix ||
                             p->out.count == EA_BATCH || p->out.used + want > EA_OUT_BYTES)) {
        ea_flush_out(p);
    }
    if (p->stuck.is) return NULL;
    p->out.keypair = keypair;
    p->out.ecn = ecn;
    p->out.prefix = prefix;
    return p->out.bytes + p->out.used + prefix + EA_HEADER;
}

/* A packet of `bytes` was written to room_for's place. */
static void add(struct ea_pump *p, uint32_t bytes) {
    const struct ea_peer *peer = &p->peers[p->out.keypair->slot];
    uint32_t mtu = peer->mtu < p->config.mtu ? peer->mtu : p->config.mtu;
    uint32_t padding = -bytes & 15;
    if (bytes + padding > mtu) padding = mtu > bytes ? mtu - bytes : 0; /* never past the MTU (paper 5.4.6) */
    uint8_t *packet = p->out.bytes + p->out.used + p->out.prefix + EA_HEADER;
    memset(packet + bytes, 0, padding);
    p->out.at[p->out.count] = p->out.used;
    p->out.size[p->out.count] = p->out.prefix + EA_HEADER + bytes + padding + EA_TAG;
    p->out.used += p->out.size[p->out.count++];
}

/* What finds no room stays in `half`. */
static void seal_split(struct ea_pump *p) {
    struct ea_split *split = &p->half.split;
    while (split->next < split->count) {
        uint8_t *room = room_for(p, p->half.keypair, p->half.ecn, split->packet_bytes);
        if (room == NULL) return;
        add(p, (uint32_t)ea_split_next(split, room));
    }
    p->half.is = false;
}

void ea_take_frame(struct ea_pump *p, uint32_t bytes) {
    struct ea_split split;
    const uint8_t *packet = p->frame + EA_VNET_BYTES;
    p->figures.frames_in++;
    if (ea_split_begin(&split, p->frame, bytes) != EA_SPLIT_OK) {
        ea_drop(p, EA_DROP_VNET_HEADER, 1);
        return;
    }
    struct ea_peer *peer = ea_flow_peer(p, packet, bytes - EA_VNET_BYTES, false, 0);
    struct ea_keypair *keypair = peer != NULL ? ea_current_keypair(peer) : NULL;
    if (keypair == NULL || peer->ways == 0 || !can_seal(p, keypair, split.count) || split.packet_bytes > peer->mtu ||
        (peer->mtu < p->config.mtu && ea_may_be_syn(packet, bytes - EA_VNET_BYTES))) {
        ea_flush_out(p); /* what came before leaves before */
        ea_up_frame(p, p->frame, bytes);
        return;
    }
    p->half.is = true;
    p->half.ecn = ecn_of(packet);
    p->half.keypair = keypair;
    p->half.split = split;
    seal_split(p);
}

void ea_seal_packets(struct ea_pump *p, struct ea_keypair *keypair, const uint32_t *lengths, unsigned count,
                     const uint8_t *packets) {
    if (!can_seal(p, keypair, count) || p->peers[keypair->slot].ways == 0) {
        ea_drop(p, EA_DROP_NO_KEYPAIR, count);
        return;
    }
    for (unsigned i = 0; i < count; packets += lengths[i++]) {
        if (lengths[i] > EA_IP_MAX) {
            ea_drop(p, EA_DROP_RECORD, 1);
            continue;
        }
        uint8_t ecn = lengths[i] >= 20 ? ecn_of(packets) : 0;
        uint8_t *room = room_for(p, keypair, ecn, lengths[i]);
        if (room == NULL) {
            ea_drop(p, EA_DROP_SEND_BLOCKED, count - i);
            return;
        }
        memcpy(room, packets, lengths[i]);
        add(p, lengths[i]);
    }
    ea_flush_out(p);
}

static void note(struct ea_pump *p, struct ea_peer *peer) {
    struct ea_report *report = ea_report_of(p, peer);
    unsigned empty = 0;
    for (unsigned i = 0; i < p->out.count; i++) {
        uint32_t bytes = p->out.size[i] - p->out.prefix;
        report->tx_bytes += bytes;
        if (bytes > report->largest) report->largest = bytes;
        empty += bytes == EA_HEADER + EA_TAG;
    }
    report->last_sent_at = p->now;
    if (empty < p->out.count) {
        if (report->first_data_sent_at == 0) report->first_data_sent_at = p->now;
        report->last_data_sent_at = p->now;
        ea_await(p, peer);
    }
}

static uint8_t *tail_at(struct ea_pump *p, unsigned number) {
    return p->tail_bytes + (size_t)number * (EA_RELAY_HEAD + EA_TAIL_BYTES);
}

/* The other end may get none of it. Where it does not answer, the last ones are worth more than the first: a receiver of TCP says
 * at the sight of one what all it lacks. */
static void keep(struct ea_pump *p, const struct ea_peer *peer) {
    int64_t silent = p->now - peer->unanswered_since;
    if ((!peer->awaited && !peer->overdue) || peer->ways > 1 || silent < EA_TAIL_AFTER_MS * 1000000LL ||
        silent > EA_TAIL_UNTIL_MS * 1000000LL) {
        return;
    }
    for (unsigned i = p->out.count > EA_TAILS ? p->out.count - EA_TAILS : 0; i < p->out.count; i++) {
        uint32_t size = p->out.size[i] - p->out.prefix;
        if (size > EA_TAIL_BYTES) continue;
        struct ea_tail *tail = &p->tail[p->next_tail];
        *tail = (struct ea_tail){peer->unanswered_since, peer->generation, p->out.keypair->slot, (uint16_t)size, p->out.ecn};
        memcpy(tail_at(p, p->next_tail) + EA_RELAY_HEAD, p->out.bytes + p->out.at[i] + p->out.prefix, size);
        p->next_tail = (p->next_tail + 1) % EA_TAILS;
    }
}

void ea_repeat(struct ea_pump *p, struct ea_peer *peer, unsigned number) {
    for (unsigned i = 0; i < EA_TAILS; i++) {
        unsigned at = (p->next_tail + i) % EA_TAILS;
        const struct ea_tail *tail = &p->tail[at];
        if (tail->size == 0 || &p->peers[tail->slot] != peer || tail->generation != peer->generation ||
            tail->unanswered_since != peer->unanswered_since) {
            continue;
        }
        uint32_t begin = 0, size = EA_RELAY_HEAD + tail->size;
        struct ea_bundle bundle = {.bytes = tail_at(p, at), .at = &begin, .size = &size, .count = 1, .prefix = EA_RELAY_HEAD,
                                   .ecn = tail->ecn, .peer = peer, .number = number};
        if (ea_send(p, &bundle, &peer->way[number], 0) == 0) ea_drop(p, EA_DROP_SEND_BLOCKED, 1);
    }
}

static void send_on(struct ea_pump *p, unsigned number, unsigned first) {
    struct ea_peer *peer = &p->peers[p->out.keypair->slot];
    struct ea_bundle bundle = {.bytes = p->out.bytes,
                               .at = p->out.at,
                               .size = p->out.size,
                               .count = p->out.count,
                               .prefix = p->out.prefix,
                               .ecn = p->out.ecn,
                               .peer = peer};
    for (; number < peer->ways; number++, first = 0) {
        bundle.number = number;
        unsigned done = ea_send(p, &bundle, &peer->way[number], first);
        if (done < bundle.count) {
            p->stuck.is = true;
            p->stuck.number = number;
            p->stuck.first = done;
            return;
        }
    }
    p->stuck.is = false;
    p->out.count = 0;
    p->out.used = 0;
}

static void wait(struct ea_pump *p) {
    bool alone = true;
    for (unsigned i = 0; i < p->sockets; i++) alone &= p->socket[i].interface == 0;
    p->stuck.until = p->now + (alone ? STUCK_ALONE_MS : STUCK_MS) * 1000000LL;
    p->stuck.retry_at = p->now + RETRY_MS * 1000000LL;
}

void ea_flush_out(struct ea_pump *p) {
    if (p->out.count == 0 || p->stuck.is) return;
    struct ea_keypair *keypair = p->out.keypair;
    uint8_t *text[EA_BATCH];
    uint32_t bytes[EA_BATCH], most = 0;
    for (unsigned i = 0; i < p->out.count; i++) {
        uint8_t *head = p->out.bytes + p->out.at[i] + p->out.prefix;
        put_le32(head, 4);
        put_le32(head + 4, keypair->remote_index);
        put_le64(head + 8, keypair->counter + i);
        text[i] = head + EA_HEADER;
        bytes[i] = p->out.size[i] - p->out.prefix - EA_HEADER - EA_TAG;
        if (bytes[i] > most) most = bytes[i];
    }
    ea_aead_seal(most < EA_SMALL_BYTES ? p->small : p->large, keypair->send_key, keypair->counter, text, bytes, p->out.count);
    keypair->counter += p->out.count;
    note(p, &p->peers[keypair->slot]);
    keep(p, &p->peers[keypair->slot]);
    send_on(p, 0, 0);
    wait(p);
}

/* Nothing has been told meanwhile that would make it wrong: who is stuck does not listen. */
static void take_rest(struct ea_pump *p) {
    if (!p->half.is) return;
    uint32_t left = p->half.split.count - p->half.split.next;
    if (can_seal(p, p->half.keypair, left)) {
        seal_split(p);
        ea_flush_out(p);
    } else {
        ea_drop(p, EA_DROP_NO_KEYPAIR, left);
        p->half.is = false;
    }
}

void ea_unstick(struct ea_pump *p, bool writable) {
    if (!p->stuck.is || (!writable && p->now < p->stuck.retry_at)) return;
    unsigned number = p->stuck.number, first = p->stuck.first;
    send_on(p, number, first);
    if (!p->stuck.is) {
        take_rest(p);
        return;
    }
    bool moved = p->stuck.number != number || p->stuck.first != first;
    if (!moved && p->now < p->stuck.until) {
        p->stuck.retry_at = p->now + RETRY_MS * 1000000LL;
        return;
    }
    if (!moved) { /* Another uplink may be free: for a while nothing waits for this one */
        p->choked_until[p->stuck.socket] = p->now + STUCK_MS * 1000000LL;
        send_on(p, number, first);
        if (!p->stuck.is) {
            take_rest(p);
            return;
        }
    }
    wait(p);
}
