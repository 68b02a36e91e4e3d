/* Datagrams to the kernel: as few system calls as it allows, and what to do when it refuses. */
#include "core.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <string.h>
#include <sys/uio.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef IP_PMTUDISC_PROBE
#define IP_PMTUDISC_PROBE 3
#endif
#ifndef IPV6_MTU_DISCOVER
#define IPV6_MTU_DISCOVER 23
#endif
#ifndef IPV6_DONTFRAG
#define IPV6_DONTFRAG 62
#endif

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Pktinfo, traffic class, hop limit, segment size. */
enum { CONTROL_BYTES = CMSG_SPACE(sizeof(struct in6_pktinfo)) + 2 * CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint16_t)) };

struct control {
    _Alignas(struct cmsghdr) uint8_t bytes[CONTROL_BYTES];
    size_t used;
};

static void add_control(struct control *control, int level, int type, const void *data, size_t bytes) {
    struct cmsghdr *head = (void *)(control->bytes + control->used);
    memset(head, 0, CMSG_SPACE(bytes));
    head->cmsg_level = level;
    head->cmsg_type = type;
    head->cmsg_len = CMSG_LEN(bytes);
    memcpy(CMSG_DATA(head), data, bytes);
    control->used += CMSG_SPACE(bytes);
}

static socklen_t to_address(union address *to, const struct ea_way *way) {
    memset(to, 0, sizeof *to);
    if (way->family == 4) {
        to->v4.sin_family = AF_INET;
        to->v4.sin_port = htons(way->port);
        memcpy(&to->v4.sin_addr, way->address, 4);
        return sizeof to->v4;
    }
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons(way->port);
    to->v6.sin6_scope_id = way->scope;
    memcpy(&to->v6.sin6_addr, way->address, 16);
    return sizeof to->v6;
}

static void begin_control(struct control *control, const struct ea_way *way, bool pinned, int ecn, int ttl) {
    control->used = 0;
    bool six = way->family == 6;
    if (pinned && six) {
        struct in6_pktinfo info = {.ipi6_ifindex = way->interface};
        memcpy(&info.ipi6_addr, way->local, 16);
        add_control(control, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info);
    } else if (pinned) {
        struct in_pktinfo info = {.ipi_ifindex = (int)way->interface};
        memcpy(&info.ipi_spec_dst, way->local, 4);
        add_control(control, IPPROTO_IP, IP_PKTINFO, &info, sizeof info);
    }
    if (ecn) add_control(control, six ? IPPROTO_IPV6 : IPPROTO_IP, six ? IPV6_TCLASS : IP_TOS, &ecn, sizeof ecn);
    if (ttl) add_control(control, six ? IPPROTO_IPV6 : IPPROTO_IP, six ? IPV6_HOPLIMIT : IP_TTL, &ttl, sizeof ttl);
}

/* The socket of the uplink that the way is by, if it has one of its own; else that for all. EA_SOCKETS: none. */
static unsigned socket_for(const struct ea_pump *p, const struct ea_way *way) {
    unsigned general = EA_SOCKETS;
    for (unsigned i = 0; i < p->sockets; i++) {
        if (p->socket[i].family != way->family) continue;
        if (p->socket[i].interface == 0) {
            general = i;
        } else if (p->socket[i].interface == way->interface) {
            return i;
        }
    }
    return general;
}

/* DF or not, whatever an ICMP message says: anybody can send one (RFC 8899, section 4.6). */
static void let_fragment(struct ea_pump *p, unsigned number, bool fragment) {
    uint8_t mode = fragment ? 1 : 2;
    if (p->socket[number].by_kernel || p->socket_mode[number] == mode) return;
    p->socket_mode[number] = mode;
    int fd = p->socket[number].fd, discover = fragment ? IP_PMTUDISC_DONT : IP_PMTUDISC_PROBE, dont = !fragment;
    if (p->socket[number].family == 4) {
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover);
    } else {
        setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &discover, sizeof discover);
        setsockopt(fd, IPPROTO_IPV6, IPV6_DONTFRAG, &dont, sizeof dont);
    }
}

