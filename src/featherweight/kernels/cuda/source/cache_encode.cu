// Codes of tokens that lie one after another, for the cache. Fixed when compiled: NUMBER, HEAD_DIM, CODEC (1 a sketch, 2 integers by
// channel, 4 integers by token), and what the codec names.
#include "cache.cuh"
#if CODEC == 1
#include "cache_encode_qjl.cuh"
#else
#include "cache_encode_integer.cuh"
#endif

constexpr int ROW = 2 * HEAD_DIM, EACH = 8;  // bytes of a token; tokens that a warp reads at once

struct Encoding {
    Rows source, targets[5];
    const float* projection;
    int tokens;
};

#if CODEC == 4
// Grid: EACH tokens for each of four warps, heads, sequences.
KERNEL void __launch_bounds__(128) cache_encode(const __grid_constant__ Encoding a) {
    wait_for_inputs();
    const int lane = threadIdx.x % 32, first = (blockIdx.x * 4 + threadIdx.x / 32) * EACH, head = blockIdx.y, sequence = blockIdx.z;
    const unsigned char* rows = a.source.of(sequence, head) + 8 * lane;
    uint2 four[EACH];
#pragma unroll
    for (int at = 0; at < EACH; at++) {
        const int token = first + at < a.tokens ? first + at : a.tokens - 1;
        four[at] = *(const uint2*)(rows + (long long)token * ROW);
    }
    constexpr int GROUPS = HEAD_DIM / CODE_GROUP;
    unsigned char* targets[3];
    for (int at = 0; at < 3; at++) targets[at] = (unsigned char*)a.targets[at].of(sequence, head);
#pragma unroll
    for (int at = 0; at < EACH; at++) {
        const long long token = first + at;
        if (token < a.tokens) {
            encode_token<CODE_BITS, CODE_GROUP>(four[at], targets[0] + token * (HEAD_DIM * CODE_BITS / 8), targets[1] + token * 2 * GROUPS,
                                      targets[2] + token * 2 * GROUPS, lane);
        }
    }
}
#else
// Grid: groups of tokens, heads, sequences; a thread for each channel.
KERNEL void __launch_bounds__(HEAD_DIM) cache_encode(const __grid_constant__ Encoding a) {
    SHARED_MEMORY(room);
    wait_for_inputs();
    const int head = blockIdx.y, sequence = blockIdx.z, thread = threadIdx.x;
    const long long group = blockIdx.x;
    const unsigned char* rows = a.source.of(sequence, head) + group * CODE_GROUP * ROW;
    const auto row_of = [&](int token) { return rows + token * ROW; };
    unsigned char* targets[5];
    for (int at = 0; at < 5; at++) targets[at] = (unsigned char*)a.targets[at].of(sequence, head);
#if CODEC == 1
    targets[0] += group * STAGE * SKETCH / 8, targets[1] += group * STAGE * 2, targets[2] += group * STAGE * OUTLIER_SKETCH / 8;
    targets[3] += group * STAGE * 2, targets[4] += group * OUTLIERS;
    encode_sketch(row_of, targets, a.projection, room, thread);
#else
    encode_channels<CODE_BITS, CODE_GROUP>(row_of, targets[0] + group * CODE_GROUP * HEAD_DIM * CODE_BITS / 8, targets[1] + group * ROW,
                                 targets[2] + group * ROW, room, thread);
#endif
}
#endif

EXPORT(cache_encode)
