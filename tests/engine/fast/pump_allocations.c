/* 100,000 packets both ways between two pumps, and every call of the allocator counted meanwhile: there is to be none. Linked with
 * -Wl,--wrap=malloc and so on. Prints packets and calls.
 *
 *   PROGRAM [PACKETS]
 */
#include "pump_kit.h"

static volatile unsigned long calls; /* volatile: a compiler takes it that malloc knows nothing of them */
static volatile bool counting;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);

void *__wrap_malloc(size_t bytes) {
    calls = calls + counting;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes) {
    calls = calls + counting;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes) {
    calls = calls + counting;
    return __real_realloc(old, bytes);
}

/* Packets that the frames at the kernel's end hold. */
static unsigned long drain(struct side *side) {
    static uint8_t frame[70000];
    unsigned long packets = 0;
    ssize_t bytes;
    while ((bytes = read(side->tun[1], frame, sizeof frame)) > 0) packets += (unsigned long)(bytes - 10 - 40) / 1000;
    return packets;
}

int main(int argc, char **argv) {
    static struct side sides[2];
    static uint8_t frame[10 + 1040], pulled[1 << 18];
    unsigned long wanted = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000, received[2] = {0, 0};
    for (unsigned i = 0; i < 2; i++) begin_side(&sides[i]);
    for (unsigned i = 0; i < 2; i++) {
        tell_peer(&sides[i], &sides[1 - i], i + 1, 0, EA_PEER_NEW);
        tell_flows(&sides[i], i + 1, 0);
        while (ea_turn(sides[i].pump, 0) > 0) {}
    }
    counting = true;
    void *volatile probe = malloc(1); /* that it counts */
    counting = false;
    free(probe);
    need(calls == 1, "the allocator is not wrapped");
    calls = 0;
    counting = true;
    uint32_t seq[2] = {0, 0};
    int64_t until = now_ns() + 120 * NS;
    while ((received[0] < wanted || received[1] < wanted) && now_ns() < until) {
        for (unsigned i = 0; i < 2; i++) {
            for (unsigned k = 0; k < 16; k++) {
                put_packet(frame + 10, i + 1, 2 - i, 1000, seq[i]);
                seq[i] += 1000;
                (void)!write(sides[i].tun[1], frame, sizeof frame);
            }
        }
        for (unsigned i = 0; i < 2; i++) {
            ea_turn(sides[i].pump, 0);
            ea_rest(sides[i].pump);
            for (unsigned ring = 0; ring < EA_RINGS; ring++) (void)ea_pull(sides[i].pump, ring, pulled, sizeof pulled);
            received[i] += drain(&sides[i]);
        }
    }
    counting = false;
    printf("packets=%lu+%lu calls=%lu\n", received[0], received[1], calls);
    for (unsigned i = 0; i < 2; i++) ea_free(sides[i].pump);
    return calls != 0 || received[0] < wanted || received[1] < wanted;
}