/* How many from `first` on go in one send: equal sizes, and one shorter at the end. */
static unsigned run_of(const struct ea_bundle *b, unsigned first) {
    uint32_t size = b->size[first], total = size;
    unsigned count = 1;
    while (first + count < b->count && count < EA_UDP_SEGMENTS) {
        uint32_t next = b->size[first + count];
        if (next > size || total + next > EA_SEGMENTED_MAX) break;
        total += next;
        count++;
        if (next < size) break;
    }
    return count;
}

static void account(struct ea_pump *p, const struct ea_bundle *b, const struct ea_way *way, unsigned first, unsigned count) {
    p->figures.datagrams_out += count;
    if (b->peer == NULL) return;
    struct ea_report *report = ea_report_of(p, b->peer);
    for (unsigned i = first; i < first + count; i++) {
        report->sent_bytes[b->number] += b->size[i] - b->prefix + (way->kind == EA_WAY_RELAY ? EA_RELAY_HEAD : 0U);
        if (b->number == 0 && b->size[i] - b->prefix == EA_HEADER + EA_TAG) report->sent_empty++;
    }
    report->sent[b->number] += count;
}

static unsigned reason_of(int number) {
    switch (number) {
        case EMSGSIZE: return EA_DROP_TOO_LONG;
        case ENETUNREACH:
        case EHOSTUNREACH:
        case ENODEV:
        case EADDRNOTAVAIL:
        case EINVAL: return EA_DROP_NO_ROUTE;
        default: return EA_DROP_REFUSED;
    }
}

static bool is_source_gone(int number) {
    return number == EINVAL || number == ENETUNREACH || number == EADDRNOTAVAIL || number == ENODEV;
}

static void tell_unsent(struct ea_pump *p, const struct ea_bundle *b, const struct ea_way *way, int number, uint32_t bytes) {
    if (b->peer != NULL && b->peer->unsent_told) return;
    if (b->peer != NULL) {
        ea_report_of(p, b->peer);
        b->peer->unsent_told = true;
    }
    ea_up_unsent(p, way, number, bytes, b->peer == NULL);
}

