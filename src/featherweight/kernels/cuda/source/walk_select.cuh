// What goes in walk.cu: N:M of some columns, or what costs least of all rows of a linear, exactly as many as asked for.
#pragma once
#include "walk_digits.cuh"

#if DROPS == 2
struct Columns { float value[OF]; };

// Where OF columns stand, from their values with all errors before them.
DEVICE Columns stand(const float (&value)[SUB], const float (&weight)[SUB], const float* feedback, int first) {
    Columns columns;
#pragma unroll
    for (int i = 0; i < OF; i++) columns.value[i] = value[first + i];
#pragma unroll
    for (int i = 0; i < OF; i++)
#pragma unroll
        for (int m = i + 1; m < OF; m++)
            columns.value[m] = fmaf(feedback[(first + i) * SUB + first + m], weight[first + i] - columns.value[i], columns.value[m]);
    return columns;
}

// A bit for each of the OF − KEEP that cost least; of equal ones the first.
DEVICE word least_of(const Columns& columns, const float* importance) {
    float cost[OF];
    word bits = 0;
#pragma unroll
    for (int i = 0; i < OF; i++) cost[i] = columns.value[i] * columns.value[i] * importance[i];
#pragma unroll
    for (int i = 0; i < OF; i++) {
        int below = 0;
#pragma unroll
        for (int m = 0; m < OF; m++) below += m < i ? cost[m] <= cost[i] : m > i ? cost[m] < cost[i] : false;
        bits |= (word)(below < OF - KEEP) << i;
    }
    return bits;
}

// What would go of columns as they stand now; the warp of each 32 columns.
DEVICE void select_standing(const Parts& parts, int begin, int end) {
    word bits = 0;
    for (int column = warp() * 32; column < warp() * 32 + 32; column += OF) {
        if (column < begin || column >= end) continue;
        Columns standing;
#pragma unroll
        for (int i = 0; i < OF; i++) {
            int place = (column + i) * ROWS + lane();
            standing.value[i] = parts.original[place] - parts.error[place];
        }
        bits |= least_of(standing, parts.importance + column) << column % 32;
    }
    parts.dropped[warp() * ROWS + lane()] |= bits;
}

DEVICE void clear_selection(const Parts& parts, int begin, int end) {
    for (int column = warp() * 32; column < warp() * 32 + 32; column++)
        if (column >= begin && column < end) parts.dropped[warp() * ROWS + lane()] &= ~(1u << column % 32);
}
#endif

#if SCORES
// `value² · importance` of all columns as they stand, and how often each first digit occurs.
DEVICE void write_scores(const Arguments& given, const Parts& parts) {
    int* counts = (int*)parts.value;
    for (int at = threadIdx.x; at < FIRST_DIGITS; at += THREADS) counts[at] = 0;
    synchronize_block();
    long row = (long)blockIdx.x * ROWS + lane();
    for (int column = warp(); column < given.columns && row < given.rows; column += WARPS) {
        float value = parts.original[column * ROWS + lane()] - parts.error[column * ROWS + lane()];
        float score = value * value * parts.importance[column];
        given.scores[(long)column * given.rows + row] = score;
        add_shared(counts + (as_word(score) >> 20) % FIRST_DIGITS, 1);
    }
    synchronize_block();
    int* all = given.counts + given.linear[blockIdx.x * 3] * DIGITS;
    for (int at = threadIdx.x; at < FIRST_DIGITS; at += THREADS)
        if (counts[at]) add_global(all + at, counts[at]);
}
#endif

DEVICE void load_dropped(const Arguments& given, const Parts& parts) {
    long row = (long)blockIdx.x * ROWS + lane();
    word bits = 0;
#if DROPS == 1
#pragma unroll 8
    for (int i = 0; i < 32; i++) {
        int column = warp() * 32 + i;
        if (column < given.columns && row < given.rows) bits |= (word)(given.dropped[(given.first + column) * (long)given.rows + row] != 0) << i;
    }
#elif DROPS == 3
    Found found = find_threshold(given, (int*)parts.value);
    word equal = 0;
#pragma unroll 8
    for (int i = 0; i < 32; i++) {
        int column = warp() * 32 + i;
        if (column >= given.columns || row >= given.rows) continue;
        word score = as_word(given.scores[(long)column * given.rows + row]);
        bits |= (word)(score < found.threshold) << i, equal |= (word)(score == found.threshold) << i;
    }
    if (found.equal == found.missing) bits |= equal;
    else bits |= first_of(equal, found.missing - found.before, (int*)parts.value);
#endif
    parts.dropped[warp() * ROWS + lane()] = bits;
}
