// One block of columns of the walk: its groups fitted on their weights as they stand, its columns decided one after the other,
// each corrected by the errors of those before it. A lane has a row; of a few columns at a time, four warps add up what earlier
// ones of the block are off, each for a share of them, then the first warp decides them in its registers.
//
// Fixed when compiled: TILE (rows of a block of threads), SUB (columns at a time, 16 or 32), ROUND (0 to a grid, 1 bf16, 2 fp16, 3 fp32), FIT (0 scales are given or
// there is no grid, 1 by the extremes, 2 weighted, 3 by mse; two-level grids with real zeros 4 by the extremes, 5 weighted), SCATTERED (1: scales are given, and every column names its group), SYMMETRIC, LARGEST (code), SCALE (of stored scales: 0 fp16, 1 bf16, 2 fp32),
// DROPS (0 nothing, 1 what is given, 2 all but KEEP of every OF, 3 the smallest by rank), FITTED (grids are fitted on 0 all
// weights, 1 on those kept, 2 on those kept once they make up for what goes), SCORES (1: only write what dropping each costs),
// OUTLIERS (1: weights whose rounding costs too much are kept beside their codes), NARROW (their residuals are float8_e5m2).
#include "walk.cuh"
#if FIT > 3
#include "walk_two_level.cuh"
#elif FIT > 0
#include "walk_fit.cuh"
#endif
#include "walk_select.cuh"

// What the errors of the columns before them make of SUB columns, to `value`; all warps.
DEVICE void correct(const Parts& parts, int start) {
    const float* feedback = parts.feedback + offset(start / SUB) + warp() * SHARE;
    float sum[SHARE];
#pragma unroll
    for (int k = 0; k < SHARE; k++) sum[k] = parts.target[(start + warp() * SHARE + k) * ROWS + lane()];
#pragma unroll 8
    for (int i = 0; i < start; i++) {
        float error = parts.error[i * ROWS + lane()];
#pragma unroll
        for (int k = 0; k < SHARE; k += 4) {
            float4 four = *(const float4*)(feedback + i * SUB + k);
            sum[k] = fmaf(four.x, error, sum[k]), sum[k + 1] = fmaf(four.y, error, sum[k + 1]);
            sum[k + 2] = fmaf(four.z, error, sum[k + 2]), sum[k + 3] = fmaf(four.w, error, sum[k + 3]);
        }
    }
#pragma unroll
    for (int k = 0; k < SHARE; k++) parts.value[(warp() * SHARE + k) * ROWS + lane()] = sum[k];
}

// The columns one after the other; without DECIDE they are dropped or left as they come, which shows where they stand. Shared
// memory is written at the end only, so that what is read of it can be asked for early.
template <bool DECIDE, bool MASKED>
DEVICE float step_through(const Arguments& given, const Parts& parts, int start, Grid grid) {
    const float* feedback = parts.feedback + offset(start / SUB) + start * SUB;
    word* dropped = parts.dropped + start / 32 * ROWS + lane();
    word bits = MASKED ? *dropped >> start % 32 : 0;
    float value[SUB], weight[SUB], code[SUB], cost = 0;  // `value` becomes the error, `weight` what it is decoded to
#if OUTLIERS
    half_word residual[SUB];
    bool kept[SUB];
#endif
#pragma unroll
    for (int k = 0; k < SUB; k++) value[k] = parts.value[k * ROWS + lane()], weight[k] = parts.original[(start + k) * ROWS + lane()];
#pragma unroll
    for (int k = 0; k < SUB; k++) {
#if DROPS == 2
        if (DECIDE && k % OF == 0) bits |= least_of(stand(value, weight, feedback, k), parts.importance + start + k) << k;
#endif
        bool gone = bits >> k & 1;
        float decoded = gone ? 0.0f : value[k];
        if (DECIDE) {
#if SCATTERED
            grid.scale = parts.grids[k * ROWS + lane()], grid.inverse = parts.grids[(SUB + k) * ROWS + lane()];
            grid.zero = parts.grids[(2 * SUB + k) * ROWS + lane()];
#endif
            decoded = decide(value[k], grid, gone, code[k]);
#if OUTLIERS
            decoded = keep(given, value[k], decoded, grid, parts.importance[start + k], code[k], residual[k], kept[k]);
#endif
            float off = value[k] - decoded;
            cost = fmaf(parts.importance[start + k] * off, off, cost);
        }
        float error = weight[k] - decoded;
        value[k] = error, weight[k] = decoded;
#pragma unroll
        for (int m = k / 4 * 4; m < SUB; m += 4) {
            if (m + 3 <= k) continue;
            float4 four = *(const float4*)(feedback + k * SUB + m);
            if (m > k) value[m] = fmaf(four.x, error, value[m]);
            if (m + 1 > k) value[m + 1] = fmaf(four.y, error, value[m + 1]);
            if (m + 2 > k) value[m + 2] = fmaf(four.z, error, value[m + 2]);
            if (m + 3 > k) value[m + 3] = fmaf(four.w, error, value[m + 3]);
        }
    }
#pragma unroll
    for (int k = 0; k < SUB; k++) {
        int place = (start + k) * ROWS + lane();
        parts.error[place] = value[k];
        if (DECIDE) parts.original[place] = weight[k];
        if (DECIDE && ROUND == 0) parts.target[place] = code[k];
#if OUTLIERS
        long row = (long)blockIdx.x * ROWS + lane(), stored = (given.first + start + k) * (long)given.rows + row;
        if (DECIDE && row < given.rows && start + k < given.columns) given.residual[stored] = residual[k], given.dropped[stored] = kept[k];
#endif
    }
    if (DECIDE && DROPS == 2) *dropped |= bits << start % 32;
    return cost;
}

