/* The pump's life: its memory, its thread, its turns. */
#include "core.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { RING_MIN = 1 << 18, RING_MAX = 1 << 26, FLOWS_MIN = 64, FLOWS_MAX = 1 << 22, STACK_BYTES = 256 << 10, IDLE_MS = 60000 };

static uint32_t power_of_two(uint32_t least) {
    uint32_t value = 1;
    while (value < least) value <<= 1;
    return value;
}

static int64_t monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * EA_NS + now.tv_nsec;
}

/* Written by one thread, read by another, of which neither waits: the reader tries again. Word by word, for there are machines
 * without atomics of 64 bits. */
static void show_figures(struct ea_pump *p) {
    uint32_t words[sizeof p->figures / 4], number = atomic_load_explicit(&p->shown_number, memory_order_relaxed);
    p->figures.net_peak = p->up[EA_RING_NET].peak;
    p->figures.tun_peak = p->up[EA_RING_TUN].peak;
    p->figures.tun_gone = p->tun_gone;
    memcpy(words, &p->figures, sizeof words);
    atomic_store_explicit(&p->shown_number, number + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    for (unsigned i = 0; i < sizeof words / 4; i++) atomic_store_explicit(&p->shown[i], words[i], memory_order_relaxed);
    atomic_store_explicit(&p->shown_number, number + 2, memory_order_release);
}

static void look_at_clock(struct ea_pump *p) {
    p->now = monotonic();
    p->now_s = (uint32_t)(p->now / EA_NS);
}

/* Parts of the one mapping, in order; `at` NULL: only their sizes are wanted. */
static uint8_t *part(uint8_t **at, size_t *total, size_t bytes) {
    bytes = (bytes + 63) & ~(size_t)63;
    uint8_t *here = *at;
    if (*at != NULL) *at += bytes;
    *total += bytes;
    return here;
}

static size_t lay_out(struct ea_pump *p, uint8_t *map) {
    size_t total = 0;
    uint8_t *at = map;
    uint32_t indices = power_of_two(p->limits.peers * EA_POSITIONS * 4);
    uint32_t report_bytes = power_of_two(p->limits.peers * (uint32_t)(sizeof(struct ea_report) + sizeof(struct ea_record)) + 1);
    uint8_t *down = part(&at, &total, p->limits.down_bytes);
    uint8_t *net = part(&at, &total, p->limits.up_bytes);
    uint8_t *tun = part(&at, &total, p->limits.up_bytes);
    uint8_t *report = part(&at, &total, report_bytes);
    p->peers = (void *)part(&at, &total, p->limits.peers * sizeof *p->peers);
    p->index_slots = (void *)part(&at, &total, indices * sizeof *p->index_slots);
    p->flows = (void *)part(&at, &total, p->limits.flows * sizeof *p->flows);
    p->marks = (void *)part(&at, &total, p->limits.entries * sizeof *p->marks);
    p->to_report = (void *)part(&at, &total, p->limits.peers * sizeof *p->to_report);
    p->awaited = (void *)part(&at, &total, p->limits.peers * sizeof *p->awaited);
    p->out.bytes = part(&at, &total, EA_OUT_BYTES);
    p->tail_bytes = part(&at, &total, (size_t)EA_TAILS * (EA_RELAY_HEAD + EA_TAIL_BYTES));
    p->frame = part(&at, &total, EA_FRAME_MAX);
    p->inbox = part(&at, &total, (size_t)EA_READS * EA_IN_BYTES);
    p->join = (void *)part(&at, &total, sizeof *p->join);
    p->index_mask = indices - 1;
    p->flow_sets_mask = p->limits.flows / EA_WAYS_FLOW - 1;
    if (map != NULL) {
        ea_ring_init(&p->down, down, p->limits.down_bytes);
        ea_ring_init(&p->up[EA_RING_NET], net, p->limits.up_bytes);
        ea_ring_init(&p->up[EA_RING_TUN], tun, p->limits.up_bytes);
        ea_ring_init(&p->up[EA_RING_REPORT], report, report_bytes);
    }
    return total;
}

static bool is_ring(uint32_t bytes) {
    return bytes >= RING_MIN && bytes <= RING_MAX && (bytes & (bytes - 1)) == 0;
}

struct ea_pump *ea_new(const struct ea_limits *limits, const char *small, const char *large) {
    if (limits->peers == 0 || limits->peers > EA_PEERS_MAX || limits->flows > FLOWS_MAX ||
        limits->entries > FLOWS_MAX || !is_ring(limits->down_bytes) ||
        !is_ring(limits->up_bytes)) {
        errno = EINVAL;
        return NULL;
    }
    struct ea_pump *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->limits = *limits;
    p->limits.flows = power_of_two(limits->flows < FLOWS_MIN ? FLOWS_MIN : limits->flows);
    p->mapped = lay_out(p, NULL);
    p->tun = p->wake_fd = p->up_fd = -1;
    p->look_at = INT64_MAX;
    void *map = mmap(NULL, p->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map != MAP_FAILED) {
        p->map = map;
        madvise(map, p->mapped, MADV_NOHUGEPAGE); /* only what is used is to become resident */
        lay_out(p, map);
    }
    p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    p->up_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    char why[160];
    p->small = ea_aead_new(small == NULL ? "lanes" : small, why, sizeof why);
    p->large = ea_aead_new(large == NULL ? "lanes" : large, why, sizeof why);
    if (p->map == NULL || p->wake_fd < 0 || p->up_fd < 0 || p->small == NULL || p->large == NULL ||
        getrandom(&p->secret, sizeof p->secret, 0) != (ssize_t)sizeof p->secret) {
        int number = p->small == NULL || p->large == NULL ? ENOENT : errno;
        ea_free(p);
        errno = number;
        return NULL;
    }
    p->config = (struct ea_config){.mtu = 1420, .router = 1, .report_ms = 100, .new_flows_per_s = 2000};
    p->figures.flows_max = p->limits.flows;
    p->figures.peers_max = p->limits.peers;
    p->figures.mapped_kib = (uint32_t)(p->mapped >> 10);
    p->figures.down_max = p->limits.down_bytes;
    p->figures.net_max = p->figures.tun_max = p->limits.up_bytes;
    look_at_clock(p);
    show_figures(p);
    return p;
}

void ea_free(struct ea_pump *p) {
    if (p == NULL) return;
    ea_halt(p);
    if (p->small != NULL) ea_aead_free(p->small);
    if (p->large != NULL) ea_aead_free(p->large);
    if (p->wake_fd >= 0) close(p->wake_fd);
    if (p->up_fd >= 0) close(p->up_fd);
    if (p->map != NULL) {
        for (uint32_t i = 0; i < p->limits.peers; i++) {
            if (!p->peers[i].live) continue;
            for (unsigned k = 0; k < EA_POSITIONS; k++) ea_forget_keypair(p, &p->peers[i].keypair[k]);
        }
        munmap(p->map, p->mapped);
    }
    free(p);
}

void ea_set_tun(struct ea_pump *p, int tun, int udp_offload) {
    p->tun = tun;
    p->tun_gone = false;
    p->udp_offload = udp_offload != 0;
    show_figures(p);
}

int ea_set_sockets(struct ea_pump *p, const struct ea_socket *sockets, unsigned count) {
    if (count > EA_SOCKETS) return EINVAL;
    memset(p->socket_mode, 0, sizeof p->socket_mode);
    memset(p->choked_until, 0, sizeof p->choked_until);
    if (p->stuck.is) { /* what waited for a socket that is gone */
        p->stuck.is = p->half.is = false;
        p->out.count = p->out.used = 0;
    }
    if (count > 0) memcpy(p->socket, sockets, count * sizeof *sockets);
    p->sockets = count;
    return 0;
}

/* Turns */

static void read_frames(struct ea_pump *p) {
    for (unsigned i = 0; i < EA_FRAMES && !p->stuck.is; i++) {
        ssize_t bytes = read(p->tun, p->frame, EA_FRAME_MAX);
        if (bytes < 0) {
            if (errno == EBADFD || errno == ENODEV || errno == ENXIO) p->tun_gone = true;
            break; /* EAGAIN: that was all; EIO: the interface is down */
        }
        ea_take_frame(p, (uint32_t)bytes);
    }
    ea_flush_out(p);
}

static int timeout_of(const struct ea_pump *p, int timeout_ms) {
    int64_t due = ea_report_due(p);
    if (p->stuck.is && p->stuck.retry_at < due) due = p->stuck.retry_at;
    if (p->look_at < due) due = p->look_at;
    if (due == INT64_MAX) return timeout_ms;
    int64_t wait_ms = due <= p->now ? 0 : (due - p->now + 999999) / 1000000;
    return timeout_ms < 0 || wait_ms < timeout_ms ? (int)wait_ms : timeout_ms;
}

int ea_turn(struct ea_pump *p, int timeout_ms) {
    struct pollfd fds[2 + EA_SOCKETS];
    unsigned count = 0;
    fds[count++] = (struct pollfd){p->wake_fd, POLLIN, 0};
    fds[count++] = (struct pollfd){p->tun_gone || p->stuck.is ? -1 : p->tun, POLLIN, 0};
    for (unsigned i = 0; i < p->sockets; i++) {
        short wanted = p->stuck.is && p->stuck.socket == i ? POLLIN | POLLOUT : POLLIN;
        fds[count++] = (struct pollfd){p->socket[i].fd, wanted, 0};
    }
    atomic_store_explicit(&p->asleep, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    bool pending = !p->stuck.is && ea_ring_used(&p->down) > 0;
    if (atomic_load_explicit(&p->halt, memory_order_acquire)) pending = true;
    int ready = poll(fds, count, pending ? 0 : timeout_of(p, timeout_ms));
    atomic_store_explicit(&p->asleep, 0, memory_order_relaxed);
    look_at_clock(p);
    p->figures.turns++;
    bool gone = p->tun_gone;
    if (fds[0].revents & POLLIN) {
        uint64_t rung;
        while (read(p->wake_fd, &rung, sizeof rung) < 0 && errno == EINTR) {}
    }
    if (p->stuck.is) ea_unstick(p, (fds[2 + p->stuck.socket].revents & (POLLOUT | POLLERR)) != 0);
    for (unsigned i = 0; i < EA_DOWNS && !p->stuck.is && ea_follow(p); i++) {}
    for (unsigned i = 0; i < p->sockets; i++) {
        if (fds[2 + i].revents & (POLLIN | POLLERR)) ea_read_socket(p, i);
    }
    if (fds[1].revents & (POLLIN | POLLERR) && !p->stuck.is) {
        read_frames(p);
    }
    ea_look_for_silence(p);
    uint32_t wanted = atomic_load_explicit(&p->sync_wanted, memory_order_acquire);
    bool sync = wanted != atomic_load_explicit(&p->sync_done, memory_order_relaxed) && (p->stuck.is || ea_ring_used(&p->down) == 0);
    show_figures(p); /* before a bell: who hears it looks at them */
    if (p->tun_gone && !gone) ea_ring_bell(p);
    if (ea_report_due(p) <= p->now || (sync && p->reports > 0)) ea_report(p);
    if (sync) {
        atomic_store_explicit(&p->sync_done, wanted, memory_order_release);
        ea_ring_bell(p);
    }
    return ready < 0 ? 0 : ready;
}

/* The thread */

static void *run(void *context) {
    struct ea_pump *p = context;
    while (!atomic_load_explicit(&p->halt, memory_order_acquire)) ea_turn(p, IDLE_MS);
    return NULL;
}

int ea_start(struct ea_pump *p) {
    if (p->has_thread) return 0;
    pthread_attr_t attributes;
    sigset_t all, before;
    atomic_store_explicit(&p->halt, 0, memory_order_release);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all); /* signals are the owner's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&p->thread, &attributes, run, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    p->has_thread = error == 0;
    return error;
}

void ea_halt(struct ea_pump *p) {
    if (!p->has_thread) return;
    uint64_t one = 1;
    atomic_store_explicit(&p->halt, 1, memory_order_seq_cst);
    while (write(p->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {}
    pthread_join(p->thread, NULL);
    p->has_thread = false;
}

bool ea_sync(struct ea_pump *p, int timeout_ms) {
    uint32_t wanted = atomic_load_explicit(&p->sync_wanted, memory_order_relaxed) + 1;
    int64_t until = monotonic() + timeout_ms * 1000000LL;
    uint64_t one = 1;
    atomic_store_explicit(&p->sync_wanted, wanted, memory_order_release);
    while (write(p->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {}
    while (atomic_load_explicit(&p->sync_done, memory_order_acquire) != wanted) {
        int64_t left = until - monotonic();
        if (left <= 0) return false;
        if (!p->has_thread) {
            ea_turn(p, 0);
            continue;
        }
        struct pollfd fd = {p->up_fd, POLLIN, 0};
        poll(&fd, 1, (int)((left + 999999) / 1000000));
        ea_rest(p); /* bells of other news ring for the caller, who pulls everything next */
    }
    return true;
}

