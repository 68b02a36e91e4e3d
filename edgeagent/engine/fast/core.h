/* What the parts of the pump share. All of it belongs to the pump's thread but the rings, whose heads and tails say which end
 * is whose. */
#ifndef EA_CORE_H
#define EA_CORE_H

#include "aead.h"
#include "fast.h"
#include "offload.h"

#include <pthread.h>
#include <sys/socket.h>

enum {
    EA_BATCH = EA_AEAD_BATCH_MAX,
    EA_HEADER = 16,         /* type, receiver index, counter (paper 5.4.6) */
    EA_TAG = EA_AEAD_TAG,
    EA_RELAY_HEAD = 8,      /* u8 type 0xE5, u8 zero, u16 channel, u32 session (proto/relay_frames.py) */
    EA_OUT_BYTES = 131072,  /* of sealed datagrams under way: two super-packets */
    EA_IN_BYTES = 65536,    /* one read of a socket: up to 64 datagrams of one source */
    EA_READS = 8,           /* such reads of a socket in one call */
    EA_FRAMES = 16,         /* read of the TUN in one turn */
    EA_DOWNS = 64,          /* records of the owner's that are followed in one turn */
    EA_BUCKETS = 64,        /* of sources, which share a ring to the owner */
    EA_WINDOW_WORDS = 128,  /* RFC 6479: 8,192 counters, of which one word is always being overwritten */
    EA_NEW_FLOW_SHARES = 16, /* a source always finds that part of what may go up of new flows */
    EA_WAYS_FLOW = 4,       /* entries of one set of the flow table */
    EA_SEGMENTED_MAX = 65000, /* bytes of one send */
    EA_UDP_SEGMENTS = 64,   /* UDP_MAX_SEGMENTS of Linux before 6.9 */
    EA_TAILS = 32,          /* datagrams that went into a silence, of all peers, and are kept; none longer than: */
    EA_TAIL_BYTES = 2048 - EA_RELAY_HEAD,
    EA_TAIL_AFTER_MS = 4,   /* what is not answered for so long is no part of a stream that runs, */
    EA_TAIL_UNTIL_MS = 1000 /* and for so long, of one that only goes one way */
};
#define EA_NS 1000000000LL
#define EA_REJECT_AFTER (180 * EA_NS)
#define EA_TIME_MAX (INT64_MAX / 4) /* of a clock: differences of times are times too */
#define EA_REJECT_COUNTER (UINT64_MAX - (1U << 13))
#define EA_WINDOW (EA_WINDOW_WORDS * 64 - 64)

/* One producer, one consumer. `head` and `tail` only grow, modulo 2^32. */
struct ea_ring {
    uint8_t *bytes;
    uint32_t size, peak;
    _Atomic uint32_t head; /* the producer's */
    _Atomic uint32_t tail; /* the consumer's */
    /* Bytes by source, so that none fills it: the producer's count, and the consumer's. */
    uint32_t put[EA_BUCKETS];
    _Atomic uint32_t taken[EA_BUCKETS];
};
enum { EA_NO_BUCKET = 0xFFFF };

void ea_ring_init(struct ea_ring *ring, void *bytes, uint32_t size);
/* Room for a record, or NULL; `spare` bytes are to stay free. Then fill it, and ea_ring_commit. */
uint8_t *ea_ring_reserve(struct ea_ring *ring, uint32_t bytes, uint32_t spare, uint32_t *at);
void ea_ring_commit(struct ea_ring *ring, uint32_t at, uint32_t bytes, unsigned kind, unsigned bucket);
bool ea_ring_share(const struct ea_ring *ring, unsigned bucket, uint32_t bytes); /* false: the source has its share already */
/* The next record, or NULL; it stays until ea_ring_next. */
const struct ea_record *ea_ring_peek(struct ea_ring *ring, uint32_t *at);
void ea_ring_next(struct ea_ring *ring, uint32_t at, const struct ea_record *record);
uint32_t ea_ring_used(struct ea_ring *ring);

struct ea_window {
    uint64_t end; /* the highest counter seen, plus one */
    uint64_t words[EA_WINDOW_WORDS];
};
bool ea_window_accept(struct ea_window *window, uint64_t counter);

struct ea_keypair {
    uint32_t local_index, remote_index;
    uint16_t slot;
    uint8_t position;
    bool live, unconfirmed;
    int64_t created_at;
    uint64_t counter; /* of the next message */
    uint8_t send_key[32], receive_key[32];
    struct ea_window window;
};

struct ea_peer {
    uint32_t generation, mtu;
    uint32_t flows; /* valid entries of the flow table that lead to it, or come from it */
    bool live;
    bool reported;    /* there is nothing to report */
    bool unsent_told; /* within this report */
    uint8_t ways;
    uint8_t told;      /* position of the keypair to seal under, as the owner said */
    uint8_t confirmed; /* the one whose first message came since; the owner may not have heard */
    struct ea_way way[EA_WAYS];
    struct ea_report report; /* what has happened since the last one went up */
    int64_t active_at;
    uint32_t quiet_ms;        /* as in the record */
    bool awaited;             /* it is in the list of those whose answer is waited for */
    bool overdue;             /* the answer was waited for in vain */
    int64_t unanswered_since; /* as in a report */
    int64_t talked_at;        /* when data came by the first way last; 0: not since it is that */
    struct ea_keypair keypair[EA_POSITIONS];
};

