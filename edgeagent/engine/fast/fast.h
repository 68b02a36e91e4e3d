/* The data path in C: established flows of a WireGuard interface, moved between a TUN and UDP sockets.
 *
 *      TUN frame ──▶ flow? ── yes ─▶ split · pad · seal ─────────▶ UDP (GSO, sendmmsg)
 *                      └─ no ──▶ up
 *      datagram ──▶ index? ── yes ─▶ open · replay · flow? ─ yes ─▶ join ──▶ TUN (vnet_hdr)
 *                      └─ no ──▶ up                          └─ no ──▶ up
 *
 * It decides nothing: peers, keys, ways and flows are told to it, and what it does not know goes up. `engine/pure.py` with
 * `proto/device.py` is its specification.
 *
 * One pump has one thread (ea_start), or is turned by its owner (ea_turn), never both. The owner speaks to it by records in a
 * ring (ea_push) and hears from it by records in three others (ea_pull); one eventfd wakes each
 * side. No lock is taken on the way of a packet, and nothing is allocated: all memory is mapped by ea_new, and becomes
 * resident when it is first used. The owner is one thread too.
 *
 * All numbers in records are in native byte order but addresses; all records begin at multiples of 8 and have no hidden
 * padding. Times are nanoseconds of CLOCK_MONOTONIC. A record that makes no sense is counted (EA_DROP_RECORD) and
 * otherwise without effect.
 */
#ifndef EA_FAST_H
#define EA_FAST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef EA_API
#define EA_API __attribute__((visibility("default")))
#endif

enum {
    EA_POSITIONS = 4,     /* keypairs of one peer: previous, current, next, and one that is on its way out */
    EA_WAYS = 4,          /* of one peer: where its packets go, and up to three that get copies while that is in doubt */
    EA_HEARD = 4,         /* ways that one peer was heard by since the last report */
    EA_SOCKETS = 18,      /* two IP versions, for all and for each of 8 uplinks */
    EA_RELAYS = 8,        /* sessions at relays by UDP */
    EA_PEERS_MAX = 16384, /* ceiling of limits.peers */
    EA_RECORD_MAX = 70000 /* bytes of one record without its head: the longest frame, and what goes before it */
};

/* Where datagrams go to, or came from. 56 bytes. */
struct ea_way {
    uint8_t kind;      /* EA_WAY_… */
    uint8_t family;    /* 4 or 6 */
    uint8_t fragment;  /* 1: routers may cut up what goes there */
    uint8_t pinned;    /* 1: from `local` by `interface`; 0: as the kernel's routes have it */
    uint16_t port;     /* UDP, native order */
    uint16_t channel;  /* at the relay */
    uint32_t session;  /* at the relay */
    uint32_t scope;    /* of a link-local IPv6 address */
    uint8_t address[16], local[16]; /* 4 or 16 bytes used, the rest zero */
    uint32_t interface; /* index; chooses the socket, where one is bound to it */
    uint32_t reserved;
};
enum {
    EA_WAY_NONE = 0,
    EA_WAY_UDP = 1,   /* address and port */
    EA_WAY_RELAY = 2, /* the same of a relay, behind whose 8-byte header of `session` and `channel` the datagram goes */
    EA_WAY_UP = 3     /* sealed datagrams go up: their way is not one of UDP */
};

/* Ceilings, fixed for the life of a pump. */
struct ea_limits {
    uint32_t peers;      /* slots, 1…EA_PEERS_MAX */
    uint32_t flows;      /* rounded up to a power of two */
    uint32_t down_bytes; /* ring of the owner's records; powers of two, ≥ 256 KiB */
    uint32_t up_bytes;   /* each of the rings to the owner, but the one of reports: that holds one of each peer */
    uint32_t entries;    /* of the owner's table of flows that it may end at any time; 0: it has none */
};

/* Sockets are the owner's: made, bound and closed by it, and non-blocking. */
struct ea_socket {
    int32_t fd;
    uint32_t interface; /* that it is bound to; 0: for all */
    uint8_t family;     /* 4 or 6 */
    uint8_t segments;   /* 1: UDP_SEGMENT works */
    uint8_t by_kernel;  /* 1: fragmentation is left to the kernel */
    uint8_t reserved;
};

