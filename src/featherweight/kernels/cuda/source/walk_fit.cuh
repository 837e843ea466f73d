// The grid of a group of columns, by its extremes or by the search of `featherweight.grids.search`: every warp takes each fourth
// column of all rows.
#pragma once
#include "walk.cuh"

constexpr float SMALLEST_SCALE = SCALE == 0 ? 5.9604644775390625e-8f : 1.17549435082228750797e-38f;
constexpr float LARGEST_SCALE = SCALE == 0 ? 65504.0f : SCALE == 1 ? 3.38953138925153547590e38f : 3.40282346638528859812e38f;
constexpr int SHRINKS = 9, SIGNS = SYMMETRIC ? 2 : 1, REFITS = 2;
constexpr float STEP = 0.08f, SMALLEST_SHRINK = 0.05f;
constexpr int FINE_SHRINKS = 80, TRIED = 8;
constexpr float NORM = 2.4f, FINE_STEP = 0.01f;

// What a column stands at.
DEVICE float standing_at(const Parts& parts, int column) {
    float value = parts.original[column * ROWS + lane()] - parts.error[column * ROWS + lane()];
    return FITTED == 1 && DROPS > 0 && parts.dropped[column / 32 * ROWS + lane()] >> column % 32 & 1 ? 0.0f : value;
}

DEVICE float stored(float scale) {
    float size = between(fabsf(scale), SMALLEST_SCALE, LARGEST_SCALE);
    size = SCALE == 0 ? from_fp16(to_fp16(size)) : SCALE == 1 ? from_bf16(to_bf16(size)) : size;
    return scale < 0 ? -size : size;
}

DEVICE Grid with_scale(float scale, float low) {
    Grid grid;
    scale = stored(scale);
    grid.set(scale, SYMMETRIC ? (LARGEST + 1) / 2 : nearest(between(-low / scale, 0, LARGEST)));
    return grid;
}

struct Best {
    float error = as_float(0x7F800000u), mark = 1;
    Grid grid;
};

// The best of some grids where it is strictly better than the best so far.
template <int COUNT>
DEVICE void offer(const Parts& parts, int begin, int end, const Grid (&grids)[COUNT], const float (&marks)[COUNT], Best& best) {
    float errors[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) errors[i] = 0;
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = standing_at(parts, column), weigh = parts.importance[column];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float level = nearest(between(value * grids[i].inverse, -grids[i].zero, LARGEST - grids[i].zero));
            float away = fmaf(level, grids[i].scale, -value);
            errors[i] = FIT == 3 ? errors[i] + exp2f(NORM * log2f(fabsf(away))) : fmaf(weigh * away, away, errors[i]);
        }
    }
    combine(parts, errors, sum_of);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (errors[i] < best.error) best.error = errors[i], best.mark = marks[i], best.grid = grids[i];
}

// One end moved around where both are best, then the other.
DEVICE void move_ends(const Parts& parts, int begin, int end, float low, float high, Best& best) {
    float both = best.mark;
    for (int side = 0; side < 2; side++) {
        Grid grids[4];
        float marks[4], other = side == 0 ? both : best.mark;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float moved = between(both + STEP * (i < 2 ? i - 2 : i - 1), SMALLEST_SHRINK, 1);
            float bottom = (side == 0 ? moved : other) * low, top = (side == 0 ? other : moved) * high;
            grids[i] = with_scale((top - bottom) / LARGEST, bottom);
            marks[i] = side == 0 ? moved : other;
        }
        offer(parts, begin, end, grids, marks, best);
    }
}

// The scale that suits the present codes best.
DEVICE void refit(const Parts& parts, int begin, int end, Best& best) {
    float sums[2] = {0, 0};
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = standing_at(parts, column), weigh = parts.importance[column];
        float level = nearest(between(value * best.grid.inverse, -best.grid.zero, LARGEST - best.grid.zero));
        sums[0] = fmaf(weigh * level, value, sums[0]), sums[1] = fmaf(weigh * level, level, sums[1]);
    }
    combine(parts, sums, sum_of);
    Grid grids[1];
    float marks[1] = {best.mark}, scale = sums[1] > 0 && sums[0] != 0 ? sums[0] / sums[1] : best.grid.scale;
    grids[0].set(stored(scale), best.grid.zero);
    offer(parts, begin, end, grids, marks, best);
}

// `search_mse`: both ends shrink alike.
DEVICE Grid search_fine(const Parts& parts, int begin, int end, float low, float high) {
    Best best;
    for (int tried = 0; tried < FINE_SHRINKS; tried += TRIED) {
        Grid grids[TRIED];
        float marks[TRIED];
#pragma unroll
        for (int i = 0; i < TRIED; i++) {
            marks[i] = 1 - FINE_STEP * (tried + i);
            grids[i] = with_scale((marks[i] * high - marks[i] * low) / LARGEST, marks[i] * low);
        }
        offer(parts, begin, end, grids, marks, best);
    }
    return best.grid;
}

DEVICE Grid fit(const Parts& parts, int begin, int end) {
    float low[1] = {0}, high[1] = {0};
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = standing_at(parts, column);
        low[0] = fminf(low[0], value), high[0] = fmaxf(high[0], value);
    }
    combine(parts, low, smaller);
    combine(parts, high, larger);
    if (SYMMETRIC) high[0] = fmaxf(-low[0], high[0]), low[0] = low[0] < 0 ? -high[0] : low[0];
    if (low[0] == 0 && high[0] == 0) low[0] = -1, high[0] = 1;
    float width = (high[0] - low[0]) / LARGEST;
    if (FIT == 1) return with_scale(width, low[0]);
    if (FIT == 3) return search_fine(parts, begin, end, low[0], high[0]);
    Grid grids[SHRINKS * SIGNS];
    float marks[SHRINKS * SIGNS];
#pragma unroll
    for (int i = 0; i < SHRINKS * SIGNS; i++) {
        float shrink = (1 - STEP * (i % SHRINKS)) * (i < SHRINKS ? 1 : -1);
        grids[i] = with_scale(shrink * width, shrink * low[0]), marks[i] = shrink;
    }
    Best best;
    offer(parts, begin, end, grids, marks, best);
    if (!SYMMETRIC) move_ends(parts, begin, end, low[0], high[0], best);
    for (int round = 0; round < REFITS; round++) refit(parts, begin, end, best);
    return best.grid;
}
