/* blast: sends UDP datagrams at a rate and counts what arrives. Made for figures of small packets: iperf3's sender
 * is the bottleneck there. Linux only, by sendmmsg(2) and recvmmsg(2). Every run is bounded in seconds.
 *
 *   blast recv ADDRESS PORT SECONDS                   counts runs, one line each: "run ID received PACKETS"
 *   blast send ADDRESS PORT BYTES PPS SECONDS ID      one run of IPv4 packets of BYTES each, headers included;
 *                                                     "sent PACKETS failed PACKETS us MICROSECONDS"
 *   blast flows SOURCE ADDRESS PPS SECONDS KIND       packets of 64 bytes from a raw socket, each of a flow of its own:
 *                                                     KIND `source`, `destination` (port) or `one` (all of one flow)
 *
 * PPS 0 means as fast as the socket takes them. Payload: run ID and number, 32 bits each in host order (both ends are on
 * one machine); number 0xffffffff ends the run. Exit status 0, 1 for a system call that failed, 2 for usage.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define PACKET_MIN 64
#define PACKET_MAX 9000
#define HEADERS 28 /* IPv4 and UDP */
#define END 0xffffffffu
#define END_COPIES 5
#define TICK_NS 1000000LL
#define DEBT_NS 20000000LL     /* what a late sender makes up for; older debt is forgotten: no bursts beyond this */
#define SETTLE_NS 200000000LL /* queues drain before the end is announced */
#define RECEIVE_BUFFER (8 << 20)
#define PORT_FIRST 20000u
#define PORTS 40000u

static int64_t now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void sleep_ns(int64_t ns)
{
    struct timespec span = {.tv_sec = (time_t)(ns / 1000000000LL), .tv_nsec = (long)(ns % 1000000000LL)};
    nanosleep(&span, NULL);
}

static int failed(const char *what)
{
    fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
    return 1;
}

static int address_of(const char *address, unsigned port, struct sockaddr_in *to)
{
    *to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    return inet_pton(AF_INET, address, &to->sin_addr) == 1;
}

/* Receiver */

static int receive(const struct sockaddr_in *at, double seconds)
{
    static unsigned char buffers[BATCH][PACKET_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    const int size = RECEIVE_BUFFER;
    const struct timeval patience = {.tv_usec = 200000};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)at, sizeof *at) < 0)
        return failed("recv");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    printf("ready\n");
    fflush(stdout);

    uint32_t run = 0, over = 0; /* the run being counted, the one told last */
    uint64_t received = 0;
    const int64_t deadline = now_ns() + (int64_t)(seconds * 1e9);
    while (now_ns() < deadline) {
        for (int i = 0; i < BATCH; i++) {
            vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = PACKET_MAX};
            messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &vectors[i], .msg_iovlen = 1}};
        }
        int count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (count < 0 && errno != EAGAIN && errno != EINTR)
            return failed("recvmmsg");
        for (int i = 0; i < count; i++) {
            uint32_t head[2];
            if (messages[i].msg_len < sizeof head)
                continue;
            memcpy(head, buffers[i], sizeof head);
            if (head[0] == over)
                continue;
            if (head[0] != run) {
                run = head[0];
                received = 0;
            }
            if (head[1] != END) {
                received++;
                continue;
            }
            printf("run %u received %llu\n", run, (unsigned long long)received);
            fflush(stdout);
            over = run;
        }
    }
    return 0;
}

/* Pacing: how many packets are due, at most BATCH. Sleeps until at least one is. */

struct pace {
    int64_t start;
    int64_t end;
    double per_ns; /* 0: as fast as possible */
    uint64_t sent;
};

static struct pace paced(double pps, double seconds)
{
    const int64_t start = now_ns();
    return (struct pace){.start = start, .end = start + (int64_t)(seconds * 1e9), .per_ns = pps / 1e9};
}

static unsigned due(struct pace *pace)
{
    for (;;) {
        const int64_t now = now_ns();
        if (now >= pace->end)
            return 0;
        if (pace->per_ns <= 0)
            return BATCH;
        double owed = (double)(now - pace->start) * pace->per_ns - (double)pace->sent;
        const double most = (double)DEBT_NS * pace->per_ns + 1;
        if (owed > most) {
            pace->start += (int64_t)((owed - most) / pace->per_ns);
            owed = most;
        }
        if (owed >= 1)
            return owed < BATCH ? (unsigned)owed : BATCH;
        sleep_ns(TICK_NS);
    }
}

static int transient(int error)
{
    return error == ENOBUFS || error == EAGAIN || error == EINTR || error == ECONNREFUSED;
}

