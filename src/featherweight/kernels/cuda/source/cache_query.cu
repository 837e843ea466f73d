// The query as a codec of keys reads it: its product with a projection in integers, as two signed bytes at the codec's `Place`, or for
// signs as bit planes.
//
// Grid: COLUMNS columns of the projection each, key heads times blocks of HEADS query heads, sequences. The projection is asked for
// before the query is there. A unit of the integers is REACH lengths of the query over the LARGEST: what a column of the projection and
// the query make is normal, of the query's length, so nothing is cut off. Fixed when compiled: what the codec names.
#if KEYS == 1
#include "cache_keys_qjl.cuh"
#elif KEYS == 3
#include "cache_keys_levels.cuh"
#else
#include "cache_keys_token.cuh"
#endif

constexpr int THREADS = 128, COLUMNS = 32, SHARES = THREADS / COLUMNS, ROWS = HEAD_DIM / SHARES;

KERNEL void __launch_bounds__(THREADS) cache_query(const __grid_constant__ Arguments a, const float* projection, const float* row_sums,
                                                   unsigned char* prepared, float reach, float constant) {
    SHARED_MEMORY(shared);
    const int lane = threadIdx.x % COLUMNS, share = threadIdx.x / COLUMNS, column = blockIdx.x * COLUMNS + lane;
    float entries[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) entries[row] = projection[(share * ROWS + row) * SKETCH + column];
    wait_for_inputs();
    release_dependents();

    float* query = (float*)shared;                      // [HEAD_DIM][HEADS]
    float* sums = query + HEAD_DIM * HEADS;             // [SHARES][HEADS][COLUMNS]
    const int blocks = (a.group + HEADS - 1) / HEADS, block = blockIdx.y % blocks, key_head = blockIdx.y / blocks;
    const int heads = a.group - block * HEADS < HEADS ? a.group - block * HEADS : HEADS;
    unsigned char* target = prepared + (long long)(blockIdx.z * gridDim.y + blockIdx.y) * PREPARED;
    float length = 0, offset = 0;                       // of head `share`, the lane's part
#pragma unroll
    for (int at = 0; at < HEAD_DIM; at += COLUMNS) {
        const half_word* source = (const half_word*)a.query.of(blockIdx.z, key_head * a.group + block * HEADS + (share < heads ? share : heads - 1));
        const float value = from_number(source[at + lane]);
        query[(at + lane) * HEADS + share] = value;
        length += value * value;
        offset += value * row_sums[at + lane];
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) length += exchange(length, lanes), offset += exchange(offset, lanes);
    const float unit = sqrtf(length) * reach / LARGEST + 1e-30f;
    if (blockIdx.x == 0 && lane == 0) {
        ((float2*)(target + PREPARED_FACTORS))[share] = {2 * unit * constant * a.scaling * UNIT, offset * constant * a.scaling};
    }
    synchronize_block();
#if KEYS == 1
    if (OUTLIERS && blockIdx.x == 0) {
        for (int channel = lane; channel < HEAD_DIM; channel += COLUMNS) {
            const float weight = query[channel * HEADS + share] * ((const float*)(a.table + TABLE_UNITS))[channel] / unit * two_to(KEY_EXTRA);
            const half_word high = to_number(weight), low = to_number(weight - from_number(high));
            const uint2 sums = ((const uint2*)(a.table + TABLE_SUMS))[channel];
            uint4* entries = (uint4*)(target + PREPARED_QUERY) + (channel * HEADS + share) * (ENTRY / 2);
            if (ALIKE) entries[0] = {high, sums.x, low, sums.x};
            else entries[0] = {high, sums.x, sums.y, 0}, entries[ENTRY / 2 - 1] = {low, sums.x, sums.y, 0};
        }
    }
#endif

    float u[HEADS] = {};
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float4 q = ((const float4*)query)[share * ROWS + row];
        u[0] += entries[row] * q.x, u[1] += entries[row] * q.y, u[2] += entries[row] * q.z, u[3] += entries[row] * q.w;
    }
#pragma unroll
    for (int head = 0; head < HEADS; head++) sums[(share * HEADS + head) * COLUMNS + lane] = u[head];
    synchronize_block();
    float total = 0;  // of head `share`
#pragma unroll
    for (int each = 0; each < SHARES; each++) total += sums[(each * HEADS + share) * COLUMNS + lane];
#if KEYS == 1
    const int value = (int)fminf(fmaxf(rintf(total / unit), -LARGEST), LARGEST);
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        const word bits = vote(value >> plane & 1);
        if (lane == plane) ((word*)target)[place_of(share, plane, blockIdx.x)] = bits;
    }
#else
    const Place place(column);
    const int value = (int)fminf(fmaxf(rintf(total / unit), -LARGEST), LARGEST), low = (value + 128 & 255) - 128;
    target[(2 * share * 4 + place.quarter) * LANE_BYTES + place.byte] = (unsigned char)(value - low >> 8);
    target[((2 * share + 1) * 4 + place.quarter) * LANE_BYTES + place.byte] = (unsigned char)low;
#endif
}

EXPORT(cache_query)
