/* Keypairs by index, flows by addresses and ports, windows against replays. Every look-up is bounded. */
#include "core.h"

#include <string.h>

#include <stdatomic.h>

enum { TCP = 6, UDP = 17, SCTP = 132, ICMP = 1, ICMPV6 = 58, FIN = 1, SYN = 2, RST = 4, ACK = 16 };

/* Keypairs. Indices are random and the owner's, so one multiplication spreads them well enough. */

static uint32_t index_home(const struct ea_pump *p, uint32_t local_index) {
    return (local_index * 0x9E3779B1U) >> 7 & p->index_mask;
}

static struct ea_keypair *keypair_of(struct ea_pump *p, uint32_t number) {
    return &p->peers[number / EA_POSITIONS].keypair[number % EA_POSITIONS];
}

struct ea_keypair *ea_find_keypair(struct ea_pump *p, uint32_t local_index) {
    /* A quarter of the table is used at most, so there is always a free place to stop at. */
    for (uint32_t at = index_home(p, local_index);; at = (at + 1) & p->index_mask) {
        uint32_t entry = p->index_slots[at];
        if (entry == 0) return NULL;
        struct ea_keypair *keypair = keypair_of(p, entry - 1);
        if (keypair->local_index == local_index) return keypair;
    }
}

bool ea_install_keypair(struct ea_pump *p, const struct ea_keypair_record *record) {
    if (record->slot >= p->limits.peers || record->position >= EA_POSITIONS || !p->peers[record->slot].live ||
        record->created_at < -EA_TIME_MAX || record->created_at > EA_TIME_MAX) {
        return false;
    }
    struct ea_keypair *keypair = &p->peers[record->slot].keypair[record->position];
    ea_forget_keypair(p, keypair);
    if (ea_find_keypair(p, record->local_index) != NULL) return false;
    memset(keypair, 0, sizeof *keypair);
    keypair->local_index = record->local_index;
    keypair->remote_index = record->remote_index;
    keypair->slot = record->slot;
    keypair->position = record->position;
    keypair->unconfirmed = record->unconfirmed != 0;
    keypair->created_at = record->created_at;
    memcpy(keypair->send_key, record->send_key, 32);
    memcpy(keypair->receive_key, record->receive_key, 32);
    keypair->live = true;
    uint32_t at = index_home(p, record->local_index);
    while (p->index_slots[at] != 0) at = (at + 1) & p->index_mask;
    p->index_slots[at] = (uint32_t)record->slot * EA_POSITIONS + record->position + 1;
    return true;
}

void ea_forget_keypair(struct ea_pump *p, struct ea_keypair *keypair) {
    if (!keypair->live) return;
    uint32_t mask = p->index_mask, hole = index_home(p, keypair->local_index);
    while (keypair_of(p, p->index_slots[hole] - 1) != keypair) hole = (hole + 1) & mask;
    /* Close the gap: what was pushed past it moves up, so that no look-up stops too early. */
    for (uint32_t at = (hole + 1) & mask; p->index_slots[at] != 0; at = (at + 1) & mask) {
        uint32_t home = index_home(p, keypair_of(p, p->index_slots[at] - 1)->local_index);
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            p->index_slots[hole] = p->index_slots[at];
            hole = at;
        }
    }
    p->index_slots[hole] = 0;
    keypair->live = false;
    memset(keypair->send_key, 0, sizeof keypair->send_key);
    memset(keypair->receive_key, 0, sizeof keypair->receive_key);
    __asm__ volatile("" : : "r"(keypair) : "memory"); /* that the wiping is not optimised away */
}

/* RFC 6479. Only for counters that were authenticated. */
bool ea_window_accept(struct ea_window *window, uint64_t counter) {
    uint64_t word = counter >> 6;
    if (counter >= window->end) {
        uint64_t before = window->end == 0 ? 0 : (window->end - 1) >> 6;
        uint64_t passed = word - before;
        if (passed >= EA_WINDOW_WORDS) {
            memset(window->words, 0, sizeof window->words);
        } else {
            for (uint64_t at = before + 1; at <= word; at++) window->words[at & (EA_WINDOW_WORDS - 1)] = 0;
        }
        window->end = counter + 1;
    } else if (window->end - 1 - counter >= EA_WINDOW) {
        return false;
    }
    uint64_t bit = 1ULL << (counter & 63), *seen = &window->words[word & (EA_WINDOW_WORDS - 1)];
    if (*seen & bit) return false;
    *seen |= bit;
    return true;
}

/* Flows */

