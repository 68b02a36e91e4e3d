/* Out of the tunnel: datagrams become packets for the TUN, or go up. A transport message is judged in one order (proto/device.py):
 * key, decrypt, replay window, way, trim, flow, ECN, deliver. Nothing acts before it is authenticated. */
#include "core.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/uio.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

enum { CONTROL_BYTES = 256, RELAY_DATA = 0xE5, CHANNEL_FIRST = 2 };
enum { NOT_ECT = 0, ECT_0 = 2, CE = 3 };

static uint32_t get_le32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint64_t get_le64(const uint8_t *at) {
    return get_le32(at) | (uint64_t)get_le32(at + 4) << 32;
}

static void emit(void *context, const struct iovec *iov, int count) {
    struct ea_pump *p = context;
    if (p->tun < 0 || p->tun_gone || writev(p->tun, iov, count) < 0) {
        if (p->tun >= 0 && (errno == EBADFD || errno == ENODEV || errno == ENXIO)) p->tun_gone = true;
        ea_drop(p, EA_DROP_TUN_REFUSED, 1);
    } else {
        p->figures.frames_out++;
    }
}

static void deliver(struct ea_pump *p, uint8_t *packet, uint32_t bytes) {
    if (!ea_coalesce_add(p->join, packet, bytes)) {
        ea_coalesce_flush(p->join, emit, p);
        ea_coalesce_begin(p->join, p->udp_offload, p->config.router);
        ea_coalesce_add(p->join, packet, bytes);
    }
}

/* RFC 6040, section 4.2. False: to be dropped. */
static bool decapsulate(uint8_t *packet, unsigned outer) {
    bool six = packet[0] >> 4 == 6;
    unsigned inner = six ? (packet[1] >> 4) & 3U : packet[1] & 3U;
    if (outer == NOT_ECT || outer == inner || inner == CE) return true;
    if (inner == NOT_ECT) return outer != CE;
    if (outer == ECT_0) return true; /* inner is ECT(1), which says more */
    if (six) {
        packet[1] = (uint8_t)((packet[1] & 0xCFU) | outer << 4);
        return true;
    }
    unsigned before = packet[1];
    packet[1] = (uint8_t)((before & 0xFCU) | outer);
    /* RFC 1624, equation 3: only the low byte of the first word has changed */
    uint32_t sum = (~((uint32_t)packet[10] << 8 | packet[11]) & 0xFFFFU) + (~before & 0xFFFFU) + packet[1];
    sum = (sum & 0xFFFFU) + (sum >> 16);
    sum = ~((sum & 0xFFFFU) + (sum >> 16));
    packet[10] = (uint8_t)(sum >> 8);
    packet[11] = (uint8_t)sum;
    return true;
}

/* A packet that was opened; `size` with its padding. */
static void take_packet(struct ea_pump *p, struct ea_peer *peer, const struct ea_keypair *keypair, uint8_t *packet,
                        uint32_t size, unsigned ecn) {
    uint32_t length = 0;
    if (size >= 20 && packet[0] >> 4 == 4) {
        length = (uint32_t)packet[2] << 8 | packet[3];
        if (length < 20) length = 0;
    } else if (size >= 40 && packet[0] >> 4 == 6) {
        length = ((uint32_t)packet[4] << 8 | packet[5]) + 40;
    }
    if (length == 0 || length > size) {
        ea_drop(p, EA_DROP_INNER_MALFORMED, 1);
        return;
    }
    if (ea_flow_peer(p, packet, length, true, keypair->slot) != peer ||
        (peer->mtu < p->config.mtu && ea_may_be_syn(packet, length))) {
        ea_up_packet(p, keypair, ecn, packet, length);
        return;
    }
    if (ecn != 0 && !decapsulate(packet, ecn)) {
        ea_drop(p, EA_DROP_INNER_ECN, 1);
        return;
    }
    deliver(p, packet, length);
}