static int send_run(const struct sockaddr_in *to, size_t bytes, double pps, double seconds, uint32_t run)
{
    static unsigned char payloads[BATCH][PACKET_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof *to) < 0)
        return failed("send");
    for (int i = 0; i < BATCH; i++) {
        memcpy(payloads[i], &run, sizeof run);
        vectors[i] = (struct iovec){.iov_base = payloads[i], .iov_len = bytes - HEADERS};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &vectors[i], .msg_iovlen = 1}};
    }
    uint64_t lost = 0;
    unsigned want;
    struct pace pace = paced(pps, seconds);
    const int64_t began = pace.start;
    while ((want = due(&pace)) > 0) {
        for (unsigned i = 0; i < want; i++) {
            const uint32_t number = (uint32_t)(pace.sent + i) & 0x7fffffffu;
            memcpy(payloads[i] + sizeof run, &number, sizeof number);
        }
        int count = sendmmsg(fd, messages, want, 0);
        if (count < 0) {
            if (!transient(errno))
                return failed("sendmmsg");
            lost++;
            count = 1; /* the first one was refused: it counts as sent, and never arrives */
        }
        pace.sent += (uint64_t)count;
    }
    const int64_t took = now_ns() - began;
    sleep_ns(SETTLE_NS);
    for (int copy = 0; copy < END_COPIES; copy++) {
        const uint32_t end[2] = {run, END};
        if (send(fd, end, sizeof end, 0) < 0 && !transient(errno))
            return failed("send");
        sleep_ns(10 * TICK_NS);
    }
    printf("sent %llu failed %llu us %lld\n", (unsigned long long)pace.sent, (unsigned long long)lost,
           (long long)(took / 1000));
    return 0;
}

/* New flows */

enum kind { SOURCE, DESTINATION, ONE };

struct packet {
    struct iphdr ip;
    struct udphdr udp;
    unsigned char payload[PACKET_MIN - HEADERS];
};

/* The number-th flow: one port runs through PORTS values, and the other moves on when it has, so none comes twice. */
static void set_flow(struct packet *packet, enum kind kind, uint64_t number)
{
    const uint16_t fast = kind == ONE ? PORT_FIRST : (uint16_t)(PORT_FIRST + number % PORTS);
    const uint16_t slow = kind == ONE ? PORT_FIRST : (uint16_t)(PORT_FIRST + number / PORTS % PORTS);
    packet->udp.source = htons(kind == DESTINATION ? slow : fast);
    packet->udp.dest = htons(kind == DESTINATION ? fast : slow);
}

static int send_flows(const struct sockaddr_in *from, struct sockaddr_in *to, double pps, double seconds, enum kind kind)
{
    static struct packet packets[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW); /* which means: with our own IP header */
    if (fd < 0)
        return failed("raw socket");
    for (int i = 0; i < BATCH; i++) {
        packets[i].ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
                                       .tot_len = htons(sizeof packets[i]), .saddr = from->sin_addr.s_addr,
                                       .daddr = to->sin_addr.s_addr}; /* the kernel fills in checksum and id */
        packets[i].udp.len = htons(sizeof packets[i] - sizeof packets[i].ip); /* its checksum 0: none, RFC 768 */
        vectors[i] = (struct iovec){.iov_base = &packets[i], .iov_len = sizeof packets[i]};
        messages[i] = (struct mmsghdr){
            .msg_hdr = {.msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &vectors[i], .msg_iovlen = 1}};
    }
    uint64_t lost = 0;
    unsigned want;
    struct pace pace = paced(pps, seconds);
    const int64_t began = pace.start;
    while ((want = due(&pace)) > 0) {
        for (unsigned i = 0; i < want; i++)
            set_flow(&packets[i], kind, pace.sent + i);
        int count = sendmmsg(fd, messages, want, 0);
        if (count < 0) {
            if (!transient(errno))
                return failed("sendmmsg");
            lost++;
            count = 1;
        }
        pace.sent += (uint64_t)count;
    }
    printf("sent %llu failed %llu us %lld\n", (unsigned long long)pace.sent, (unsigned long long)lost,
           (long long)((now_ns() - began) / 1000));
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in first, second;
    if (argc == 5 && strcmp(argv[1], "recv") == 0 && address_of(argv[2], (unsigned)atoi(argv[3]), &first))
        return receive(&first, atof(argv[4]));
    if (argc == 8 && strcmp(argv[1], "send") == 0 && address_of(argv[2], (unsigned)atoi(argv[3]), &first)) {
        const int bytes = atoi(argv[4]);
        if (bytes >= PACKET_MIN && bytes <= PACKET_MAX)
            return send_run(&first, (size_t)bytes, atof(argv[5]), atof(argv[6]), (uint32_t)atoi(argv[7]));
    }
    if (argc == 7 && strcmp(argv[1], "flows") == 0 && address_of(argv[2], 0, &first) && address_of(argv[3], 0, &second)) {
        static const char *const names[] = {"source", "destination", "one"};
        for (int kind = SOURCE; kind <= ONE; kind++)
            if (strcmp(argv[6], names[kind]) == 0)
                return send_flows(&first, &second, atof(argv[4]), atof(argv[5]), (enum kind)kind);
    }
    fprintf(stderr, "usage: blast recv ADDRESS PORT SECONDS\n"
                    "       blast send ADDRESS PORT BYTES PPS SECONDS ID\n"
                    "       blast flows SOURCE ADDRESS PPS SECONDS source|destination|one\n");
    return 2;
}
