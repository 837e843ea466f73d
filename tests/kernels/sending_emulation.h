// What `sending.cuh` asks of the card, on a CPU: what is sent arrives at once.
#pragma once
#include "streaming_emulation.h"

// A barrier's `unused` counts the bytes that it still waits for.
DEVICE void turn_if_complete(barrier_word* barrier) {
    if (barrier->missing || barrier->unused) return;
    barrier->missing = barrier->arrivals;
    barrier->phase ^= 1;
}
DEVICE void expect_bytes(barrier_word* barrier, int bytes) {
    barrier->unused += bytes;
    barrier->missing--;
    turn_if_complete(barrier);
}
// An address is a block's rank and the place in its memory.
DEVICE word address_in_block(const void* place, int rank) { return (word)rank << 24 | (word)((const unsigned char*)place - fibre_here->shared); }
DEVICE void send(word place, float4 value, word barrier) {
    *(float4*)(cluster_memory[place >> 24].data() + (place & 0xFFFFFF)) = value;
    barrier_word* counter = (barrier_word*)(cluster_memory[barrier >> 24].data() + (barrier & 0xFFFFFF));
    counter->unused -= 16;
    turn_if_complete(counter);
}

template <int COUNT>
DEVICE void copy_few(void* target, const void* source) { memcpy(target, source, COUNT); }
DEVICE void close_copies() {}
template <int LEFT>
DEVICE void wait_for_copies() {}

DEVICE word larger_magnitudes(word a, word b) {
    word low = a & 0x7FFFu, other = b & 0x7FFFu, high = a & 0x7FFF0000u, another = b & 0x7FFF0000u;
    return (low > other ? low : other) | (high > another ? high : another);
}