void ea_flush_in(struct ea_pump *p) {
    unsigned count = p->in.count;
    if (count == 0) return;
    p->in.count = 0;
    struct ea_keypair *keypair = p->in.keypair;
    struct ea_peer *peer = &p->peers[keypair->slot];
    uint8_t ok[EA_BATCH];
    uint32_t most = 0, heard = 0, empty = 0;
    uint64_t wire = 0, rx = 0;
    for (unsigned i = 0; i < count; i++) {
        if (p->in.bytes[i] > most) most = p->in.bytes[i];
    }
    ea_aead_open(most < EA_SMALL_BYTES ? p->small : p->large, keypair->receive_key, p->in.counter, p->in.text, p->in.bytes,
                 count, ok);
    for (unsigned i = 0; i < count; i++) {
        if (!ok[i]) {
            ea_drop(p, EA_DROP_AUTHENTICATION, 1);
        } else if (!ea_window_accept(&keypair->window, p->in.counter[i])) {
            ea_drop(p, EA_DROP_REPLAYED, 1);
            ok[i] = 0;
        } else {
            heard++;
            wire += p->in.wire[i];
            rx += EA_HEADER + p->in.bytes[i] + EA_TAG;
            empty += p->in.bytes[i] == 0;
        }
    }
    if (heard == 0) return;
    ea_report_heard(p, peer, &p->in.from, wire, heard, empty);
    struct ea_report *report = &peer->report;
    report->rx_bytes += rx;
    report->used |= (uint8_t)(1U << keypair->position);
    report->last_received_at = p->now;
    if (heard > empty) {
        if (report->first_data_received_at == 0) report->first_data_received_at = p->now;
        report->last_data_received_at = p->now;
    }
    if (keypair->unconfirmed) { /* only now is it known that the initiator has it too (paper 5.4.6) */
        keypair->unconfirmed = false;
        peer->confirmed = keypair->position; /* the answer must not wait for the owner: a peer that began anew has no older one */
        report->confirmed = keypair->local_index;
        report->confirms++;
        p->urgent = true;
    }
    for (unsigned i = 0; i < count; i++) {
        if (ok[i] && p->in.bytes[i] > 0) take_packet(p, peer, keypair, p->in.text[i], p->in.bytes[i], p->in.ecn[i]);
    }
}

/* Whether it is a packet by a relay session in use; then `inner` is the way that it came. */
static bool is_relayed(const struct ea_pump *p, const uint8_t *datagram, uint32_t bytes, const struct ea_way *from,
                       struct ea_way *inner) {
    if (bytes <= EA_RELAY_HEAD || datagram[0] != RELAY_DATA || datagram[1] != 0) return false;
    unsigned channel = (unsigned)datagram[2] << 8 | datagram[3];
    uint32_t session = (uint32_t)datagram[4] << 24 | (uint32_t)datagram[5] << 16 | (uint32_t)datagram[6] << 8 | datagram[7];
    if (channel < CHANNEL_FIRST) return false;
    for (unsigned i = 0; i < p->relays; i++) {
        const struct ea_way *relay = &p->relay[i];
        if (relay->session == session && relay->family == from->family && relay->port == from->port &&
            memcmp(relay->address, from->address, sizeof from->address) == 0) {
            *inner = *relay;
            inner->kind = EA_WAY_RELAY;
            inner->channel = (uint16_t)channel;
            return true;
        }
    }
    return false;
}

void ea_take_datagram(struct ea_pump *p, uint8_t *datagram, uint32_t bytes, const struct ea_way *from, unsigned ecn) {
    struct ea_way inner;
    const struct ea_way *way = from;
    uint8_t *message = datagram;
    uint32_t size = bytes;
    p->figures.datagrams_in++;
    if (from->kind == EA_WAY_UDP && is_relayed(p, datagram, bytes, from, &inner)) {
        message += EA_RELAY_HEAD;
        size -= EA_RELAY_HEAD;
        way = &inner;
    }
    if (size > EA_HEADER + EA_AEAD_BYTES_MAX + EA_TAG) { /* of the owner's: no socket gives so much */
        ea_drop(p, EA_DROP_MALFORMED, 1);
        return;
    }
    if (size < EA_HEADER + EA_TAG || get_le32(message) != 4) {
        ea_flush_in(p); /* what came before is handled before */
        ea_up_datagram(p, from, ecn, datagram, bytes);
        return;
    }
    struct ea_keypair *keypair = ea_find_keypair(p, get_le32(message + 4));
    uint64_t counter = get_le64(message + 8);
    if (keypair == NULL) {
        if (p->config.unknown_up && !p->opening) {
            ea_up_datagram(p, from, ecn, datagram, bytes);
        } else {
            ea_drop(p, EA_DROP_UNKNOWN_INDEX, 1);
        }
        return;
    }
    if (p->now - keypair->created_at >= EA_REJECT_AFTER || counter >= EA_REJECT_COUNTER) {
        ea_drop(p, EA_DROP_KEY_EXPIRED, 1);
        return;
    }
    if (p->in.count == EA_BATCH ||
        (p->in.count > 0 && (p->in.keypair != keypair || memcmp(&p->in.from, way, sizeof *way) != 0))) {
        ea_flush_in(p);
    }
    unsigned i = p->in.count++;
    p->in.keypair = keypair;
    p->in.from = *way;
    p->in.counter[i] = counter;
    p->in.text[i] = message + EA_HEADER;
    p->in.bytes[i] = size - EA_HEADER - EA_TAG;
    p->in.wire[i] = bytes;
    p->in.ecn[i] = (uint8_t)ecn;
}

