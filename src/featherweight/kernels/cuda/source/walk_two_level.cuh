// The two-level grid of a group of columns, by its extremes or by the searches of `featherweight.grids.two_level_search`, with likely
// outliers left out of the fit: as kernels/triton/sweep_two_level.py. Every warp takes each fourth column of all rows.
//
// Fixed when compiled: FIT (4 by the extremes, 5 weighted), LEAVES_OUT, SECOND (rows that share a second grid, at most ROWS),
// SCALE_LEVELS, ZERO_LEVELS (largest code of a scale, of a zero).
#pragma once
#include "walk.cuh"

constexpr int SHRINKS = 9, REFITS = 4, NEAR = 2, CODES = 2 * NEAR + 1;
constexpr float STEP = 0.075f, SMALLEST_SPREAD = 0.0009765625f;

// What a column of the group stands at, or what it is taken to be.
DEVICE float& at(const Parts& parts, int column) { return parts.error[column * ROWS + lane()]; }

struct Ends { float low, high; };

DEVICE Ends ends_of(const Parts& parts, int begin, int end) {
    Ends ends = {at(parts, begin), at(parts, begin)};
    for (int column = begin + 1; column < end; column++)
        ends.low = fminf(ends.low, at(parts, column)), ends.high = fmaxf(ends.high, at(parts, column));
    return ends;
}

// `TwoLevelGrid.between` with a real zero.
DEVICE Grid spanned(float low, float high) {
    if (low == high) low = fminf(low, 0), high = fmaxf(high, 0);
    float scale = fmaxf((high - low) / LARGEST, SMALLEST_DIVISOR);
    Grid grid;
    grid.set(scale, -low / scale);
    return grid;
}

// The code of the level next to a value, but for ties.
DEVICE float near_code(float value, const Grid& grid) { return nearest(between(fmaf(value, grid.inverse, grid.zero), 0, LARGEST)); }
DEVICE float squared_error(float value, const Grid& grid) {
    float away = (near_code(value, grid) - grid.zero) * grid.scale - value;
    return away * away;
}

// Values that gain more than given by being left out of the fit become the mean of the others in their row.
DEVICE void leave_out(const Arguments& given, const Parts& parts, int begin, int end) {
    float infinite = as_float(0x7F800000u), low = infinite, high = -infinite, next_low = infinite, next_high = -infinite;
    int at_low = begin, at_high = begin;
    for (int column = begin; column < end; column++) {
        float value = at(parts, column);
        next_low = value < low ? low : fminf(next_low, value), next_high = value > high ? high : fmaxf(next_high, value);
        at_low = value < low ? column : at_low, at_high = value > high ? column : at_high;
        low = fminf(low, value), high = fmaxf(high, value);
    }
    Grid own = spanned(low, high), above = spanned(next_low, high), below = spanned(low, next_high);
    float sums[3] = {0, 0, 0}, kept[2] = {0, 0};
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = at(parts, column), weigh = parts.importance[column];
        sums[0] += weigh * squared_error(value, own);
        if (column != at_low) sums[1] += weigh * squared_error(value, above);
        if (column != at_high) sums[2] += weigh * squared_error(value, below);
    }
    combine(parts, sums, sum_of);
    word likely = 0, bit = 1;
    for (int column = begin + warp(); column < end; column += WARPS, bit <<= 1) {
        float value = at(parts, column), gain = parts.importance[column] * squared_error(value, own);
        gain = column == at_high ? sums[0] - sums[2] : column == at_low ? sums[0] - sums[1] : gain;
        if (gain > given.gain) likely |= bit;
        else kept[0] += 1, kept[1] += value;
    }
    combine(parts, kept, sum_of);
    float mean = kept[1] / fmaxf(kept[0], 1);
    for (int column = begin + warp(); column < end; column += WARPS, likely >>= 1)
        if (likely & 1) at(parts, column) = mean;
    synchronize_block();
}

