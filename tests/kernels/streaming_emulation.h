// What `streaming.cuh` asks of the card, on a CPU: copies arrive at once, barriers count.
#pragma once
#include "emulation.h"

struct barrier_word { uint16_t arrivals, missing, phase, unused; };

DEVICE void set_barrier(barrier_word* barrier, int arrivals) { *barrier = {(uint16_t)arrivals, (uint16_t)arrivals, 0, 0}; }
DEVICE void publish_barriers() {}
DEVICE void arrive(barrier_word* barrier) {
    if (--barrier->missing) return;
    barrier->missing = barrier->arrivals;
    barrier->phase ^= 1;
}
DEVICE void wait_for(barrier_word* barrier, int parity) {
    while (barrier->phase == parity) swapcontext(&fibre_here->context, &scheduler);
}
DEVICE void copy_chunk(void* target, const void* source, int bytes, barrier_word* barrier) {
    memcpy(target, source, bytes);
    arrive(barrier);
}
DEVICE void copy_kept(void* target, const void* source, int bytes, barrier_word* barrier) { copy_chunk(target, source, bytes, barrier); }

DEVICE word word_from_lane(word value, int lane) { return of_lane(value, lane); }
DEVICE word add_lane_before(word value, int apart) {
    word other = word_from_lane(value, fibre_here->lane < apart ? 0 : fibre_here->lane - apart);
    return fibre_here->lane < apart ? value : value + other;
}
DEVICE word shift_pair(word low, word high, word bits) { return (word)(((uint64_t)high << 32 | low) >> bits % 32); }
DEVICE float from_lane_xor(float value, int mask) { return as_float(word_from_lane(as_word(value), fibre_here->lane ^ mask)); }
DEVICE word largest_in_warp(word value) {
    for (int mask = 16; mask; mask /= 2) {
        word other = word_from_lane(value, fibre_here->lane ^ mask);
        value = other > value ? other : value;
    }
    return value;
}

DEVICE void raise_shared(word* place, word value) { *place = value > *place ? value : *place; }
DEVICE int count_arrival(int* counter) { return (*counter)++; }
DEVICE void store_shared_sum(float* address, float value) { *address = value; }
DEVICE float load_shared_sum(const float* address) { return *address; }

DEVICE word add_fp16(word a, word b) { return multiply_add_fp16(a, 0x3C003C00u, b); }
DEVICE word multiply_two_fp16(word a, word b) { return multiply_add_fp16(a, b, 0x80008000u); }
template <int HALF>
DEVICE word multiply_by_half(word a, word pair) { return multiply_two_fp16(a, pick_bytes(pair, 0, HALF ? 0x3232u : 0x1010u)); }
DEVICE word add_upper_half(word a, word pair) { return add_fp16(a, pick_bytes(pair, 0, 0x3232u)); }

// sums[16 x 8] += a[16 x 32] b[32 x 8]: as `multiply_matrices`, each stored number at the place that the lanes of HALF name.
template <int HALF>
DEVICE void multiply_sparse(float (&c)[4], const word (&a)[4], const uint4& b, word places) {
    auto& words = fibre_here->warp->words;
    static std::map<Warp*, std::vector<word>> held;
    int lane = fibre_here->lane;
    std::vector<word>& named = held[fibre_here->warp];
    named.resize(32);
    named[lane] = places;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    words[lane][4] = b.x, words[lane][5] = b.y, words[lane][6] = b.z, words[lane][7] = b.w;
    synchronize_warp();
    for (int part = 0; part < 4; part++) {
        int row = lane / 4, half = part / 2, column = lane % 4 * 2 + part % 2;
        double sum = c[part];
        for (int stored = 0; stored < 16; stored++) {
            word x = words[row * 4 + stored % 8 / 2][half + stored / 8 * 2];
            word place = named[row * 4 + HALF * 2 + stored / 8] >> (half * 16 + stored % 8 * 2) & 3;
            int k = stored / 2 * 4 + (int)place;
            word y = words[column * 4 + k % 8 / 2][4 + k / 8];
#if ACTIVATION == 0
            sum += (double)of_bf16((half_word)(x >> stored % 2 * 16)) * of_bf16((half_word)(y >> k % 2 * 16));
#else
            sum += (double)from_fp16((half_word)(x >> stored % 2 * 16)) * from_fp16((half_word)(y >> k % 2 * 16));
#endif
        }
        c[part] = (float)sum;
    }
    synchronize_warp();
}