/* Addresses and ports of a packet, as a flow is known by. 40 bytes without holes: compared and hashed as words. */
struct ea_key {
    uint8_t source[16], destination[16];
    uint8_t ports[4];
    uint8_t protocol, kind; /* kind: IP version | 0x80 inbound */
    uint16_t slot;          /* inbound: of the peer; else 0 */
};
struct ea_flow {
    struct ea_key key;
    uint32_t generation, epoch, used_s;
    uint32_t entry, entry_generation; /* as in the record */
    uint16_t slot;
    bool live;
};
/* One of the owner's entries. `valid` is its to write; `used` is set here and cleared by it. */
struct ea_mark {
    _Atomic uint32_t valid, used;
};
/* 1/EA_NS of packets that may go up. */
struct ea_share {
    int64_t tokens, at;
};

/* A sealed datagram that may have been lost. */
struct ea_tail {
    int64_t unanswered_since; /* of its peer when it was sent: void when that is another */
    uint32_t generation;
    uint16_t slot, size;      /* without room for a relay's header, which is before it; 0: none */
    uint8_t ecn;
};

struct ea_pump {
    struct ea_limits limits;
    struct ea_config config;
    size_t mapped;
    uint8_t *map;

    struct ea_peer *peers;
    uint32_t *index_slots; /* keypair number + 1, by local index: open addressing */
    uint32_t index_mask;
    struct ea_flow *flows;
    uint32_t flow_sets_mask, flow_epoch;
    struct ea_mark *marks;
    uint64_t secret;
    struct ea_flow *last_flow[2]; /* into the tunnel, and out of it */
    struct ea_share pool, share[EA_BUCKETS]; /* packets of new flows that may go up, of all sources and of each */

    struct ea_ring down, up[EA_RINGS];
    int wake_fd, up_fd;
    _Atomic uint32_t asleep, rung;
    _Atomic uint32_t sync_wanted, sync_done;
    uint16_t *to_report; /* slots of peers that have something to report */
    unsigned reports;
    bool urgent;         /* not when it is time, but now */
    int64_t reported_at;
    uint16_t *awaited;   /* slots of peers that were sent data, and that may not have answered */
    unsigned awaiteds;
    int64_t look_at;     /* when the first of them has been silent for too long; it may have answered by then */

    int tun;
    bool udp_offload, tun_gone;
    struct ea_socket socket[EA_SOCKETS];
    uint8_t socket_mode[EA_SOCKETS]; /* 0 unknown, 1 may be fragmented, 2 may not */
    unsigned sockets;
    struct ea_way relay[EA_RELAYS];
    unsigned relays;

    struct ea_aead *small, *large;
    int64_t now;
    uint32_t now_s; /* the same in seconds, for ages */

    /* Sealed datagrams that leave together: of one peer, keypair and ECN field, back to back. */
    struct {
        uint8_t *bytes;
        uint32_t used;
        unsigned count;
        uint32_t at[EA_BATCH], size[EA_BATCH]; /* of datagrams, with a relay's header */
        struct ea_keypair *keypair;
        uint8_t ecn, prefix;
    } out;
    /* A send buffer is full: `out` waits for it, from way `number` and datagram `first` on. Nothing more is taken from the TUN and
     * the owner meanwhile. */
    struct {
        bool is;
        unsigned socket, first, number;
        int64_t until, retry_at;
    } stuck;
    int64_t choked_until[EA_SOCKETS];
    struct ea_tail tail[EA_TAILS];
    uint8_t *tail_bytes;
    unsigned next_tail; /* the oldest */
    /* The rest of `frame`, whose first packets filled a send buffer: it follows when that has room again. */
    struct {
        bool is;
        uint8_t ecn;
        struct ea_keypair *keypair;
        struct ea_split split;
    } half;

    uint8_t *frame;   /* one of the TUN's */
    uint8_t *inbox;   /* EA_READS × EA_IN_BYTES */
    struct ea_coalesce *join;
    /* Messages of one keypair that are opened together. */
    struct {
        struct ea_keypair *keypair;
        unsigned count;
        uint8_t *text[EA_BATCH];
        uint32_t bytes[EA_BATCH], wire[EA_BATCH];
        uint64_t counter[EA_BATCH];
        uint8_t ecn[EA_BATCH];
        struct ea_way from;
    } in;
    bool opening; /* what the owner handed over */

    struct ea_figures figures; /* as they are; the owner sees them as they were when a turn ended: */
    _Atomic uint32_t shown_number; /* odd while they are being written */
    _Atomic uint32_t shown[sizeof(struct ea_figures) / 4];

