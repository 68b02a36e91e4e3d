/* What is not known here goes to the owner, by rings that drop when they are full, and in which no source takes all. */
#include "core.h"

#include <string.h>

static void fill(const struct ea_pump *p, struct ea_share *share, int64_t rate) {
    int64_t passed = p->now - share->at, full = rate * EA_NS;
    share->at = p->now;
    share->tokens = passed >= EA_NS || share->tokens + passed * rate > full ? full : share->tokens + passed * rate;
}

/* Beyond its share a source takes only of the upper half of what all may: so a scan by one of them leaves the others theirs. */
static bool take_token(struct ea_pump *p, unsigned bucket) {
    int64_t rate = p->config.new_flows_per_s, part = rate / EA_NEW_FLOW_SHARES;
    struct ea_share *pool = &p->pool, *share = &p->share[bucket];
    fill(p, pool, rate);
    fill(p, share, part > 0 ? part : 1);
    if (pool->tokens < EA_NS) return false;
    if (share->tokens >= EA_NS) {
        share->tokens -= EA_NS;
    } else if (pool->tokens - EA_NS < rate * EA_NS / 2) {
        return false;
    }
    pool->tokens -= EA_NS;
    return true;
}

static void put(struct ea_pump *p, unsigned number, unsigned kind, unsigned bucket, const void *head, uint32_t head_bytes,
                const uint8_t *body, uint32_t bytes) {
    struct ea_ring *ring = &p->up[number];
    uint32_t at;
    if (bucket < EA_BUCKETS && !ea_ring_share(ring, bucket, head_bytes + bytes)) {
        ea_drop(p, EA_DROP_UP_SHARE, 1);
        return;
    }
    uint8_t *room = ea_ring_reserve(ring, head_bytes + bytes, 0, &at);
    if (room == NULL) {
        ea_drop(p, number == EA_RING_NET ? EA_DROP_UP_NET_FULL : EA_DROP_UP_TUN_FULL, 1);
        return;
    }
    memcpy(room, head, head_bytes);
    if (bytes > 0) memcpy(room + head_bytes, body, bytes);
    ea_ring_commit(ring, at, head_bytes + bytes, kind, bucket);
    ea_ring_bell(p);
}

/* A site with an IPv6 /64 is one source, and so is one of IPv4 whatever ports it uses. */
static unsigned bucket_of_way(const struct ea_pump *p, const struct ea_way *way) {
    uint8_t source[16] = {0};
    memcpy(source, way->address, way->family == 6 ? 8 : 4);
    memcpy(source + 8, &way->session, 4);
    memcpy(source + 12, &way->channel, 2);
    return (unsigned)(ea_mix(p->secret, source, sizeof source) % EA_BUCKETS);
}

/* A peer is one source, whatever addresses it writes into its packets. Slots are given densely, from the lowest: not hashed, no
   two of the first EA_BUCKETS peers share a bucket, so a scan by one takes nothing from the others. */
static unsigned bucket_of_slot(const struct ea_pump *p, uint64_t slot) {
    return (unsigned)((p->secret + slot) % EA_BUCKETS);
}

static unsigned bucket_of_packet(const struct ea_pump *p, const uint8_t *packet, uint32_t bytes) {
    uint8_t source[16] = {0};
    if (bytes >= 20 && packet[0] >> 4 == 4) memcpy(source, packet + 12, 4);
    if (bytes >= 40 && packet[0] >> 4 == 6) memcpy(source, packet + 8, 16);
    return (unsigned)(ea_mix(p->secret, source, sizeof source) % EA_BUCKETS);
}

void ea_up_frame(struct ea_pump *p, const uint8_t *frame, uint32_t bytes) {
    struct ea_slot head = {0};
    unsigned bucket = bytes > EA_VNET_BYTES ? bucket_of_packet(p, frame + EA_VNET_BYTES, bytes - EA_VNET_BYTES) : 0;
    if (!take_token(p, bucket)) {
        ea_drop(p, EA_DROP_NEW_FLOWS, 1);
        return;
    }
    put(p, EA_RING_TUN, EA_UP_FRAME, bucket, &head, sizeof head, frame, bytes);
}

void ea_up_packet(struct ea_pump *p, const struct ea_keypair *keypair, unsigned ecn, const uint8_t *packet, uint32_t bytes) {
    struct ea_slot head = {.slot = keypair->slot, .position = keypair->position, .count = p->peers[keypair->slot].generation << 2 | ecn};
    unsigned bucket = bucket_of_slot(p, keypair->slot);
    if (!take_token(p, bucket)) {
        ea_drop(p, EA_DROP_NEW_FLOWS, 1);
        return;
    }
    put(p, EA_RING_TUN, EA_UP_PACKET, bucket, &head, sizeof head, packet, bytes);
}

void ea_up_datagram(struct ea_pump *p, const struct ea_way *from, unsigned ecn, const uint8_t *datagram, uint32_t bytes) {
    struct ea_send_record head = {.way = *from, .ecn = (uint8_t)ecn, .count = 1};
    put(p, EA_RING_NET, EA_UP_DATAGRAM, bucket_of_way(p, from), &head, sizeof head, datagram, bytes);
}

void ea_up_sealed(struct ea_pump *p, unsigned slot, unsigned way, unsigned ecn, const uint8_t *datagram, uint32_t bytes) {
    struct ea_slot head = {.slot = (uint16_t)slot, .position = (uint8_t)way, .count = p->peers[slot].generation << 2 | ecn};
    put(p, EA_RING_TUN, EA_UP_SEALED, EA_NO_BUCKET, &head, sizeof head, datagram, bytes);
}

void ea_up_unsent(struct ea_pump *p, const struct ea_way *way, int number, uint32_t bytes, bool own) {
    struct ea_send_record head = {.way = *way, .ttl = own, .reserved = (uint16_t)number, .count = bytes};
    put(p, EA_RING_NET, EA_UP_UNSENT, bucket_of_way(p, way), &head, sizeof head, NULL, 0);
}