struct Best {
    float error = as_float(0x7F800000u);
    Grid grid;
};

// The best of some grids where it is strictly better than the best so far.
template <int COUNT>
DEVICE void offer(const Parts& parts, int begin, int end, const Grid (&grids)[COUNT], Best& best) {
    float errors[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) errors[i] = 0;
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = at(parts, column), weigh = parts.importance[column];
#pragma unroll
        for (int i = 0; i < COUNT; i++) errors[i] = fmaf(weigh, squared_error(value, grids[i]), errors[i]);
    }
    combine(parts, errors, sum_of);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (errors[i] < best.error) best.error = errors[i], best.grid = grids[i];
}

// `search_first_level`: ranges that shrink around their middle, then lines through the pairs of code and value.
DEVICE Grid search_range(const Parts& parts, int begin, int end, Ends ends) {
    float middle = (ends.low + ends.high) / 2, means[2] = {0, 0};
    Grid grids[SHRINKS], one[1];
#pragma unroll
    for (int i = 0; i < SHRINKS; i++) {
        float shrink = 1 - STEP * i;
        grids[i] = spanned(middle + (ends.low - middle) * shrink, middle + (ends.high - middle) * shrink);
    }
    Best best;
    offer(parts, begin, end, grids, best);
    for (int column = begin + warp(); column < end; column += WARPS)
        means[0] += parts.importance[column], means[1] += parts.importance[column] * at(parts, column);
    combine(parts, means, sum_of);
    float whole = fmaxf(means[0], 1.17549435082228750797e-38f), centre = means[1] / whole;
    for (int round = 0; round < REFITS; round++) {
        float sums[3] = {0, 0, 0};
        for (int column = begin + warp(); column < end; column += WARPS) {
            float code = near_code(at(parts, column), best.grid), weighed = parts.importance[column] * code;
            sums[0] += weighed, sums[1] = fmaf(weighed, at(parts, column) - centre, sums[1]), sums[2] = fmaf(weighed, code, sums[2]);
        }
        combine(parts, sums, sum_of);
        float mean = sums[0] / whole, below = sums[2] - mean * sums[0];
        bool usable = below > 0 && sums[1] > 0;
        float scale = usable ? sums[1] / below : best.grid.scale;
        one[0].set(scale, usable ? mean - centre / scale : best.grid.zero);
        offer(parts, begin, end, one, best);
    }
    return best.grid;
}

// A second grid, and a number as a code of it.
struct Second {
    float unit, zero, code;
    DEVICE float decoded(float code) const { return (code - zero) * unit; }
};

// `TwoLevelGrid._store` of a number of every row; all warps.
DEVICE Second store(const Arguments& given, const Parts& parts, float value, float levels, half_word* grids) {
    int first = lane() / SECOND * SECOND;
    long row = (long)blockIdx.x * ROWS + lane(), last = given.rows - (long)blockIdx.x * ROWS;
    synchronize_block();
    if (warp() == 0) parts.value[lane()] = value;
    synchronize_block();
    float low = as_float(0x7F800000u), high = -low;
    for (int i = first; i < first + SECOND && i < last; i++) low = fminf(low, parts.value[i]), high = fmaxf(high, parts.value[i]);
    if (high - low <= SMALLEST_SPREAD * fmaxf(high, -low)) low = fminf(low, 0), high = fmaxf(high, 0);
    half_word unit = to_fp16(between((high - low) / levels, 5.9604644775390625e-8f, 65504.0f));
    Second second;
    second.unit = from_fp16(unit);
    half_word zero = to_fp16(between(-low / second.unit, -65504.0f, 65504.0f));
    second.zero = from_fp16(zero);
    second.code = nearest(between(value / second.unit + second.zero, 0, levels));
    if (warp() == 0 && lane() == first && row < given.rows) grids[row / SECOND * 2] = unit, grids[row / SECOND * 2 + 1] = zero;
    return second;
}

