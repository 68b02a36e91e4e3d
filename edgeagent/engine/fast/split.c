/* Super-packets from the TUN, cut into wire-sized IP packets (engine/offload.py, `split`). */
#include "checksum.h"
#include "offload.h"

_Static_assert(sizeof(struct ea_vnet) == EA_VNET_BYTES, "virtio_net_hdr without num_buffers");

enum { TCP = 6, UDP = 17 };
enum { FIN = 0x01, PSH = 0x08, CWR = 0x80 };
enum { TCP_MIN = 20, TCP_DOFF_AT = 12, TCP_FLAGS_AT = 13, TCP_CSUM_AT = 16, UDP_BYTES = 8, UDP_CSUM_AT = 6 };

/* CHECKSUM_PARTIAL: the field already holds the sum of the pseudo header. */
static int begin_whole(struct ea_split *s, const struct ea_vnet *vnet, uint32_t bytes)
{
    s->count = 1;
    s->packet_bytes = s->last_bytes = bytes;
    if (!(vnet->flags & EA_VNET_NEEDS_CSUM))
        return EA_SPLIT_OK;
    s->start = vnet->csum_start;
    s->csum_at = s->start + vnet->csum_offset;
    s->udp = vnet->csum_offset == UDP_CSUM_AT;
    return s->start < 20 || s->csum_at + 2 > bytes ? EA_SPLIT_LIES : EA_SPLIT_OK;
}

/* Whether the IP header is of the kind and length that the vnet header says, with room for the next one. */
static bool headers_agree(const uint8_t *ip, uint32_t bytes, uint8_t kind, const struct ea_vnet *vnet)
{
    bool udp = kind == EA_GSO_UDP_L4;
    uint32_t start = vnet->csum_start;
    uint8_t protocol = udp ? UDP : TCP;

    if (kind != EA_GSO_TCPV4 && kind != EA_GSO_TCPV6 && !udp)
        return false;
    if (start < 20 || vnet->csum_offset != (udp ? UDP_CSUM_AT : TCP_CSUM_AT) ||
        bytes < start + (udp ? UDP_BYTES : TCP_MIN))
        return false;
    if (ip[0] >> 4 == 4 && kind != EA_GSO_TCPV6)
        return (ip[0] & 15U) * 4 == start && ip[9] == protocol && !(ea_get16(ip + 6) & 0x3FFF);
    if (ip[0] >> 4 == 6 && kind != EA_GSO_TCPV4)
        /* behind extension headers only the kernel's word says where the transport header is */
        return start > 40 || (start == 40 && ip[6] == protocol);
    return false;
}

/* Sums of what all packets share: everything but lengths, identification, sequence number, TCP flags and payload. */
static void sum_headers(struct ea_split *s)
{
    const uint8_t *ip = s->packet, *transport = ip + s->start;

    s->six = ip[0] >> 4 == 6;
    if (s->six) {
        s->transport_sum = ea_sum(ip + 8, 32);
    } else {
        s->transport_sum = ea_sum(ip + 12, 8);
        s->ip_sum = (uint64_t)ea_get16(ip) + ea_get32(ip + 6) + ea_sum(ip + 12, s->start - 12);
        s->identification = ea_get16(ip + 4);
    }
    s->transport_sum += ea_get32(transport);
    if (s->udp) {
        s->transport_sum += UDP;
    } else {
        s->transport_sum += (uint64_t)TCP + ea_get32(transport + 8) + ((uint32_t)transport[TCP_DOFF_AT] << 8) +
                            ea_get16(transport + 14) + ea_sum(transport + 18, s->body - s->start - 18);
        s->seq = ea_get32(transport + 4);
        s->flags = transport[TCP_FLAGS_AT];
    }
}