/* Where a datagram came from, and its ECN field and the size of the segments that the kernel joined (0: it is one). */
static void read_head(const struct msghdr *m, struct ea_way *from, unsigned *ecn, uint32_t *segment) {
    memset(from, 0, sizeof *from);
    *ecn = 0;
    *segment = 0;
    from->kind = EA_WAY_UDP;
    if (m->msg_namelen >= sizeof(struct sockaddr_in) && ((const struct sockaddr *)m->msg_name)->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = m->msg_name;
        from->family = 4;
        from->port = ntohs(v4->sin_port);
        memcpy(from->address, &v4->sin_addr, 4);
    } else if (m->msg_namelen >= sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *v6 = m->msg_name;
        from->family = 6;
        from->port = ntohs(v6->sin6_port);
        from->scope = v6->sin6_scope_id;
        memcpy(from->address, &v6->sin6_addr, 16);
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)m, c)) {
        size_t data = c->cmsg_len - CMSG_LEN(0);
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO && data >= sizeof(int)) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof size);
            *segment = size > 0 ? (uint32_t)size : 0;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO && data >= sizeof(struct in_pktinfo)) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            from->pinned = 1;
            from->interface = (uint32_t)info.ipi_ifindex;
            memcpy(from->local, &info.ipi_spec_dst, 4);
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO && data >= sizeof(struct in6_pktinfo)) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            from->pinned = 1;
            from->interface = info.ipi6_ifindex;
            memcpy(from->local, &info.ipi6_addr, 16);
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS && data >= 1) {
            *ecn = *CMSG_DATA(c) & 3U;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS && data >= sizeof(int)) {
            int class;
            memcpy(&class, CMSG_DATA(c), sizeof class);
            *ecn = (unsigned)class & 3U;
        }
    }
}

void ea_read_socket(struct ea_pump *p, unsigned number) {
    struct mmsghdr message[EA_READS];
    struct iovec piece[EA_READS];
    struct sockaddr_storage source[EA_READS];
    _Alignas(struct cmsghdr) uint8_t control[EA_READS][CONTROL_BYTES];
    memset(message, 0, sizeof message);
    for (unsigned i = 0; i < EA_READS; i++) {
        struct msghdr *m = &message[i].msg_hdr;
        piece[i] = (struct iovec){p->inbox + (size_t)i * EA_IN_BYTES, EA_IN_BYTES};
        m->msg_name = &source[i];
        m->msg_namelen = sizeof source[i];
        m->msg_iov = &piece[i];
        m->msg_iovlen = 1;
        m->msg_control = control[i];
        m->msg_controllen = sizeof control[i];
    }
    /* An error is one that an earlier datagram caused by ICMP; reading it has cleared it. */
    int count = recvmmsg(p->socket[number].fd, message, EA_READS, MSG_DONTWAIT, NULL);
    ea_coalesce_begin(p->join, p->udp_offload, p->config.router);
    for (int i = 0; i < count; i++) {
        struct ea_way from;
        unsigned ecn;
        uint32_t segment, bytes = message[i].msg_len;
        uint8_t *data = p->inbox + (size_t)i * EA_IN_BYTES;
        read_head(&message[i].msg_hdr, &from, &ecn, &segment);
        if (from.family == 0 || bytes == 0 || (message[i].msg_hdr.msg_flags & MSG_TRUNC)) {
            ea_drop(p, EA_DROP_MALFORMED, 1);
            continue;
        }
        if (segment == 0) segment = bytes;
        for (uint32_t at = 0; at < bytes; at += segment) {
            ea_take_datagram(p, data + at, bytes - at < segment ? bytes - at : segment, &from, ecn);
        }
    }
    ea_flush_in(p);
    ea_coalesce_flush(p->join, emit, p);
}

void ea_write_packets(struct ea_pump *p, const uint32_t *lengths, unsigned count, uint8_t *packets) {
    ea_coalesce_begin(p->join, p->udp_offload, p->config.router);
    for (unsigned i = 0; i < count; packets += lengths[i++]) {
        if (lengths[i] > 0 && lengths[i] <= EA_IP_MAX) deliver(p, packets, lengths[i]);
    }
    ea_coalesce_flush(p->join, emit, p);
}

void ea_take_datagrams(struct ea_pump *p, const struct ea_send_record *record, const uint32_t *lengths, uint8_t *datagrams) {
    ea_coalesce_begin(p->join, p->udp_offload, p->config.router);
    p->opening = true; /* an index unknown here is not asked about again: the owner took it for one of ours */
    for (unsigned i = 0; i < record->count; datagrams += lengths[i++]) {
        if (lengths[i] > 0) ea_take_datagram(p, datagrams, lengths[i], &record->way, record->ecn & 3U);
    }
    p->opening = false;
    ea_flush_in(p);
    ea_coalesce_flush(p->join, emit, p);
}
