/* Decrypted IP packets, joined into super-packets for the TUN (engine/offload.py, `coalesce`).
 *
 * TCP segments merge as the kernel's own GRO merges them: same flow, TOS, TTL, ack, window and options, flags ACK or
 * ACK|PSH, consecutive sequence numbers, equal sizes but the last, nothing behind a PSH. UDP merges where the TUN has
 * USO. IPv4 merges only with DF: only then is the identification free (RFC 6864).
 */
#include "checksum.h"
#include "offload.h"

enum { TCP = 6, UDP = 17 };
enum { PSH = 0x08, ACK = 0x10, DF = 0x40 };
enum { TCP_MIN = 20, TCP_DOFF_AT = 12, TCP_FLAGS_AT = 13, TCP_CSUM_AT = 16, TCP_URGENT_AT = 18 };
enum { UDP_BYTES = 8, UDP_CSUM_AT = 6, UDP_SEGMENTS_MAX = 64 }; /* UDP_MAX_SEGMENTS of Linux before 6.9 */
enum { IPV4_BYTES = 20, IPV6_BYTES = 40 };                       /* without options or extension headers */
enum { FLOW4_AT = 12, FLOW4_BYTES = 12, FLOW6_AT = 8, FLOW6_BYTES = 36 }; /* addresses, then ports */
enum { PORTS_BYTES = 4 };

_Static_assert(EA_COALESCE_RUNS < 256, "a run's number plus one is a byte");

static inline bool differ(const uint8_t *a, const uint8_t *b, const uint8_t mask[8])
{
    uint64_t x, y, m;

    memcpy(&x, a, 8);
    memcpy(&y, b, 8);
    memcpy(&m, mask, 8);
    return ((x ^ y) & m) != 0;
}

static inline bool same_flow(const uint8_t *a, const uint8_t *b, uint32_t ip_bytes)
{
    if (ip_bytes == IPV4_BYTES)
        return !memcmp(a + FLOW4_AT, b + FLOW4_AT, FLOW4_BYTES);
    return !memcmp(a + FLOW6_AT, b + FLOW6_AT, FLOW6_BYTES);
}

/* Of addresses and ports. Somebody who makes his flows collide makes a search as long as EA_COALESCE_RUNS. */
static inline uint32_t hash_of(const uint8_t *packet, uint32_t ip_bytes)
{
    const uint8_t *at = packet + (ip_bytes == IPV4_BYTES ? FLOW4_AT : FLOW6_AT);
    uint32_t words = (ip_bytes == IPV4_BYTES ? FLOW4_BYTES : FLOW6_BYTES) / 4U, hash = ip_bytes, word;

    for (; words; words--, at += 4) {
        memcpy(&word, at, 4);
        hash = (hash ^ word) * 0x9E3779B1U;
        hash ^= hash >> 15;
    }
    return hash;
}

/* Whether the headers of two packets of one flow and one header length are equal but for what may differ in a run:
 * lengths, identification, checksums, sequence number, PSH. */
static bool same_headers(const uint8_t *a, const uint8_t *b, const struct ea_run *run)
{
    static const uint8_t ipv4_front[8] = {0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF};
    static const uint8_t ipv6_front[8] = {0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF};
    static const uint8_t tcp_middle[8] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF ^ PSH, 0xFF, 0xFF}; /* ack…window */

    if (run->ip_bytes == IPV4_BYTES) {
        if (differ(a, b, ipv4_front) || a[8] != b[8] || a[9] != b[9])
            return false;
    } else if (differ(a, b, ipv6_front)) {
        return false;
    }
    if (run->protocol == UDP)
        return true;
    a += run->ip_bytes;
    b += run->ip_bytes;
    return !differ(a + 8, b + 8, tcp_middle) &&
           !memcmp(a + TCP_URGENT_AT, b + TCP_URGENT_AT, (size_t)run->header_bytes - run->ip_bytes - TCP_URGENT_AT);
}

/* Whether others may merge behind this packet. */
static bool may_begin(const uint8_t *packet, uint32_t ip_bytes, uint8_t protocol)
{
    const uint8_t *transport = packet + ip_bytes;

    if (ip_bytes == IPV4_BYTES &&
        (packet[6] & 0xBF || packet[7] || !(packet[6] & DF) || ea_reduce(ea_sum(packet, IPV4_BYTES))))
        return false;
    if (protocol == UDP)
        return transport[UDP_CSUM_AT] || transport[UDP_CSUM_AT + 1];
    return transport[TCP_FLAGS_AT] == ACK && transport[TCP_DOFF_AT] >= 0x50;
}

void ea_coalesce_begin(struct ea_coalesce *c, bool udp, bool verify)
{
    c->udp = udp;
    c->verify = verify;
    c->packets = c->runs = 0;
    c->latest = 0;
    memset(c->buckets, 0, sizeof c->buckets);
}

/* The latest run of the packet's flow, or NULL: an earlier one must not grow, or packets would overtake. */
static struct ea_run *find(struct ea_coalesce *c, const uint8_t *packet, uint32_t ip_bytes, uint32_t hash)
{
    uint8_t number = c->buckets[hash % EA_COALESCE_BUCKETS];

