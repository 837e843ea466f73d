// Parts of walk.cu: what a block holds, its loads, and the rounding of one value.
#pragma once
#include "instructions.cuh"

// A "warp" is ROWS threads, one for each row of the tile: that many hardware warps more than one where rows share a second grid.
constexpr int ROWS = TILE, WARPS = 4, THREADS = ROWS * WARPS, MOST = 128, SHARE = SUB / WARPS;

struct Arguments {
    float* target;             // [in][rows] in walked order, as are the others unless said
    const float* original;
    const float* feedback;     // [in][in]
    const float* importance;   // [in]
    float* scale;              // [groups][rows]
    float* zero;
    unsigned char* codes;
    half_word* halves;         // [3][columns][rows]: errors as sums of two, the upper half twice
    float* loss;               // [rows]
    unsigned char* dropped;
    float* scores;             // [columns][rows]
    int* counts;               // [linears][4096] of digits of scores
    int* tile_counts;          // [tiles][1024] of the last digit
    const int* group_index;    // [in]: of every column, where groups are not runs of columns
    const int* linear;         // [tiles]: the linear of every 32 rows, its first tile, and how many of its weights go here
    unsigned char* scale_codes; // [groups][rows], of two-level grids
    unsigned char* zero_codes;
    half_word* scale_grids;    // [groups][second groups][2] fp16
    half_word* zero_grids;
    half_word* residual;       // fp16, of every weight; which are kept is written to `dropped`
    int inputs, rows, first, columns, group, size;
    float gain, threshold;     // beyond which a value is left out of a fit, or kept
};

// The lower half of a square of sub-blocks is not there: of sub-block s all rows down to its own.
DEVICE constexpr int offset(int sub) { return SUB * SUB * sub * (sub + 1) / 2; }
DEVICE int warp() { return threadIdx.x / ROWS; }
DEVICE int lane() { return threadIdx.x % ROWS; }

struct Parts {
    float *feedback, *target, *original, *error, *value, *importance;
    word* dropped;  // [4][ROWS], a bit for every column
    float* grids;   // [3][SUB][ROWS], where every column has its own
    DEVICE Parts(unsigned char* shared) {
        feedback = (float*)shared;
        target = feedback + offset(MOST / SUB);
        original = target + MOST * ROWS;
        error = original + MOST * ROWS;
        importance = error + MOST * ROWS;
        dropped = (word*)(importance + MOST);
        grids = (float*)(dropped + 4 * ROWS);
        value = grids + (SCATTERED ? 3 * SUB * ROWS : 0);  // the last: as much as is asked for
    }
};

DEVICE void load_feedback(const Arguments& given, const Parts& parts) {
    for (int sub = 0; sub < MOST / SUB && sub * SUB < given.columns; sub++)
        for (int at = threadIdx.x; at < SUB * (sub + 1) * (SUB / 4); at += THREADS) {
            int row = at / (SUB / 4), column = sub * SUB + at % (SUB / 4) * 4;
            bool there = row < given.columns && column < given.columns;
            const float* from = given.feedback + (given.first + (there ? row : 0)) * (long)given.inputs + given.first + (there ? column : 0);
            copy_to_shared(parts.feedback + offset(sub) + at * 4, from, there);
        }
}

DEVICE void load_columns(const Arguments& given, const Parts& parts) {
    long row = (long)blockIdx.x * ROWS + lane();
    float target[MOST / WARPS], original[MOST / WARPS];  // all asked for before the first is needed
#pragma unroll
    for (int i = 0; i < MOST / WARPS; i++) {
        int column = warp() + i * WARPS;
        bool there = column < given.columns && row < given.rows;
        long place = there ? (given.first + column) * (long)given.rows + row : 0;
        target[i] = there ? given.target[place] : 0.0f, original[i] = there ? given.original[place] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < MOST / WARPS; i++) {
        int place = (warp() + i * WARPS) * ROWS + lane();
        parts.target[place] = target[i], parts.original[place] = original[i];
    }
    if (threadIdx.x < MOST) parts.importance[threadIdx.x] = threadIdx.x < given.columns ? given.importance[given.first + threadIdx.x] : 0.0f;
}

// What values are divided by: scales that were stored by codes may be 0.
constexpr float SMALLEST_DIVISOR = 1e-9f;
DEVICE float divisor_of(float scale) { return FIT > 3 ? fmaxf(scale, SMALLEST_DIVISOR) : scale; }

struct Grid {
    float scale = 1, inverse = 1, zero = 0;
    DEVICE void set(float s, float z) { scale = s, inverse = 1.0f / divisor_of(s), zero = z; }
};

// The nearest integer, ties to even, below 2^22.
DEVICE float nearest(float value) { return (value + 12582912.0f) - 12582912.0f; }
DEVICE float between(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

// The level of a value, counted from the zero point; the quotient is right to the last bit but for rare ties.
DEVICE float level_of(float value, const Grid& grid) {
    float quotient = value * grid.inverse;
    quotient = fmaf(fmaf(-quotient, divisor_of(grid.scale), value), grid.inverse, quotient);
    if (FIT > 3) return nearest(between(quotient + grid.zero, 0, LARGEST)) - grid.zero;
    return nearest(between(quotient, -grid.zero, LARGEST - grid.zero));
}

DEVICE float decide(float value, const Grid& grid, bool gone, float& code) {
#if ROUND == 0
    float level = gone ? 0.0f : level_of(value, grid);
    code = level + grid.zero;
    return level * grid.scale;
#else
    if (gone) return 0.0f;
    return ROUND == 1 ? from_bf16(to_bf16(value)) : ROUND == 2 ? from_fp16(to_fp16(value)) : value;
#endif
}

#if OUTLIERS
// A weight whose rounding costs too much: the level of 0, and the residual; NARROW ones are float8_e5m2, the upper half of fp16.
DEVICE float keep(const Arguments& given, float value, float decoded, const Grid& grid, float importance, float& code, half_word& residual, bool& kept) {
    constexpr float LIMIT = NARROW ? 57344.0f : 65504.0f;
    float of_zero = nearest(between(grid.zero, 0, LARGEST)), dense = fmaf(of_zero - grid.zero, grid.scale, 0.0f);  // as it is stored
    residual = to_fp16(between(value - dense, -LIMIT, LIMIT));
    if (NARROW) residual = (half_word)((residual + 0x7F + (residual >> 8 & 1)) & 0xFF00);
    kept = importance * (value - decoded) * (value - decoded) > given.threshold;
    if (kept) code = of_zero;
    return kept ? dense + from_fp16(residual) : decoded;
}
#endif

// Over all warps, in one order.
template <int COUNT, class Combine>
DEVICE void combine(const Parts& parts, float (&value)[COUNT], Combine two) {
    synchronize_block();
#pragma unroll
    for (int i = 0; i < COUNT; i++) parts.value[(warp() * COUNT + i) * ROWS + lane()] = value[i];
    synchronize_block();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        value[i] = parts.value[i * ROWS + lane()];
        for (int other = 1; other < WARPS; other++) value[i] = two(value[i], parts.value[(other * COUNT + i) * ROWS + lane()]);
    }
}

DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float sum_of(float a, float b) { return a + b; }
