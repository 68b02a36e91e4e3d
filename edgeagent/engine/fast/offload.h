/* Segmentation and receive offload: what a TUN with IFF_VNET_HDR hands out and takes.
 *
 * ea_split makes wire-sized IP packets of a super-packet that the kernel left whole; ea_coalesce makes super-packets of
 * decrypted IP packets. The specification is engine/offload.py: the same bytes come out. Frames begin with a
 * `struct virtio_net_hdr` (virtio 1.2, section 5.1.6) of 10 bytes in native byte order.
 */
#ifndef EA_OFFLOAD_H
#define EA_OFFLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifndef EA_API
#define EA_API __attribute__((visibility("default")))
#endif

#define EA_VNET_BYTES 10
#define EA_IP_MAX 65535
#define EA_FRAME_MAX (EA_VNET_BYTES + EA_IP_MAX)
#define EA_SEGMENTS_MAX 2048 /* of one super-packet; a gso_size that asks for more is a lie */

enum { EA_VNET_NEEDS_NOTHING = 0, EA_VNET_NEEDS_CSUM = 1 };
enum { EA_GSO_NONE = 0, EA_GSO_TCPV4 = 1, EA_GSO_TCPV6 = 4, EA_GSO_UDP_L4 = 5, EA_GSO_ECN = 0x80 };

struct ea_vnet {
    uint8_t flags, kind;
    uint16_t header_bytes, gso_bytes, csum_start, csum_offset;
};

/* Out of the TUN */

enum { EA_SPLIT_OK = 0, EA_SPLIT_LIES = -1 };

/* The first three fields are for the reader, the others for ea_split_next. */
struct ea_split {
    uint32_t count;        /* packets, 1…EA_SEGMENTS_MAX */
    uint32_t packet_bytes; /* of each but the last; 0…EA_IP_MAX */
    uint32_t last_bytes;   /* ≤ packet_bytes */

    uint32_t next;
    const uint8_t *packet;          /* the super-packet: borrowed from the frame */
    uint32_t start, body;           /* offsets of the transport header and of the payload */
    uint32_t csum_at;               /* offset of the transport checksum; 0 where it is complete already */
    uint32_t gso_bytes;             /* payload of each packet but the last; 0: nothing to cut */
    uint64_t ip_sum, transport_sum; /* of the header parts that all packets share, the latter with the pseudo header */
    uint32_t seq;
    uint16_t identification;
    uint8_t flags; /* TCP */
    bool udp, six;
};

/* Begins with a frame of `bytes` as read from the TUN, which must stay as it is until the last packet is out.
 * EA_SPLIT_LIES: the vnet header contradicts the packet, or the frame is no frame; `s` is not to be used. */
int ea_split_begin(struct ea_split *s, const uint8_t *frame, size_t bytes);

/* Writes the next of s->count packets, checksums complete, to `out` with room for s->packet_bytes. Returns its length;
 * 0 behind the last one (and for an empty packet, which has packet_bytes 0). */
size_t ea_split_next(struct ea_split *s, uint8_t *out);

/* Into the TUN */

#define EA_COALESCE_PACKETS 1023 /* of one batch; with the vnet header they fit into IOV_MAX pieces */
#define EA_COALESCE_RUNS 128     /* of one batch: flows, lone packets and what else begins a frame */
#define EA_COALESCE_BUCKETS 128  /* a power of two */

/* Packets of one flow that make one frame, or one packet that is like no other. */
struct ea_run {
    uint64_t field_sum; /* of all checksum fields, and of all sequence numbers but the first */
    uint32_t hash, next_seq;
    uint32_t size, room; /* bytes: payload of the first packet; of the whole frame, still free */
    uint16_t first, last, count;
    uint8_t ip_bytes, header_bytes, protocol; /* ip_bytes is 0 for a packet that is like no other */
    uint8_t older;                            /* run of the same bucket, plus one; 0: none */
    bool open;
};

struct ea_piece {
    uint8_t *data;
    uint32_t bytes;
    uint16_t next; /* of the same run; the last one's is void */
};

/* About 40 KB. To be set up by ea_coalesce_begin; holds no resource. */
struct ea_coalesce {
    bool udp, verify;
    uint16_t packets, runs;
    uint8_t latest; /* run that the latest packet of any flow went to, plus one; 0: none */
    uint8_t buckets[EA_COALESCE_BUCKETS];
    struct ea_run run[EA_COALESCE_RUNS];
    struct ea_piece piece[EA_COALESCE_PACKETS];
    struct iovec iov[1 + EA_COALESCE_PACKETS];
};

typedef void (*ea_emit)(void *context, const struct iovec *iov, int n_iov);

/* Begins an empty batch. `udp`: the TUN has USO. `verify`: check every merged segment's checksum here (a router wants
 * it: the kernel does not check what it forwards); without, a merged TCP checksum is made of the segments' own. */
void ea_coalesce_begin(struct ea_coalesce *c, bool udp, bool verify);

/* Takes one IP packet with true length fields, ≤ EA_IP_MAX bytes. It must stay as it is until the flush, which may
 * write into its headers. False: the batch is full, nothing was taken, flush first. */
bool ea_coalesce_add(struct ea_coalesce *c, uint8_t *packet, uint32_t bytes);

/* Emits every frame of the batch, ordered by first packet (and so in order within a flow), as ≤ IOV_MAX pieces of which
 * the first is the vnet header; pieces and their vector are void when `emit` returns. Then begins an empty batch. */
void ea_coalesce_flush(struct ea_coalesce *c, ea_emit emit, void *context);

/* For tests: whole frames in, whole packets out, and back.
 * ea_test_split returns the number of packets, written back to back to `out` with their sizes to `sizes`; -1: it lies;
 * -2: `room` or `sizes_max` does not do. ea_test_coalesce returns the number of frames (flushing where the batch is
 * full), or -2. `packets` are `n` back to back, and are left alone. */
EA_API int ea_test_split(const uint8_t *frame, size_t bytes, uint8_t *out, size_t room, uint32_t *sizes,
                         unsigned sizes_max);
EA_API int ea_test_coalesce(const uint8_t *packets, const uint32_t *sizes, unsigned n, int udp, int verify,
                            uint8_t *out, size_t room, uint32_t *frame_sizes, unsigned frames_max);

#endif