    while (number) {
        struct ea_run *run = &c->run[number - 1];

        if (run->hash == hash && run->ip_bytes == ip_bytes && same_flow(packet, c->piece[run->first].data, ip_bytes))
            return run;
        number = run->older;
    }
    return NULL;
}

static uint16_t take(struct ea_coalesce *c, uint8_t *packet, uint32_t bytes)
{
    c->piece[c->packets] = (struct ea_piece){.data = packet, .bytes = bytes};
    return c->packets++;
}

/* A run of its own for the packet; NULL if there is no room. */
static struct ea_run *open_run(struct ea_coalesce *c, uint8_t *packet, uint32_t bytes)
{
    struct ea_run *run;

    if (c->runs == EA_COALESCE_RUNS)
        return NULL;
    run = &c->run[c->runs++];
    run->first = run->last = take(c, packet, bytes);
    run->count = 1;
    run->ip_bytes = 0;
    run->open = false;
    return run;
}

bool ea_coalesce_add(struct ea_coalesce *c, uint8_t *packet, uint32_t bytes)
{
    uint32_t ip_bytes, header_bytes, hash, seq = 0, size;
    struct ea_run *run = NULL;
    uint8_t protocol;

    if (c->packets == EA_COALESCE_PACKETS)
        return false;
    if (bytes >= IPV4_BYTES + UDP_BYTES && packet[0] == 0x45) {
        ip_bytes = IPV4_BYTES;
        protocol = packet[9];
    } else if (bytes >= IPV6_BYTES + UDP_BYTES && packet[0] >> 4 == 6) {
        ip_bytes = IPV6_BYTES;
        protocol = packet[6];
    } else {
        return open_run(c, packet, bytes) != NULL;
    }
    if (protocol == TCP && bytes >= ip_bytes + TCP_MIN) {
        header_bytes = ip_bytes + (uint32_t)(packet[ip_bytes + TCP_DOFF_AT] >> 4) * 4;
        seq = ea_get32(packet + ip_bytes + 4);
    } else if (protocol == UDP && c->udp) {
        header_bytes = ip_bytes + UDP_BYTES;
    } else {
        return open_run(c, packet, bytes) != NULL;
    }
    size = bytes > header_bytes ? bytes - header_bytes : 0;

    /* mostly it is the flow of the packet before, and then its latest run is known without a search */
    if (c->latest) {
        run = &c->run[c->latest - 1];
        if (run->ip_bytes != ip_bytes || !same_flow(packet, c->piece[run->first].data, ip_bytes))
            run = NULL;
    }
    if (run) {
        hash = run->hash;
    } else {
        hash = hash_of(packet, ip_bytes);
        run = find(c, packet, ip_bytes, hash);
    }
    if (run && run->open && size && size <= run->size && size <= run->room && run->next_seq == seq &&
        run->header_bytes == header_bytes && same_headers(packet, c->piece[run->first].data, run)) {
        uint16_t number = take(c, packet, bytes);

        c->piece[run->last].next = number;
        run->last = number;
        run->count++;
        run->room -= size;
        run->open = size == run->size;
        if (protocol == TCP) {
            run->next_seq = seq + size;
            run->open = run->open && !(packet[ip_bytes + TCP_FLAGS_AT] & PSH);
            run->field_sum += (uint64_t)seq + ea_get16(packet + ip_bytes + TCP_CSUM_AT);
        }
        c->latest = (uint8_t)(run - c->run + 1);
        return true;
    }
    run = open_run(c, packet, bytes);
    if (!run)
        return false;
    run->ip_bytes = (uint8_t)ip_bytes;
    run->header_bytes = (uint8_t)header_bytes;
    run->protocol = protocol;
    run->hash = hash;
    run->size = size;
    run->room = bytes < EA_IP_MAX ? EA_IP_MAX - bytes : 0;
    run->open = size && may_begin(packet, ip_bytes, protocol);
    if (protocol == TCP) {
        run->next_seq = seq + size;
        run->field_sum = ea_get16(packet + ip_bytes + TCP_CSUM_AT);
    } else {
        run->next_seq = 0;
        if (run->room > (UDP_SEGMENTS_MAX - 1) * size)
            run->room = (UDP_SEGMENTS_MAX - 1) * size;
    }
    c->latest = (uint8_t)c->runs;
    run->older = c->buckets[hash % EA_COALESCE_BUCKETS];
    c->buckets[hash % EA_COALESCE_BUCKETS] = c->latest;
    return true;
}

/* A segment with a wrong checksum must reach its socket as it is, not be sealed under a right one. */
static bool checksums_hold(const struct ea_coalesce *c, const struct ea_run *run)
{
    uint32_t addresses = run->ip_bytes == IPV4_BYTES ? FLOW4_AT : FLOW6_AT;
    const struct ea_piece *piece = &c->piece[run->first];

    for (uint32_t i = 0; i < run->count; i++) {
        uint64_t sum = ea_sum(piece->data + addresses, piece->bytes - addresses);

        if (ea_reduce(sum + run->protocol + piece->bytes - run->ip_bytes))
            return false;
        piece = &c->piece[piece->next];
    }
    return true;
}