/* Keyed, so that nobody outside can choose addresses that fall into one set. */
uint64_t ea_mix(uint64_t secret, const void *bytes, size_t size) {
    uint64_t hash = secret, word;
    for (size_t at = 0; at < size; at += 8) {
        memcpy(&word, (const uint8_t *)bytes + at, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
        hash ^= hash >> 29;
        hash += secret;
    }
    hash *= 0xBF58476D1CE4E5B9ULL;
    return hash ^ hash >> 32;
}

/* As proto/heads.py reads it. False: each packet of that kind is judged by the owner. */
static bool read_ports(struct ea_key *key, const uint8_t *packet, uint32_t bytes, uint32_t at) {
    if (bytes < at) return false;
    if (key->protocol == TCP || key->protocol == UDP || key->protocol == SCTP) {
        if (bytes < at + 4) return false;
        memcpy(key->ports, packet + at, 4);
    } else if (key->protocol == (key->kind == 4 ? ICMP : ICMPV6)) {
        if (bytes < at + 8) return false;
        unsigned asks = key->kind == 4 ? 8 : 128, answers = key->kind == 4 ? 0 : 129;
        if (packet[at] != asks && packet[at] != answers) return false;
        memcpy(key->ports, packet + at + 4, 2); /* the identifier */
        key->ports[2] = packet[at] == asks;
    } else if (key->kind == 6) {
        return key->protocol != 0 && key->protocol != 43 && key->protocol != 44 && key->protocol != 51 && key->protocol != 60;
    }
    return true;
}

bool ea_parse(struct ea_key *key, const uint8_t *packet, uint32_t bytes, bool inbound, unsigned slot, bool exact,
              uint32_t *transport) {
    memset(key, 0, sizeof *key);
    bool fragment = false;
    if (bytes >= 20 && packet[0] >> 4 == 4) {
        memcpy(key->source, packet + 12, 4);
        memcpy(key->destination, packet + 16, 4);
        *transport = (packet[0] & 15U) * 4;
        if (exact && *transport < 20) return false;
        key->protocol = packet[9];
        fragment = (packet[6] & 0x3F) != 0 || packet[7] != 0;
        key->kind = 4;
    } else if (bytes >= 40 && packet[0] >> 4 == 6) {
        memcpy(key->source, packet + 8, 16);
        memcpy(key->destination, packet + 24, 16);
        *transport = 40;
        key->protocol = packet[6];
        key->kind = 6;
    } else {
        return false;
    }
    if (exact) {
        if (fragment || !read_ports(key, packet, bytes, *transport)) return false;
    } else {
        key->protocol = 0;
    }
    if (inbound) key->kind |= 0x80;
    key->slot = inbound ? (uint16_t)slot : 0;
    return true;
}

static struct ea_flow *flow_set(struct ea_pump *p, const struct ea_key *key) {
    return &p->flows[(ea_mix(p->secret, key, sizeof *key) & p->flow_sets_mask) * EA_WAYS_FLOW];
}

static bool is_valid(const struct ea_pump *p, const struct ea_flow *flow) {
    return flow->live && flow->epoch == p->flow_epoch && p->peers[flow->slot].live &&
           p->peers[flow->slot].generation == flow->generation;
}

/* The owner has ended it. */
static bool is_void(const struct ea_pump *p, const struct ea_flow *flow) {
    return flow->entry != 0 &&
           atomic_load_explicit(&p->marks[flow->entry - 1].valid, memory_order_relaxed) != flow->entry_generation;
}

static bool is_usable(const struct ea_pump *p, const struct ea_flow *flow) {
    return is_valid(p, flow) && !is_void(p, flow);
}

/* Of one that counts. */
static void lose_flow(struct ea_pump *p, struct ea_flow *flow) {
    flow->live = false;
    p->peers[flow->slot].flows--;
    p->figures.flows_used--;
}

static struct ea_flow *find_flow(struct ea_pump *p, const struct ea_key *key) {
    struct ea_flow **last = &p->last_flow[key->kind >> 7];
    if (*last != NULL && memcmp(&(*last)->key, key, sizeof *key) == 0 && is_usable(p, *last)) {
        (*last)->used_s = p->now_s;
        return *last;
    }
    struct ea_flow *set = flow_set(p, key);
    for (unsigned i = 0; i < EA_WAYS_FLOW; i++) {
        if (set[i].live && memcmp(&set[i].key, key, sizeof *key) == 0) {
            if (!is_valid(p, &set[i])) {
                set[i].live = false;
                return NULL;
            }
            if (is_void(p, &set[i])) {
                lose_flow(p, &set[i]);
                return NULL;
            }
            set[i].used_s = p->now_s;
            return *last = &set[i];
        }
    }
    return NULL;
}

struct ea_peer *ea_flow_peer(struct ea_pump *p, const uint8_t *packet, uint32_t bytes, bool inbound, unsigned slot) {
    struct ea_key key;
    uint32_t at, used = EA_MARK_USED;
    if (!ea_parse(&key, packet, bytes, inbound, slot, p->config.exact, &at)) return NULL;
    if (p->config.exact && key.protocol == TCP) {
        if (bytes < at + 20) return NULL;
        if ((packet[at + 13] & (SYN | ACK)) == SYN) return NULL; /* it asks for a connection: it is no answer */
        if (packet[at + 13] & (FIN | RST)) used |= EA_MARK_CLOSING;
    } else if (p->config.exact && bytes < at + (key.protocol == UDP ? 8 : key.protocol == SCTP ? 12 : 0)) {
        return NULL;
    }
    struct ea_flow *flow = find_flow(p, &key);
    if (flow == NULL) return NULL;
    if (flow->entry != 0) { /* mostly it is set already, and a read is all */
        struct ea_mark *mark = &p->marks[flow->entry - 1];
        if ((atomic_load_explicit(&mark->used, memory_order_relaxed) & used) != used) {
            atomic_fetch_or_explicit(&mark->used, used, memory_order_relaxed);
        }
    }
    return &p->peers[flow->slot];
}

void ea_mark(struct ea_pump *p, uint32_t entry, uint32_t generation) {
    if (entry >= p->limits.entries) return;
    atomic_store_explicit(&p->marks[entry].valid, generation, memory_order_relaxed);
    atomic_store_explicit(&p->marks[entry].used, 0, memory_order_relaxed);
}

void ea_take_marks(struct ea_pump *p, uint8_t *out) {
    for (uint32_t i = 0; i < p->limits.entries; i++) {
        uint32_t used = atomic_load_explicit(&p->marks[i].used, memory_order_relaxed);
        if (used != 0) used = atomic_exchange_explicit(&p->marks[i].used, 0, memory_order_relaxed);
        out[i] = (uint8_t)used;
    }
}

void ea_lose_flows(struct ea_pump *p, struct ea_peer *peer) {
    p->figures.flows_used -= peer->flows;
    peer->flows = 0;
}

bool ea_add_flow(struct ea_pump *p, const struct ea_flow_record *record, const uint8_t *packet, uint32_t bytes) {
    struct ea_key key;
    uint32_t at;
    if (record->slot >= p->limits.peers || !p->peers[record->slot].live || record->entry > p->limits.entries ||
        !ea_parse(&key, packet, bytes, record->inbound != 0, record->slot, p->config.exact, &at)) {
        return false;
    }
    struct ea_flow *set = flow_set(p, &key), *chosen = NULL;
    for (unsigned i = 0; i < EA_WAYS_FLOW; i++) {
        if (set[i].live && memcmp(&set[i].key, &key, sizeof key) == 0) {
            chosen = &set[i];
            break;
        }
        /* The free one, else the one unused for longest */
        if (chosen == NULL || (is_usable(p, chosen) && (!is_usable(p, &set[i]) || set[i].used_s < chosen->used_s))) {
            chosen = &set[i];
        }
    }
    if (is_valid(p, chosen)) {
        if (!is_void(p, chosen) && memcmp(&chosen->key, &key, sizeof key) != 0) p->figures.flows_evicted++;
        lose_flow(p, chosen);
    }
    p->peers[record->slot].flows++;
    p->figures.flows_used++;
    *chosen = (struct ea_flow){.key = key,
                               .generation = p->peers[record->slot].generation,
                               .epoch = p->flow_epoch,
                               .used_s = p->now_s,
                               .entry = record->entry,
                               .entry_generation = record->generation,
                               .slot = record->slot,
                               .live = true};
    return true;
}

/* One look that tells nearly all packets without extensions from a SYN (proto/narrow.py). */
bool ea_may_be_syn(const uint8_t *packet, uint32_t bytes) {
    if (packet[0] == 0x45) return packet[9] == TCP && bytes >= 40 && (packet[33] & 2) != 0;
    if (packet[0] >> 4 == 6 && packet[6] == TCP) return bytes >= 60 && (packet[53] & 2) != 0;
    return packet[0] >> 4 == 4 || packet[6] == 0 || packet[6] == 43 || packet[6] == 60 || packet[6] == 44;
}