/* The owner's side of the rings */

size_t ea_pull(struct ea_pump *p, unsigned number, void *out, size_t room) {
    if (number >= EA_RINGS) return 0;
    struct ea_ring *ring = &p->up[number];
    size_t used = 0;
    uint32_t at;
    const struct ea_record *record;
    while ((record = ea_ring_peek(ring, &at)) != NULL) {
        size_t want = sizeof *record + ((record->bytes + 7U) & ~7U);
        if (used + want > room) break;
        memcpy((uint8_t *)out + used, record, sizeof *record + record->bytes);
        used += want;
        ea_ring_next(ring, at, record);
    }
    return used;
}

int ea_fd(const struct ea_pump *p) {
    return p->up_fd;
}

void ea_rest(struct ea_pump *p) {
    uint64_t rung;
    while (read(p->up_fd, &rung, sizeof rung) < 0 && errno == EINTR) {}
    /* Only then: a bell between the two would be read away, and no other one would follow it. An exchange, for it has to
     * see what the pump wrote before a bell that found this set already. */
    atomic_exchange_explicit(&p->rung, 0, memory_order_acq_rel);
}

void ea_figures(struct ea_pump *p, struct ea_figures *out) {
    uint32_t words[sizeof *out / 4], before, after;
    do {
        before = atomic_load_explicit(&p->shown_number, memory_order_acquire);
        for (unsigned i = 0; i < sizeof words / 4; i++) words[i] = atomic_load_explicit(&p->shown[i], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        after = atomic_load_explicit(&p->shown_number, memory_order_relaxed);
    } while (before != after || (before & 1));
    memcpy(out, words, sizeof words);
    out->down_peak = p->down.peak;
}
