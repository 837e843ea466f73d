// How often each second (DIGIT 1) or third digit (2) occurs among the scores whose digits before are those of the threshold.
#define TILE 32
#define SUB 32
#define ROUND 3
#define FIT 0
#define OUTLIERS 0
#define SCATTERED 0
#define LARGEST 0
#include "walk_digits.cuh"

KERNEL void __launch_bounds__(THREADS) walk_count(Arguments given) {
    SHARED_MEMORY(shared);
    int* counts = (int*)shared;
    release_dependents();
    for (int at = threadIdx.x; at < NEXT_DIGITS; at += THREADS) counts[at] = 0;
    wait_for_inputs();
    word prefix = find_prefix<DIGIT>(given, counts + NEXT_DIGITS).digit;
    long row = (long)blockIdx.x * ROWS + lane();
#pragma unroll 16
    for (int column = warp(); column < given.columns && row < given.rows; column += WARPS) {
        word score = as_word(given.scores[(long)column * given.rows + row]);
        if (score >> (DIGIT == 1 ? 20 : 10) == prefix) add_shared(counts + (DIGIT == 1 ? score >> 10 : score) % NEXT_DIGITS, 1);
    }
    synchronize_block();
    int* all = given.counts + given.linear[blockIdx.x * 3] * DIGITS + FIRST_DIGITS + (DIGIT - 1) * NEXT_DIGITS;
    for (int at = threadIdx.x; at < NEXT_DIGITS; at += THREADS) {
        if (counts[at]) add_global(all + at, counts[at]);
        if (DIGIT == 2) given.tile_counts[blockIdx.x * NEXT_DIGITS + at] = counts[at];
    }
}
EXPORT(walk_count)
