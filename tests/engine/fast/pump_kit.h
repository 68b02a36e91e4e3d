/* Two pumps that know each other, each with a socketpair for its TUN, and their two owners' work. */
#ifndef PUMP_KIT_H
#define PUMP_KIT_H

#include "../../../edgeagent/engine/fast/fast.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

struct side {
    struct ea_pump *pump;
    int tun[2], port; /* tun[1] is the kernel's end */
    struct sockaddr_in address;
};

static void need(bool holds, const char *what) {
    if (holds) return;
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

static void push(struct ea_pump *p, unsigned kind, const void *head, size_t head_bytes, const void *body, size_t bytes) {
    need(ea_push(p, kind, head, head_bytes, body, bytes) == 0, "push");
}

static void begin_side(struct side *side) {
    struct ea_limits limits = {8, 256, 1 << 18, 1 << 18, 4};
    int size = 1 << 20;
    socklen_t bytes = sizeof side->address;
    side->pump = ea_new(&limits, "lanes", "lanes");
    need(side->pump != NULL, "ea_new");
    need(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, side->tun) == 0, "socketpair");
    side->port = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    for (unsigned i = 0; i < 2; i++) setsockopt(side->tun[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    side->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    need(side->port >= 0 && bind(side->port, (struct sockaddr *)&side->address, sizeof side->address) == 0, "bind");
    need(getsockname(side->port, (struct sockaddr *)&side->address, &bytes) == 0, "getsockname");
    struct ea_socket socket = {.fd = side->port, .family = 4, .segments = 1};
    ea_set_tun(side->pump, side->tun[0], 1);
    need(ea_set_sockets(side->pump, &socket, 1) == 0, "sockets");
}

/* A TCP segment, or with 0 bytes only its head, from 10.0.0.`from` to 10.0.0.`to`. Returns its length. */
static size_t put_packet(uint8_t *at, unsigned from, unsigned to, size_t payload, uint32_t seq) {
    size_t total = 40 + payload;
    memset(at, 0, 40);
    memset(at + 40, (int)(seq & 0xFF), payload);
    at[0] = 0x45;
    at[2] = (uint8_t)(total >> 8);
    at[3] = (uint8_t)total;
    at[6] = 0x40;
    at[8] = 64;
    at[9] = 6;
    at[12] = at[16] = 10;
    at[15] = (uint8_t)from;
    at[19] = (uint8_t)to;
    at[24] = (uint8_t)(seq >> 24);
    at[25] = (uint8_t)(seq >> 16);
    at[26] = (uint8_t)(seq >> 8);
    at[27] = (uint8_t)seq;
    at[32] = 0x50;
    at[33] = 0x10;
    return total;
}

/* Side number `self` (1 or 2) learns of the other one in `slot`, or of nobody there with EA_PEER_GONE. */
static void tell_peer(struct side *side, const struct side *other, unsigned self, uint16_t slot, uint8_t flags) {
    struct ea_way way = {.kind = EA_WAY_UDP, .family = 4, .fragment = 1, .port = ntohs(other->address.sin_port)};
    struct ea_peer_record peer = {.slot = slot, .flags = flags, .ways = flags == EA_PEER_GONE ? 0 : 1, .current = 1, .mtu = 1420};
    memcpy(way.address, &other->address.sin_addr, 4);
    push(side->pump, EA_DOWN_PEER, &peer, sizeof peer, &way, peer.ways * sizeof way);
    if (flags != EA_PEER_NEW) return;
    struct ea_keypair_record keypair = {
        .slot = slot, .position = 1, .local_index = self * 16 + slot, .remote_index = (3 - self) * 16 + slot, .created_at = now_ns()};
    memset(keypair.send_key, (int)self, 32);
    memset(keypair.receive_key, (int)(3 - self), 32);
    push(side->pump, EA_DOWN_KEYPAIR, &keypair, sizeof keypair, NULL, 0);
}

static void tell_flows(struct side *side, unsigned self, uint16_t slot) {
    uint8_t head[64] = {0};
    for (uint8_t inbound = 0; inbound < 2; inbound++) {
        struct ea_flow_record flow = {.slot = slot, .inbound = inbound};
        put_packet(head, inbound ? 3 - self : self, inbound ? self : 3 - self, 0, 0);
        push(side->pump, EA_DOWN_FLOW, &flow, sizeof flow, head, sizeof head);
    }
}

#endif