struct ea_pump;

/* NULL with errno: EINVAL for limits out of range, ENOMEM, EMFILE. `small` and `large` name the AEAD providers (aead.h) for
 * messages below and from EA_SMALL_BYTES on; NULL for "lanes". */
#define EA_SMALL_BYTES 512
EA_API struct ea_pump *ea_new(const struct ea_limits *limits, const char *small, const char *large);
EA_API void ea_free(struct ea_pump *pump); /* stops it; key material is wiped */

/* tun: a descriptor with IFF_VNET_HDR, non-blocking, or -1; `udp_offload`: it takes USO. Only while the pump is halted. */
EA_API void ea_set_tun(struct ea_pump *pump, int tun, int udp_offload);
EA_API int ea_set_sockets(struct ea_pump *pump, const struct ea_socket *sockets, unsigned count); /* only while halted */

/* The thread. A pump begins halted; ea_halt returns when the thread touches nothing any more (between two batches). */
EA_API int ea_start(struct ea_pump *pump); /* 0, or an errno */
EA_API void ea_halt(struct ea_pump *pump);
/* One turn without a thread: waits up to `timeout_ms`, handles a batch of all that is ready. Returns how many descriptors were. */
EA_API int ea_turn(struct ea_pump *pump, int timeout_ms);

/* Has all records that were pushed followed, and all traffic so far reported, and waits for that at most `timeout_ms`. False: it
 * took longer. For one who wants figures of this moment; without a thread it turns the pump. */
EA_API bool ea_sync(struct ea_pump *pump, int timeout_ms);

/* --- the owner's records --- */

enum {
    EA_DOWN_CONFIG = 1,  /* struct ea_config */
    EA_DOWN_PEER = 2,    /* struct ea_peer_record, then `ways` × struct ea_way */
    EA_DOWN_KEYPAIR = 3, /* struct ea_keypair_record */
    EA_DOWN_FORGET = 4,  /* struct ea_slot: wipe the keypair at this position */
    EA_DOWN_FLOW = 5,    /* struct ea_flow_record, then the head of a packet of the flow */
    EA_DOWN_UNFLOW = 6,  /* nothing: forget all flows */
    EA_DOWN_SEAL = 7,    /* struct ea_slot, then packets: seal them under the keypair and send them to its peer */
    EA_DOWN_SEND = 8,    /* struct ea_send_record, then packets: send them as they are */
    EA_DOWN_TUN = 9,     /* struct ea_slot (unused), then packets: for the TUN */
    EA_DOWN_OPEN = 10,   /* struct ea_send_record, then packets: datagrams that came by another carrier, from that way */
    EA_DOWN_RELAYS = 11  /* struct ea_slot (count in `slot`), then that many ways: the sessions in use, `channel` 0 */
};
/* "packets": uint32_t lengths[count], as many zero bytes as make the record's offset a multiple of 8, then the bytes, back to back. */