// The grids of SUB columns, where neighbours are not of one group; all warps.
DEVICE void load_grids(const Arguments& given, const Parts& parts, int start) {
    long row = (long)blockIdx.x * ROWS + lane();
#pragma unroll
    for (int k = 0; k < SHARE; k++) {
        int column = start + warp() * SHARE + k;
        bool there = column < given.columns && row < given.rows;
        long place = there ? given.group_index[given.first + column] * (long)given.rows + row : 0;
        Grid grid;
        grid.set(there ? given.scale[place] : 1.0f, there ? given.zero[place] : 0.0f);
        parts.grids[(warp() * SHARE + k) * ROWS + lane()] = grid.scale;
        parts.grids[(SUB + warp() * SHARE + k) * ROWS + lane()] = grid.inverse;
        parts.grids[(2 * SUB + warp() * SHARE + k) * ROWS + lane()] = grid.zero;
    }
}

template <bool DECIDE, bool MASKED>
DEVICE float walk_through(const Arguments& given, const Parts& parts, int begin, int end, Grid grid) {
    float cost = 0;
    for (int start = begin; start < end; start += SUB) {
        if (SCATTERED) load_grids(given, parts, start);
        correct(parts, start);
        synchronize_block();
        if (warp() == 0) cost += step_through<DECIDE, MASKED>(given, parts, start, grid);
        synchronize_block();
    }
    return cost;
}

// The grid of a group; its columns are walked without rounding first.
DEVICE Grid fit_group(const Arguments& given, const Parts& parts, int begin, int end, int group) {
#if FIT > 0
    constexpr bool MADE_UP = FITTED == 2 && DROPS > 0;
    walk_through<false, MADE_UP && DROPS != 2>(given, parts, begin, end, Grid());
#if DROPS == 2
    if (FITTED > 0) {
        select_standing(parts, begin, end);
        synchronize_block();
        if (MADE_UP) walk_through<false, true>(given, parts, begin, end, Grid());
    }
#endif
#if FIT > 3
    Grid grid = fit_two_level(given, parts, begin, end, group);
#else
    Grid grid = fit(parts, begin, end);
#endif
#if DROPS == 2
    if (FITTED > 0) clear_selection(parts, begin, end);
#endif
    synchronize_block();
    return grid;
#else
    return Grid();
#endif
}

DEVICE void write(const Arguments& given, const Parts& parts) {
    long row = (long)blockIdx.x * ROWS + lane(), count = given.columns;
    if (row >= given.rows) return;
    for (int column = warp(); column < given.columns; column += WARPS) {
        long place = (given.first + column) * (long)given.rows + row, inside = (long)column * given.rows + row;
        float error = parts.error[column * ROWS + lane()];
        half_word high = to_bf16(error);
        given.target[place] = parts.original[column * ROWS + lane()];
        given.halves[inside] = given.halves[count * given.rows + inside] = high;
        given.halves[2 * count * given.rows + inside] = to_bf16(error - from_bf16(high));
        if (ROUND == 0) given.codes[place] = (unsigned char)parts.target[column * ROWS + lane()];
        if (DROPS > 1) given.dropped[place] = parts.dropped[column / 32 * ROWS + lane()] >> column % 32 & 1;
    }
}

KERNEL void __launch_bounds__(THREADS) walk(Arguments given) {
    SHARED_MEMORY(shared);
    Parts parts(shared);
    release_dependents();
    load_feedback(given, parts);
    wait_for_inputs();
    load_columns(given, parts);
    load_dropped(given, parts);
    finish_copies();
    synchronize_block();
#if SCORES
    walk_through<false, false>(given, parts, 0, given.columns, Grid());
    write_scores(given, parts);
#else
    long row = (long)blockIdx.x * ROWS + lane();
    float cost = 0;
    for (int begin = 0, group = given.group; begin < given.columns; begin += given.size, group++) {
        int end = begin + given.size < given.columns ? begin + given.size : given.columns;
        long place = (long)group * given.rows + row;
        Grid grid = fit_group(given, parts, begin, end, group);
        if (ROUND == 0 && row < given.rows) {
            if (FIT == 0 && !SCATTERED) grid.set(given.scale[place], given.zero[place]);
            if (FIT > 0 && warp() == 0) given.scale[place] = grid.scale, given.zero[place] = grid.zero;
        }
        cost += walk_through<true, DROPS == 1 || DROPS == 3>(given, parts, begin, end, grid);
    }
    write(given, parts);
    if (warp() == 0 && row < given.rows) given.loss[row] += cost;
#endif
}
EXPORT(walk)
