/* The uniform grids of all groups of a weight, on a CPU: the ranges and the search of featherweight.grids.
 *
 * A group lies in the first cache while all its candidates are tried. Sums are kept in LANES parts and added in one order, so that
 * every machine finds the same grids.
 */
#include "common.h"

#if X86 && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define ROUNDER 12582912.0f /* added and subtracted: rounds to even, up to 2^22 */

enum { LANES = 16, SHRINKS = 9, MOVES = 4, REFITS = 2, MOST = 2 * SHRINKS };
static const float STEP = 0.08f, SMALLEST_SHRINK = 0.05f;

/* Mirrored by featherweight.kernels.cpu.fit. */
typedef struct {
    const float *weight, *importance; /* [rows][columns]; [columns] or NULL */
    float *scale, *zero;              /* [rows][columns / size] */
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int64_t rows, columns, size, weighted, symmetric, largest_code, scale_kind, threads;
    float smallest, largest; /* scale that is stored */
} FitJob;

typedef struct { const FitJob *job; int64_t next, chunk; int failed; } FitWork;
typedef struct { float scale, zero, mark; } Candidate; /* mark: the shrink that made it */
typedef struct { const float *values, *weights; int64_t width; float top; } Group; /* padded to LANES, weights 0 there */

INLINE float to_stored(float value, int64_t kind) {
    uint32_t bits = as_bits(value);
    if (kind == FLOAT32) return value;
    if (kind == BFLOAT16) return as_float((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
    if (value < 0x1p-14f) return value + 0.5f - 0.5f; /* subnormal halves lie 2^-24 apart, as floats from 0.5 do */
    return as_float((bits + 0xfff + (bits >> 13 & 1)) & 0xffffe000u);
}

INLINE float stored_scale(const FitJob *job, float scale) {
    float magnitude = fminf(fmaxf(fabsf(scale), job->smallest), job->largest);
    magnitude = to_stored(magnitude, job->scale_kind);
    return scale < 0 ? -magnitude : magnitude;
}

INLINE Candidate with_scale(const FitJob *job, float scale, float low, float mark) {
    Candidate made = {stored_scale(job, scale), 0.5f * (job->largest_code + 1), mark};
    if (!job->symmetric) {
        float zero = fminf(fmaxf(-low / made.scale, 0.0f), (float)job->largest_code);
        made.zero = (zero + ROUNDER) - ROUNDER;
    }
    return made;
}

INLINE float total(const float *lanes) {
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

INLINE float level_of(float value, float inverse, float zero, float top) {
    float level = value * inverse, bottom = -zero, end = top - zero;
    level = level < bottom ? bottom : level, level = level > end ? end : level;
    return (level + ROUNDER) - ROUNDER;
}

INLINE float error_of(Group group, Candidate tried) {
    float inverse = 1.0f / tried.scale, sums[LANES] = {0};
    for (int64_t j = 0; j < group.width; j += LANES)
        for (int l = 0; l < LANES; l++) {
            float off = level_of(group.values[j + l], inverse, tried.zero, group.top) * tried.scale - group.values[j + l];
            sums[l] += group.weights[j + l] * (off * off);
        }
    return total(sums);
}

INLINE float refitted(Group group, Candidate present) {
    float inverse = 1.0f / present.scale, above[LANES] = {0}, below[LANES] = {0};
    for (int64_t j = 0; j < group.width; j += LANES)
        for (int l = 0; l < LANES; l++) {
            float level = level_of(group.values[j + l], inverse, present.zero, group.top);
            float weighed = level * group.weights[j + l];
            above[l] += weighed * group.values[j + l], below[l] += weighed * level;
        }
    float all_above = total(above), all_below = total(below);
    return all_below > 0 && all_above != 0 ? all_above / all_below : present.scale;
}

INLINE void offer(Group group, const Candidate *tried, int count, Candidate *best, float *least) {
    for (int c = 0; c < count; c++) {
        float error = error_of(group, tried[c]);
        if (error < *least) *least = error, *best = tried[c];
    }
}

INLINE Candidate search(const FitJob *job, Group group, float low, float high) {
    Candidate tried[MOST], best = {1, 0, 1};
    float least = INFINITY, width = (high - low) / job->largest_code;
    int count = 0;
    for (int sign = 1; sign >= (job->symmetric ? -1 : 1); sign -= 2)
        for (int c = 0; c < SHRINKS; c++) {
            float shrink = sign * (1.0f - STEP * c);
            tried[count++] = with_scale(job, shrink * width, shrink * low, shrink);
        }
    offer(group, tried, count, &best, &least);
    float both = best.mark;
    for (int end = 0; end < 2 && !job->symmetric; end++) {
        float kept = best.mark;
        for (int c = 0; c < MOVES; c++) {
            float moved = fminf(fmaxf(both + STEP * (c < 2 ? c - 2 : c - 1), SMALLEST_SHRINK), 1.0f);
            float bottom = (end ? kept : moved) * low, top = (end ? moved : both) * high;
            tried[c] = with_scale(job, (top - bottom) / job->largest_code, bottom, end ? kept : moved);
        }
        offer(group, tried, MOVES, &best, &least);
    }
    for (int round = 0; round < REFITS; round++) {
        Candidate refit = {stored_scale(job, refitted(group, best)), best.zero, best.mark};
        offer(group, &refit, 1, &best, &least);
    }
    return best;
}

CLONES static void fit_row(const FitJob *job, int64_t row, float *room) {
    int64_t padded = (job->size + LANES - 1) / LANES * LANES, groups = job->columns / job->size;
    float *values = room, *weights = room + padded;
    for (int64_t g = 0; g < groups; g++) {
        float low = 0, high = 0;
        for (int64_t j = 0; j < job->size; j++) {
            values[j] = job->weight[row * job->columns + g * job->size + j];
            weights[j] = job->importance ? job->importance[g * job->size + j] : 1.0f;
            low = values[j] < low ? values[j] : low, high = values[j] > high ? values[j] : high;
        }
        if (job->symmetric) high = fmaxf(-low, high), low = low < 0 ? -high : low;
        if (low == 0 && high == 0) low = -1, high = 1;
        Group group = {values, weights, padded, (float)job->largest_code};
        Candidate found = job->weighted ? search(job, group, low, high)
                                        : with_scale(job, (high - low) / job->largest_code, low, 1);
        job->scale[row * groups + g] = found.scale, job->zero[row * groups + g] = found.zero;
    }
}

static void some_rows(void *shared) {
    FitWork *work = shared;
    const FitJob *job = work->job;
    float *room = calloc(2 * (job->size + LANES), sizeof(float));
    if (!room) work->failed = 1;
    while (!work->failed) {
        int64_t row = __atomic_fetch_add(&work->next, work->chunk, __ATOMIC_RELAXED), end = row + work->chunk;
        if (row >= job->rows) break;
        for (; row < end && row < job->rows; row++) fit_row(job, row, room);
    }
    free(room);
}

/* 0, or 1 without memory. */
int featherweight_fit(const FitJob *job) {
    FitWork work = {job, 0, job->rows / (job->threads * 4) + 1, 0};
    if (job->threads > 1 && job->parallel) job->parallel(some_rows, &work, (unsigned)job->threads, 0);
    else some_rows(&work);
    return work.failed;
}
