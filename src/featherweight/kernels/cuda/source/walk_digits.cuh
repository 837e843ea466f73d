// The k-th smallest of many scores, which are not negative, by their bits: digits of 11, 10 and 10, each counted in a launch.
#pragma once
#include "walk.cuh"

constexpr int FIRST_DIGITS = 2048, NEXT_DIGITS = 1024, DIGITS = FIRST_DIGITS + 2 * NEXT_DIGITS;

#ifdef EMULATED
DEVICE void add_global(int* sum, int value) { *sum += value; }
DEVICE int bits_set(word value) { return __builtin_popcount(value); }
#else
DEVICE void add_global(int* sum, int value) { atomicAdd(sum, value); }
DEVICE int bits_set(word value) { return __popc(value); }
#endif

struct Digit { int digit, rank, count; };  // with as many below it as leave `rank`, counted from 1, among its `count`

// The digit in which the rank-th smallest lies; all threads.
template <int COUNT>
DEVICE Digit find_digit(const int* counts, int rank, int* scratch) {
    constexpr int EACH = COUNT / THREADS;
    int own[EACH], sum = 0, before = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) own[i] = counts[threadIdx.x * EACH + i], sum += own[i];
    scratch[threadIdx.x] = sum;
    synchronize_block();
#pragma unroll 16
    for (int i = 0; i < THREADS; i++) before += i < (int)threadIdx.x ? scratch[i] : 0;
    if (before < rank && rank <= before + sum) {
        bool found = false;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (!found && rank <= before + own[i]) {
                scratch[THREADS] = threadIdx.x * EACH + i, scratch[THREADS + 1] = rank - before, scratch[THREADS + 2] = own[i];
                found = true;
            }
            before += own[i];
        }
    }
    synchronize_block();
    Digit result = {scratch[THREADS], scratch[THREADS + 1], scratch[THREADS + 2]};
    synchronize_block();
    return result;
}

// What the first digits of the threshold are, and the rank that is left.
template <int KNOWN>
DEVICE Digit find_prefix(const Arguments& given, int* scratch) {
    const int* counts = given.counts + given.linear[blockIdx.x * 3] * DIGITS;
    Digit found = find_digit<FIRST_DIGITS>(counts, given.linear[blockIdx.x * 3 + 2], scratch);
    for (int known = 1; known < KNOWN; known++) {
        Digit next = find_digit<NEXT_DIGITS>(counts + FIRST_DIGITS + (known - 1) * NEXT_DIGITS, found.rank, scratch);
        found = {found.digit << 10 | next.digit, next.rank, next.count};
    }
    return found;
}

struct Found { word threshold; int missing, equal, before; };  // of the `equal` ones those missing go, `before` are above this tile

DEVICE Found find_threshold(const Arguments& given, int* scratch) {
    Digit last = find_prefix<3>(given, scratch);
    int before = 0;
    if (last.rank != last.count) {
        for (int tile = given.linear[blockIdx.x * 3 + 1] + threadIdx.x; tile < (int)blockIdx.x; tile += THREADS)
            before += given.tile_counts[tile * NEXT_DIGITS + last.digit % NEXT_DIGITS];
        scratch[threadIdx.x] = before;
        synchronize_block();
        before = 0;
        for (int i = 0; i < THREADS; i++) before += scratch[i];
        synchronize_block();
    }
    return {(word)last.digit, last.rank, last.count, before};
}

// Of set bits the first `wanted`, row after row of the tile.
DEVICE word first_of(word set, int wanted, int* scratch) {
    scratch[warp() * ROWS + lane()] = bits_set(set);
    synchronize_block();
    for (int i = 0; i < THREADS; i++) {
        int row = i % ROWS, part = i / ROWS;
        wanted -= row < lane() || (row == lane() && part < warp()) ? scratch[i] : 0;
    }
    word taken = 0;
    for (int i = 0; i < 32 && wanted > 0; i++)
        if (set >> i & 1) taken |= 1u << i, wanted--;
    synchronize_block();
    return taken;
}