    pthread_t thread;
    bool has_thread;
    _Atomic uint32_t halt;
};

static inline void ea_drop(struct ea_pump *p, unsigned reason, uint64_t count) {
    p->figures.drops[reason] += count;
}

/* tables.c */
struct ea_keypair *ea_find_keypair(struct ea_pump *p, uint32_t local_index);
bool ea_install_keypair(struct ea_pump *p, const struct ea_keypair_record *record);
void ea_forget_keypair(struct ea_pump *p, struct ea_keypair *keypair);
/* To seal under: what the owner said, or a newer one that was confirmed since. NULL: none; it may have been forgotten. */
struct ea_keypair *ea_current_keypair(struct ea_peer *peer);
/* Key of a packet, and where its transport's header begins. False: it is of no flow that is known here. */
bool ea_parse(struct ea_key *key, const uint8_t *packet, uint32_t bytes, bool inbound, unsigned slot, bool exact, uint32_t *transport);
struct ea_peer *ea_flow_peer(struct ea_pump *p, const uint8_t *packet, uint32_t bytes, bool inbound, unsigned slot);
void ea_lose_flows(struct ea_pump *p, struct ea_peer *peer); /* its flows are void now */
bool ea_add_flow(struct ea_pump *p, const struct ea_flow_record *record, const uint8_t *packet, uint32_t bytes);
uint64_t ea_mix(uint64_t secret, const void *bytes, size_t size); /* size a multiple of 8 */
bool ea_may_be_syn(const uint8_t *packet, uint32_t bytes);

/* report.c */
struct ea_report *ea_report_of(struct ea_pump *p, struct ea_peer *peer); /* to be written into */
void ea_report_heard(struct ea_pump *p, struct ea_peer *peer, const struct ea_way *from, uint64_t wire_bytes,
                     uint32_t datagrams, uint32_t empty);
void ea_await(struct ea_pump *p, struct ea_peer *peer); /* data goes to it now */
void ea_look_for_silence(struct ea_pump *p);            /* makes a report urgent where an answer is overdue */
bool ea_same_remote(const struct ea_way *a, const struct ea_way *b); /* whatever our own address */
void ea_report(struct ea_pump *p);         /* hands over what is due */
int64_t ea_report_due(const struct ea_pump *p); /* INT64_MAX: nothing is */
void ea_ring_bell(struct ea_pump *p);

/* out.c: into the tunnel */
void ea_take_frame(struct ea_pump *p, uint32_t bytes);
void ea_seal_packets(struct ea_pump *p, struct ea_keypair *keypair, const uint32_t *lengths, unsigned count,
                     const uint8_t *packets);
void ea_flush_out(struct ea_pump *p);
void ea_unstick(struct ea_pump *p, bool writable);
void ea_repeat(struct ea_pump *p, struct ea_peer *peer, unsigned number); /* what went into the silence, by that way */

/* send.c */
/* Datagrams for one way: `count` of them in `bytes`, `prefix` of which are room for a relay's header before each. */
struct ea_bundle {
    uint8_t *bytes;
    const uint32_t *at, *size;
    unsigned count;
    uint8_t prefix, ecn, ttl;
    struct ea_peer *peer; /* NULL: the owner's own */
    unsigned number;      /* of the way, with a peer */
};
/* Sends from datagram `first` on. Of a peer's it returns how many were dealt with: fewer than all where a buffer is full. */
unsigned ea_send(struct ea_pump *p, const struct ea_bundle *bundle, const struct ea_way *way, unsigned first);
void ea_send_raw(struct ea_pump *p, const struct ea_send_record *record, const uint32_t *lengths, uint8_t *datagrams);

/* in.c: out of the tunnel */
void ea_read_socket(struct ea_pump *p, unsigned number);
void ea_take_datagram(struct ea_pump *p, uint8_t *datagram, uint32_t bytes, const struct ea_way *from, unsigned ecn);
void ea_flush_in(struct ea_pump *p);
void ea_take_datagrams(struct ea_pump *p, const struct ea_send_record *record, const uint32_t *lengths, uint8_t *datagrams);
void ea_write_packets(struct ea_pump *p, const uint32_t *lengths, unsigned count, uint8_t *packets);

/* down.c */
bool ea_follow(struct ea_pump *p); /* one record of the owner's; false: there is none */

/* up.c */
void ea_up_frame(struct ea_pump *p, const uint8_t *frame, uint32_t bytes);
void ea_up_packet(struct ea_pump *p, const struct ea_keypair *keypair, unsigned ecn, const uint8_t *packet, uint32_t bytes);
void ea_up_datagram(struct ea_pump *p, const struct ea_way *from, unsigned ecn, const uint8_t *datagram, uint32_t bytes);
void ea_up_sealed(struct ea_pump *p, unsigned slot, unsigned way, unsigned ecn, const uint8_t *datagram, uint32_t bytes);
void ea_up_unsent(struct ea_pump *p, const struct ea_way *way, int number, uint32_t bytes, bool own);

#endif