unsigned ea_send(struct ea_pump *p, const struct ea_bundle *b, const struct ea_way *way, unsigned first) {
    if (way->kind == EA_WAY_UP) {
        for (unsigned i = first; i < b->count; i++) {
            ea_up_sealed(p, (unsigned)(b->peer - p->peers), b->number, b->ecn, b->bytes + b->at[i] + b->prefix,
                         b->size[i] - b->prefix);
        }
        return b->count;
    }
    unsigned number = socket_for(p, way);
    if (way->kind == EA_WAY_NONE || number == EA_SOCKETS || p->now < p->choked_until[number]) {
        ea_drop(p, number == EA_SOCKETS ? EA_DROP_NO_SOCKET : EA_DROP_SEND_BLOCKED, b->count - first);
        return b->count;
    }
    bool relayed = way->kind == EA_WAY_RELAY && b->peer != NULL;
    uint8_t head[EA_RELAY_HEAD] = {0xE5, 0, (uint8_t)(way->channel >> 8), (uint8_t)way->channel,
                                   (uint8_t)(way->session >> 24), (uint8_t)(way->session >> 16),
                                   (uint8_t)(way->session >> 8), (uint8_t)way->session};
    bool in_place = relayed == (b->prefix != 0);
    if (relayed && in_place) {
        for (unsigned i = first; i < b->count; i++) memcpy(b->bytes + b->at[i], head, sizeof head);
    }
    let_fragment(p, number, way->fragment);
    union address to;
    socklen_t to_bytes = to_address(&to, way);
    bool pinned = way->pinned, singly = !p->socket[number].segments || !in_place;
    while (first < b->count) {
        struct mmsghdr message[EA_BATCH];
        struct iovec piece[EA_BATCH][2];
        unsigned run[EA_BATCH], messages = 0;
        struct control plain, segmented[2];
        unsigned segmenteds = 0;
        begin_control(&plain, way, pinned, b->ecn, b->ttl);
        for (unsigned at = first; at < b->count && messages < EA_BATCH; at += run[messages++]) {
            struct msghdr *m = &message[messages].msg_hdr;
            unsigned pieces = 0;
            run[messages] = singly ? 1 : run_of(b, at);
            struct control *control = &plain;
            if (run[messages] > 1) {
                if (segmenteds == 2) break; /* different sizes are rare: these two leave first */
                uint16_t segment = (uint16_t)b->size[at];
                control = &segmented[segmenteds++];
                *control = plain;
                add_control(control, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment);
            }
            uint32_t total = 0;
            for (unsigned i = 0; i < run[messages]; i++) total += b->size[at + i];
            uint32_t skipped = in_place ? 0 : b->prefix;
            if (relayed && !in_place) piece[messages][pieces++] = (struct iovec){head, sizeof head};
            piece[messages][pieces++] = (struct iovec){b->bytes + b->at[at] + skipped, total - skipped};
            memset(&message[messages], 0, sizeof message[messages]);
            m->msg_name = &to;
            m->msg_namelen = to_bytes;
            m->msg_iov = piece[messages];
            m->msg_iovlen = pieces;
            m->msg_control = control->used ? control->bytes : NULL;
            m->msg_controllen = (__typeof__(m->msg_controllen))control->used;
        }
        int done = sendmmsg(p->socket[number].fd, message, messages, 0);
        if (done > 0) {
            for (int i = 0; i < done; i++) {
                account(p, b, way, first, run[i]);
                first += run[i];
            }
            continue;
        }
        int error = done < 0 ? errno : EINVAL;
        if (error == EINTR) continue;
        if (error == EAGAIN || error == EWOULDBLOCK) {
            if (b->peer != NULL) {
                p->stuck.socket = number;
                return first;
            }
            ea_drop(p, EA_DROP_SEND_BLOCKED, b->count - first);
            return b->count;
        }
        if (run[0] > 1 && error == EIO) { /* udp(7): the device cannot checksum what it would have to segment */
            p->socket[number].segments = 0;
            singly = true;
            continue;
        }
        if (run[0] > 1 && (error == EINVAL || error == EMSGSIZE)) { /* let each be fragmented or refused alone */
            singly = true;
            continue;
        }
        if (pinned && is_source_gone(error)) {
            tell_unsent(p, b, way, error, b->size[first]);
            pinned = false;
            continue;
        }
        unsigned reason = reason_of(error);
        if ((reason == EA_DROP_TOO_LONG && !way->fragment) || (way->interface != 0 && is_source_gone(error))) {
            tell_unsent(p, b, way, error, b->size[first]);
        }
        ea_drop(p, reason, run[0]);
        first += run[0];
    }
    return b->count;
}

void ea_send_raw(struct ea_pump *p, const struct ea_send_record *record, const uint32_t *lengths, uint8_t *datagrams) {
    uint32_t at[EA_BATCH], used = 0;
    for (unsigned done = 0; done < record->count;) {
        unsigned count = 0;
        uint8_t *bytes = datagrams + used;
        for (uint32_t offset = 0; count < EA_BATCH && done + count < record->count; count++) {
            at[count] = offset;
            offset += lengths[done + count];
            used += lengths[done + count];
        }
        struct ea_bundle bundle = {
            .bytes = bytes, .at = at, .size = lengths + done, .count = count, .ecn = record->ecn, .ttl = record->ttl};
        ea_send(p, &bundle, &record->way, 0);
        done += count;
    }
}