struct ea_config {
    uint32_t mtu;         /* of the TUN: nothing is padded beyond it */
    uint8_t router;       /* 1: what comes from peers may be forwarded, so checksums are verified here */
    uint8_t unknown_up;   /* 1: the owner has sessions of its own, whose indices are not known here */
    uint16_t report_ms;   /* how often traffic is reported */
    uint32_t new_flows_per_s; /* packets of unknown flows that go up; bursts of the same */
    uint8_t exact;   /* 1: protocol and ports make a flow, or an echo's identifier, and what has none goes up: fragments, other
                        ICMP, extension headers; so does a SYN, which begins one. 0: all packets between two addresses are one */
    uint8_t reserved[3];
};
struct ea_slot {
    uint16_t slot;    /* of the peer */
    uint8_t position; /* of the keypair */
    uint8_t reserved;
    uint32_t count;   /* of packets */
};
struct ea_peer_record {
    uint16_t slot;
    uint8_t flags;   /* EA_PEER_… */
    uint8_t ways;    /* 0…EA_WAYS; the first is where packets go, the others get copies */
    uint8_t current; /* position of the keypair to seal under, or EA_POSITIONS: none */
    uint8_t reserved[3];
    uint32_t mtu;    /* the longest packet that is sealed for it; longer ones, and SYNs where it is less than the TUN's, go up */
    uint32_t quiet_ms; /* data sent for so long while the first way is silent, by which data came within the second before,
                          is reported at once, and once; 0: it is not. Of what is sent into that silence the last datagrams
                          are kept: a way that is one for copies now, and was not before, carries them too */
};
enum { EA_PEER_NEW = 1 /* another peer than before: flows, counts and keypairs of the slot are void */, EA_PEER_GONE = 2 };
struct ea_keypair_record {
    uint16_t slot;
    uint8_t position, unconfirmed; /* 1: the first message under it is urgent news, and what goes to the peer is sealed under it from then on */
    uint32_t local_index, remote_index, reserved;
    int64_t created_at;
    uint8_t send_key[32], receive_key[32];
};
struct ea_flow_record {
    uint16_t slot;
    uint8_t inbound; /* 1: out of the tunnel, from this peer; 0: into it, to this peer */
    uint8_t reserved;
    uint32_t entry;  /* 0, or the number of the owner's entry plus one: the flow holds while ea_mark says `generation` of that */
    uint32_t generation, reserved2;
};
struct ea_send_record {
    struct ea_way way;
    uint8_t ecn, ttl; /* ttl 0: the system's own */
    uint16_t reserved;
    uint32_t count;   /* of datagrams */
};

/* One record: `kind`, `head` (its struct), `body` behind it. 0, or EAGAIN: no room; room is kept back from EA_DOWN_SEAL, _SEND, _TUN
 * and _OPEN, so that what must not be lost finds some. EMSGSIZE: longer than EA_RECORD_MAX. */
EA_API int ea_push(struct ea_pump *pump, unsigned kind, const void *head, size_t head_bytes, const void *body, size_t body_bytes);

/* The owner's entries: what is said of one counts for the next packet, ahead of records that wait in the ring. ea_take_marks
 * writes a byte for each of limits.entries: what its flows have carried since the last call. */
enum { EA_MARK_USED = 1, EA_MARK_CLOSING = 2 /* a FIN or RST went by */ };
EA_API void ea_mark(struct ea_pump *pump, uint32_t entry, uint32_t generation);
EA_API void ea_take_marks(struct ea_pump *pump, uint8_t *out);

/* --- what comes up --- */

enum {
    EA_UP_DATAGRAM = 1, /* struct ea_send_record (way: where it came from), then the datagram */
    EA_UP_FRAME = 2,    /* struct ea_slot, then a frame of the TUN */
    EA_UP_PACKET = 3,   /* struct ea_slot (position: that of the keypair; count: generation << 2 | ECN field of the datagram), then a packet that was opened */
    EA_UP_SEALED = 4,   /* struct ea_slot (position: number of the way; count: generation << 2 | ECN field), then a datagram for a way that is not UDP's */
    EA_UP_REPORT = 6,   /* struct ea_report: what a peer's packets did since the one before */
    EA_UP_UNSENT = 5    /* struct ea_send_record (count: bytes of the datagram; reserved: errno, ttl: 1 for one of the owner's) */
};
/* Before each record in what ea_pull gives: struct ea_record; the next begins at the next multiple of 8. */
struct ea_record {
    uint32_t bytes; /* of the record, without this head */
    uint16_t kind;
    uint16_t bucket; /* internal */
};
enum { EA_RING_NET = 0, EA_RING_TUN = 1, EA_RING_REPORT = 2, EA_RINGS = 3 }; /* DATAGRAM, UNSENT; FRAME, PACKET, SEALED; REPORT */
/* Whole records, as many as fit. Returns bytes written; 0: there is none (or not the room for one). */
EA_API size_t ea_pull(struct ea_pump *pump, unsigned ring, void *out, size_t room);