int ea_split_begin(struct ea_split *s, const uint8_t *frame, size_t frame_bytes)
{
    struct ea_vnet vnet;
    uint32_t bytes, header_bytes, payload;
    uint8_t kind;

    if (frame_bytes < EA_VNET_BYTES || frame_bytes > EA_FRAME_MAX)
        return EA_SPLIT_LIES;
    memcpy(&vnet, frame, EA_VNET_BYTES);
    bytes = (uint32_t)frame_bytes - EA_VNET_BYTES;
    memset(s, 0, sizeof *s);
    s->packet = frame + EA_VNET_BYTES;
    if (vnet.kind == EA_GSO_NONE)
        return begin_whole(s, &vnet, bytes);
    kind = vnet.kind & (uint8_t)~EA_GSO_ECN;
    if (!(vnet.flags & EA_VNET_NEEDS_CSUM) || !headers_agree(s->packet, bytes, kind, &vnet))
        return EA_SPLIT_LIES;
    s->udp = kind == EA_GSO_UDP_L4;
    s->start = vnet.csum_start;
    s->csum_at = s->start + vnet.csum_offset;
    /* hdr_len is not used: on the forward path it may cover the whole first packet */
    header_bytes = s->udp ? UDP_BYTES : (uint32_t)(s->packet[s->start + TCP_DOFF_AT] >> 4) * 4;
    s->body = s->start + header_bytes;
    if ((!s->udp && header_bytes < TCP_MIN) || s->body >= bytes)
        return EA_SPLIT_LIES;
    payload = bytes - s->body;
    if (payload > (uint32_t)vnet.gso_bytes * EA_SEGMENTS_MAX)
        return EA_SPLIT_LIES;
    s->gso_bytes = vnet.gso_bytes < payload ? vnet.gso_bytes : payload;
    s->count = (payload + s->gso_bytes - 1) / s->gso_bytes;
    s->packet_bytes = s->body + s->gso_bytes;
    s->last_bytes = s->body + payload - (s->count - 1) * s->gso_bytes;
    sum_headers(s);
    return EA_SPLIT_OK;
}

static size_t finish_whole(const struct ea_split *s, uint8_t *out)
{
    uint32_t checksum;

    if (!s->csum_at) {
        memcpy(out, s->packet, s->last_bytes);
        return s->last_bytes;
    }
    memcpy(out, s->packet, s->start);
    checksum = ea_negate(ea_copy_sum(out + s->start, s->packet + s->start, s->last_bytes - s->start));
    if (s->udp && !checksum)
        checksum = 0xFFFF; /* RFC 768: zero would say that there is none */
    ea_put16(out + s->csum_at, checksum);
    return s->last_bytes;
}

static void write_tcp(const struct ea_split *s, uint8_t *transport, uint32_t i, uint64_t sum)
{
    uint32_t seq = s->seq + i * s->gso_bytes;
    uint8_t flags = s->flags;

    /* RFC 3168, 6.1.2: CWR is for the first segment; FIN and PSH are for the last */
    if (i)
        flags &= (uint8_t)~CWR;
    if (i + 1 < s->count)
        flags &= (uint8_t) ~(FIN | PSH);
    ea_put32(transport + 4, seq);
    transport[TCP_FLAGS_AT] = flags;
    ea_put16(transport + TCP_CSUM_AT, ea_negate(sum + seq + flags));
}

size_t ea_split_next(struct ea_split *s, uint8_t *out)
{
    uint32_t i = s->next, bytes, length, payload;
    uint64_t sum;

    if (i >= s->count)
        return 0;
    s->next++;
    if (!s->gso_bytes)
        return finish_whole(s, out);
    bytes = i + 1 < s->count ? s->packet_bytes : s->last_bytes;
    length = bytes - s->start; /* of transport header and payload, as in the pseudo header */
    payload = bytes - s->body;
    memcpy(out, s->packet, s->body);
    sum = s->transport_sum + length + ea_copy_sum(out + s->body, s->packet + s->body + i * s->gso_bytes, payload);
    if (s->udp) {
        uint32_t checksum = ea_negate(sum + length); /* the length counts in the header too */

        ea_put16(out + s->start + 4, length);
        ea_put16(out + s->csum_at, checksum ? checksum : 0xFFFF);
    } else {
        write_tcp(s, out + s->start, i, sum);
    }
    if (s->six) {
        ea_put16(out + 4, bytes - 40);
    } else {
        uint32_t identification = (s->identification + i) & 0xFFFF;

        ea_put16(out + 2, bytes);
        ea_put16(out + 4, identification);
        ea_put16(out + 10, ea_negate(s->ip_sum + bytes + identification));
    }
    return bytes;
}