// Rows of zeros take the mean of those that share a second grid with them.
DEVICE void fill_empty(const Arguments& given, const Parts& parts, bool empty, Grid& grid) {
    int first = lane() / SECOND * SECOND;
    long last = given.rows - (long)blockIdx.x * ROWS;
    synchronize_block();
    if (warp() == 0) {
        parts.value[lane()] = empty ? 0 : 1;
        parts.value[ROWS + lane()] = grid.scale, parts.value[2 * ROWS + lane()] = grid.zero;
    }
    synchronize_block();
    float count = 0, scale = 0, zero = 0;
    for (int i = first; i < first + SECOND && i < last; i++)
        if (parts.value[i] > 0) count += 1, scale += parts.value[ROWS + i], zero += parts.value[2 * ROWS + i];
    if (empty) grid.set(scale / fmaxf(count, 1), zero / fmaxf(count, 1));
}

// `search_codes`: of the pairs next to both codes the best.
DEVICE void search_codes(const Parts& parts, int begin, int end, Second& scale, Second& zero) {
    float scale_codes[CODES], zero_codes[CODES], errors[CODES * CODES];
    Grid grids[CODES];
    float zeros[CODES];
#pragma unroll
    for (int i = 0; i < CODES; i++) {
        scale_codes[i] = between(scale.code + (i - NEAR), 0, SCALE_LEVELS), zero_codes[i] = between(zero.code + (i - NEAR), 0, ZERO_LEVELS);
        grids[i].set(scale.decoded(scale_codes[i]), 0);
        zeros[i] = zero.decoded(zero_codes[i]);
    }
#pragma unroll
    for (int i = 0; i < CODES * CODES; i++) errors[i] = 0;
    for (int column = begin + warp(); column < end; column += WARPS) {
        float value = at(parts, column), weigh = parts.importance[column];
#pragma unroll
        for (int i = 0; i < CODES; i++)
#pragma unroll
            for (int m = 0; m < CODES; m++) {
                Grid grid = grids[i];
                grid.zero = zeros[m];
                errors[i * CODES + m] = fmaf(weigh, squared_error(value, grid), errors[i * CODES + m]);
            }
    }
    combine(parts, errors, sum_of);
    float least = as_float(0x7F800000u);
#pragma unroll
    for (int i = 0; i < CODES * CODES; i++)
        if (errors[i] < least) least = errors[i], scale.code = scale_codes[i / CODES], zero.code = zero_codes[i % CODES];
}

// After a walk without rounding; what columns were off is overwritten by what they stand at.
DEVICE Grid fit_two_level(const Arguments& given, const Parts& parts, int begin, int end, int group) {
    for (int column = begin + warp(); column < end; column += WARPS)
        at(parts, column) = parts.original[column * ROWS + lane()] - at(parts, column);
    synchronize_block();
    if (LEAVES_OUT) leave_out(given, parts, begin, end);
    Ends ends = ends_of(parts, begin, end);
    Grid grid = FIT == 5 ? search_range(parts, begin, end, ends) : spanned(ends.low, ends.high);
    fill_empty(given, parts, ends.low == 0 && ends.high == 0, grid);
    long grids = (long)group * ((given.rows + SECOND - 1) / SECOND) * 2, row = (long)blockIdx.x * ROWS + lane();
    Second scale = store(given, parts, grid.scale, SCALE_LEVELS, given.scale_grids + grids);
    Second zero = store(given, parts, grid.zero, ZERO_LEVELS, given.zero_grids + grids);
    if (FIT == 5) search_codes(parts, begin, end, scale, zero);
    if (warp() == 0 && row < given.rows) {
        given.scale_codes[(long)group * given.rows + row] = (unsigned char)scale.code;
        given.zero_codes[(long)group * given.rows + row] = (unsigned char)zero.code;
    }
    grid.set(scale.decoded(scale.code), zero.decoded(zero.code));
    return grid;
}