/* Becomes readable when there is something to pull; ea_rest clears it, and is to be called before the pulling. */
EA_API int ea_fd(const struct ea_pump *pump);
EA_API void ea_rest(struct ea_pump *pump);

struct ea_heard {
    struct ea_way way;
    int64_t at;
    uint64_t bytes; /* of datagrams, with a relay's header, since the last report */
    uint32_t datagrams, empty; /* `empty`: keepalives among them */
};
/* Times are 0 for never. A report comes at once when something is new (traffic after a second of silence, another way, a keypair
 * used for the first time, `quiet_ms` without an answer), though not twice within 5 ms, else every `report_ms` while there is traffic. */
struct ea_report {
    uint16_t slot;
    uint8_t used;      /* bit per position: a message under a keypair there was authenticated */
    uint8_t heards;    /* 0…EA_HEARD */
    uint32_t largest;  /* bytes of the longest datagram sealed */
    uint64_t tx_bytes, rx_bytes; /* all sealed and all authenticated datagrams, since the slot was made NEW */
    uint64_t send_counter;       /* of the current keypair */
    int64_t first_data_sent_at, last_data_sent_at, last_sent_at;
    int64_t first_data_received_at, last_data_received_at, last_received_at;
    int64_t unanswered_since; /* first data sent since the first way was heard, or is another; 0: it was heard since */
    uint64_t sent_bytes[EA_WAYS]; /* by way, as they are on the wire */
    uint32_t sent[EA_WAYS];       /* datagrams by way */
    uint32_t sent_empty;          /* keepalives among those of the first way */
    uint32_t generation; /* how often the slot was made NEW or GONE: a report may be of the peer that had it before */
    uint32_t confirmed;  /* local index of the last unconfirmed keypair whose first message came: 0 with `confirms` 0 */
    uint32_t confirms;   /* how many that were. By index, for a position may meanwhile be that of another keypair */
    struct ea_heard heard[EA_HEARD];
};
/* --- figures --- */

enum {
    EA_DROP_VNET_HEADER = 0, /* a TUN frame contradicts its own offload header */
    EA_DROP_TUN_REFUSED,     /* the kernel would not take a frame */
    EA_DROP_MALFORMED,
    EA_DROP_UNKNOWN_INDEX,
    EA_DROP_KEY_EXPIRED,
    EA_DROP_AUTHENTICATION,
    EA_DROP_REPLAYED,
    EA_DROP_INNER_MALFORMED,
    EA_DROP_INNER_ECN,
    EA_DROP_UP_NET_FULL,  /* the owner did not take datagrams as fast as they came */
    EA_DROP_UP_TUN_FULL,  /* nor packets of new flows */
    EA_DROP_UP_SHARE,     /* one source had its share of a ring */
    EA_DROP_NEW_FLOWS,    /* more packets of new flows than are let up, or than a source's share of them */
    EA_DROP_NO_SOCKET,
    EA_DROP_SEND_BLOCKED, /* a send buffer stayed full */
    EA_DROP_TOO_LONG,     /* longer than the link takes */
    EA_DROP_NO_ROUTE,
    EA_DROP_REFUSED,      /* by a firewall or for want of memory */
    EA_DROP_NO_KEYPAIR,   /* packets to be sealed under a keypair that is gone */
    EA_DROP_RECORD,       /* a record of the owner's makes no sense */
    EA_DROPS
};
struct ea_figures {
    uint64_t drops[EA_DROPS];
    uint64_t turns, frames_in, frames_out, datagrams_in, datagrams_out;
    uint32_t flows_used, flows_max, peers_used, peers_max; /* flows of a peer that is gone count until somebody needs the place */
    uint32_t down_peak, down_max, net_peak, net_max, tun_peak, tun_max; /* bytes of the rings */
    uint32_t tun_gone, mapped_kib; /* 1: the interface was removed */
    uint64_t flows_evicted;
};
EA_API void ea_figures(struct ea_pump *pump, struct ea_figures *out);

#endif