/* Makes the first packet's header that of the whole of `total` bytes. NEEDS_CSUM: its checksum field is the sum of the
 * pseudo header, and the kernel is not to look at the payload again. */
static void write_headers(const struct ea_coalesce *c, const struct ea_run *run, uint32_t total, struct ea_vnet *vnet)
{
    uint8_t *packet = c->piece[run->first].data, *transport = packet + run->ip_bytes;
    uint32_t length = total - run->ip_bytes, csum_at = run->protocol == UDP ? UDP_CSUM_AT : TCP_CSUM_AT;
    uint64_t pseudo = run->protocol;

    if (run->ip_bytes == IPV4_BYTES) {
        pseudo += ea_sum(packet + FLOW4_AT, FLOW4_BYTES - PORTS_BYTES);
        ea_put16(packet + 2, total);
        ea_put16(packet + 10, 0);
        ea_put16(packet + 10, ea_negate(ea_sum(packet, IPV4_BYTES)));
        vnet->kind = EA_GSO_TCPV4;
    } else {
        pseudo += ea_sum(packet + FLOW6_AT, FLOW6_BYTES - PORTS_BYTES);
        ea_put16(packet + 4, total - IPV6_BYTES);
        vnet->kind = EA_GSO_TCPV6;
    }
    if (run->protocol == UDP) {
        vnet->kind = EA_GSO_UDP_L4;
        ea_put16(transport + 4, length);
    } else {
        transport[TCP_FLAGS_AT] = c->piece[run->last].data[run->ip_bytes + TCP_FLAGS_AT];
    }
    vnet->header_bytes = run->header_bytes;
    vnet->gso_bytes = (uint16_t)run->size;
    if (vnet->flags & EA_VNET_NEEDS_CSUM) {
        vnet->csum_start = run->ip_bytes;
        vnet->csum_offset = (uint16_t)csum_at;
        ea_put16(transport + csum_at, ea_reduce(pseudo + length));
    } else {
        /* Of each segment: pseudo header + length + header + payload ≡ 0, and so of the whole: the payloads cancel out.
         * Headers are equal but for checksum and sequence number (and the last one's PSH, which the whole gets). */
        uint32_t header = run->header_bytes - run->ip_bytes;
        uint64_t shared = pseudo + header + ea_sum(transport, header);
        uint32_t own = ea_get16(transport + TCP_CSUM_AT) + (transport[TCP_FLAGS_AT] & PSH);

        shared += ea_negate((uint64_t)ea_get32(transport + 4) + own);
        ea_put16(transport + TCP_CSUM_AT, ea_reduce((run->count - 1) * (uint64_t)ea_fold(shared) + run->field_sum));
    }
}

static void emit_alone(struct ea_coalesce *c, const struct ea_piece *piece, ea_emit emit, void *context)
{
    uint8_t plain[EA_VNET_BYTES] = {0};

    c->iov[0] = (struct iovec){.iov_base = plain, .iov_len = sizeof plain};
    c->iov[1] = (struct iovec){.iov_base = piece->data, .iov_len = piece->bytes};
    emit(context, c->iov, 2);
}

static void emit_merged(struct ea_coalesce *c, const struct ea_run *run, uint8_t flags, ea_emit emit, void *context)
{
    const struct ea_piece *piece = &c->piece[run->first];
    struct ea_vnet vnet = {.flags = flags};
    uint32_t total = piece->bytes;

    c->iov[0] = (struct iovec){.iov_base = &vnet, .iov_len = sizeof vnet};
    c->iov[1] = (struct iovec){.iov_base = piece->data, .iov_len = piece->bytes};
    for (uint32_t i = 1; i < run->count; i++) {
        piece = &c->piece[piece->next];
        c->iov[1 + i] = (struct iovec){.iov_base = piece->data + run->header_bytes,
                                       .iov_len = piece->bytes - run->header_bytes};
        total += piece->bytes - run->header_bytes;
    }
    write_headers(c, run, total, &vnet);
    emit(context, c->iov, 1 + run->count);
}

void ea_coalesce_flush(struct ea_coalesce *c, ea_emit emit, void *context)
{
    for (uint32_t i = 0; i < c->runs; i++) {
        const struct ea_run *run = &c->run[i];
        const struct ea_piece *piece = &c->piece[run->first];

        /* of an odd size the segments' own sums do not add up: every other payload begins at an odd offset */
        if (run->count > 1 && !c->verify && run->protocol == TCP && !(run->size & 1)) {
            emit_merged(c, run, EA_VNET_NEEDS_NOTHING, emit, context);
        } else if (run->count > 1 && checksums_hold(c, run)) {
            emit_merged(c, run, EA_VNET_NEEDS_CSUM, emit, context);
        } else {
            for (uint32_t left = run->count; left; left--) {
                emit_alone(c, piece, emit, context);
                piece = &c->piece[piece->next];
            }
        }
    }
    ea_coalesce_begin(c, c->udp, c->verify);
}
