/* Whole frames in, whole packets out, and back: how tests call split.c and coalesce.c. */
#include "offload.h"

#include <stdlib.h>
#include <string.h>

enum { NO_ROOM = -2 };

int ea_test_split(const uint8_t *frame, size_t bytes, uint8_t *out, size_t room, uint32_t *sizes, unsigned sizes_max)
{
    struct ea_split s;

    if (ea_split_begin(&s, frame, bytes) == EA_SPLIT_LIES)
        return -1;
    if (s.count > sizes_max || (size_t)s.packet_bytes * (s.count - 1) + s.last_bytes > room)
        return NO_ROOM;
    for (uint32_t i = 0; i < s.count; i++) {
        sizes[i] = (uint32_t)ea_split_next(&s, out);
        out += sizes[i];
    }
    return (int)s.count;
}

struct gather {
    uint8_t *out;
    size_t room;
    uint32_t *sizes;
    unsigned frames, frames_max;
    bool overrun;
};

static void gather(void *context, const struct iovec *iov, int n_iov)
{
    struct gather *g = context;
    size_t bytes = 0;

    for (int i = 0; i < n_iov; i++)
        bytes += iov[i].iov_len;
    if (bytes > g->room || g->frames == g->frames_max) {
        g->overrun = true;
        return;
    }
    for (int i = 0; i < n_iov; i++) {
        memcpy(g->out, iov[i].iov_base, iov[i].iov_len);
        g->out += iov[i].iov_len;
    }
    g->room -= bytes;
    g->sizes[g->frames++] = (uint32_t)bytes;
}

int ea_test_coalesce(const uint8_t *packets, const uint32_t *sizes, unsigned n, int udp, int verify, uint8_t *out,
                     size_t room, uint32_t *frame_sizes, unsigned frames_max)
{
    struct gather g = {.out = out, .room = room, .sizes = frame_sizes, .frames_max = frames_max};
    struct ea_coalesce *c = malloc(sizeof *c);
    uint8_t *copy, *at;
    size_t total = 0;

    for (unsigned i = 0; i < n; i++)
        total += sizes[i];
    copy = at = malloc(total + 1);
    if (!c || !copy)
        abort();
    memcpy(copy, packets, total);
    ea_coalesce_begin(c, udp != 0, verify != 0);
    for (unsigned i = 0; i < n; at += sizes[i++]) {
        if (ea_coalesce_add(c, at, sizes[i]))
            continue;
        ea_coalesce_flush(c, gather, &g);
        if (!ea_coalesce_add(c, at, sizes[i]))
            abort();
    }
    ea_coalesce_flush(c, gather, &g);
    free(copy);
    free(c);
    return g.overrun ? NO_ROOM : (int)g.frames;
}
