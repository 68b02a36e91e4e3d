/* Rings of records between the owner's thread and the pump's: one producer, one consumer, no locks. */
#include "core.h"

#include <stdatomic.h>
#include <string.h>

enum { SKIP = 0xFFFF, SHARES = 8 }; /* the rest of the ring is not used; one source has at most 1/8 of it */

static uint32_t padded(uint32_t bytes) {
    return (uint32_t)sizeof(struct ea_record) + ((bytes + 7U) & ~7U);
}

void ea_ring_init(struct ea_ring *ring, void *bytes, uint32_t size) {
    ring->bytes = bytes;
    ring->size = size;
}

uint32_t ea_ring_used(struct ea_ring *ring) {
    return atomic_load_explicit(&ring->head, memory_order_acquire) - atomic_load_explicit(&ring->tail, memory_order_acquire);
}

bool ea_ring_share(const struct ea_ring *ring, unsigned bucket, uint32_t bytes) {
    uint32_t taken = atomic_load_explicit(&ring->taken[bucket], memory_order_relaxed);
    uint32_t has = ring->put[bucket] - taken;
    /* The longest frame is more than a share of a small ring: one may always wait */
    return has == 0 || has + padded(bytes) <= ring->size / SHARES;
}

uint8_t *ea_ring_reserve(struct ea_ring *ring, uint32_t bytes, uint32_t spare, uint32_t *at) {
    uint32_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    uint32_t want = padded(bytes), room = ring->size - (head - tail);
    uint32_t to_end = ring->size - (head & (ring->size - 1));
    uint32_t skipped = want > to_end ? to_end : 0;
    if (room < spare || room - spare < want + skipped) return NULL;
    if (skipped != 0) {
        /* Records do not wrap around: sizes are multiples of 8, so a head fits. */
        struct ea_record skip = {to_end - (uint32_t)sizeof skip, SKIP, EA_NO_BUCKET};
        memcpy(ring->bytes + (head & (ring->size - 1)), &skip, sizeof skip);
        head += to_end;
    }
    if (head + want - tail > ring->peak) ring->peak = head + want - tail;
    *at = head;
    return ring->bytes + (head & (ring->size - 1)) + sizeof(struct ea_record);
}

void ea_ring_commit(struct ea_ring *ring, uint32_t at, uint32_t bytes, unsigned kind, unsigned bucket) {
    struct ea_record record = {bytes, (uint16_t)kind, (uint16_t)bucket};
    memcpy(ring->bytes + (at & (ring->size - 1)), &record, sizeof record);
    if (bucket < EA_BUCKETS) ring->put[bucket] += padded(bytes);
    atomic_store_explicit(&ring->head, at + padded(bytes), memory_order_release);
}

const struct ea_record *ea_ring_peek(struct ea_ring *ring, uint32_t *at) {
    uint32_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    for (;;) {
        if (tail == atomic_load_explicit(&ring->head, memory_order_acquire)) return NULL;
        const struct ea_record *record = (const void *)(ring->bytes + (tail & (ring->size - 1)));
        if (record->kind != SKIP) {
            *at = tail;
            return record;
        }
        tail += padded(record->bytes);
        atomic_store_explicit(&ring->tail, tail, memory_order_release);
    }
}

void ea_ring_next(struct ea_ring *ring, uint32_t at, const struct ea_record *record) {
    uint32_t bytes = padded(record->bytes);
    if (record->bucket < EA_BUCKETS) {
        uint32_t taken = atomic_load_explicit(&ring->taken[record->bucket], memory_order_relaxed);
        atomic_store_explicit(&ring->taken[record->bucket], taken + bytes, memory_order_relaxed);
    }
    atomic_store_explicit(&ring->tail, at + bytes, memory_order_release);
}
