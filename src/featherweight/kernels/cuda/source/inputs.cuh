// Activations of a block in shared memory, in the order in which a storage's `multiply` reads them. Where the storage wants fp16
// (NORMALIZED), activations become fp16 numbers: those of a token times a power of two that brings the largest in the block's inputs
// below 2^11, so that the sum of 16, which GROUP_SUMS asks for, is one as well.
#pragma once
#include "given.cuh"

struct Inputs {
    float* factors;      // [token]: what normalising took out; then, [token], bits of the largest
    half_word* numbers;  // [token][stride]
    int stride;
    half_word* plain;    // numbers before places of codes are made up for, with one token; else the same
    half_word* groups;   // [chunk][token][16]: sums of 16 consecutive inputs, in the order t, t + 4, t + 8, t + 12 for t = 0 … 3; DIAGONAL: floats

    // The token that a lane reads for a column; another where there is none.
    static DEVICE int token_of(int column, int lane, int tokens) {
        int token = column * 8 + lane / 4;
        return token < tokens ? token : column ? lane / 4 : 0;
    }
    // Eights of numbers change places, so that the same input of eight tokens lies in eight groups of banks.
    static DEVICE int swizzle(int token) { return token / 2 % 4 * 8; }

    // Where the numbers of a token begin.
    DEVICE int row(int token) const { return token * stride; }

    DEVICE float factor(int token) const { return factors[token]; }
    DEVICE word* peak(int token) const { return (word*)factors + 8 * COLUMNS + token; }

    static DEVICE int kept_factors(int) { return 16 * COLUMNS; }

    // Before the first `stage`, with a meeting of the block between.
    DEVICE void clear() const {
        if (threadIdx.x < 8 * COLUMNS) *peak(threadIdx.x) = 0;
    }

    DEVICE void find_peak(int token, const uint4& v, int lane) const {
        word largest = max_magnitude(max_magnitude(max_magnitude(max_magnitude(0, v.x), v.y), v.z), v.w);
        largest = largest_in_warp(largest);
        if (lane == 0) raise_shared(peak(token), largest);
    }

    // The power of two for a token.
    DEVICE float scale_of(int token, int lane) const {
        int exponent = (int)(as_word(from_number((half_word)*peak(token))) >> 23);
        int up = exponent == 0 ? 0 : 127 + 10 - exponent;  // x 2^up lies below 2^11
        up = up > 126 ? 126 : up < -126 ? -126 : up;
        if (lane == 0) factors[token] = as_float((word)(127 - up) << 23);
        return as_float((word)(127 + up) << 23);
    }

    // A lane's eight inputs of a chunk, put in their places.
    DEVICE void put(int token, int tokens, int chunk, const uint4& v, float scale, int lane) const {
        word pairs[4] = {v.x, v.y, v.z, v.w};
        float sum = 0.0f;
        half_word* to = numbers + token * stride + chunk * CHUNK;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            word number = pairs[pair];
            float low = from_number((half_word)(number & 0xFFFFu)) * scale, high = from_number((half_word)(number >> 16)) * scale;
            int place = pair_place(lane * 8 + pair / 2 * 4, pair % 2) ^ swizzle(token);
            if (NORMALIZED) number = pack_fp16(low, high);
            if (GROUP_SUMS) sum += from_fp16((half_word)(number & 0xFFFFu)) + from_fp16((half_word)(number >> 16));
#if DIAGONAL
            if (plain != numbers) *(word*)(plain + chunk * CHUNK + place) = number;
            float up = lane % 2 ? place_factor(pair + 4) : place_factor(pair);
            number = pack_fp16(low * up, high * up);
#endif
            *(word*)(to + place) = number;
        }
        if (GROUP_SUMS) {
            sum += from_lane_xor(sum, 1);
            int group = lane / 2, place = (chunk * tokens + token) * 16 + group % 4 * 4 + group / 4;
            if (lane % 2 == 0 && DIAGONAL) ((float*)groups)[place] = sum * GROUP_FACTOR;
            if (lane % 2 == 0 && !DIAGONAL) groups[place] = to_fp16(sum);
        }
    }

    DEVICE void stage(const Work& work, int first_chunk, int chunks, int warp, int lane) const {
        constexpr int all = WARPS + COLLECTORS, batch = (COLUMNS == 2 ? 8 : 4) * (NORMALIZED && !SINGLE ? 2 : 1);
        int items = work.tokens * chunks;
        uint4 loaded[batch];
#pragma unroll
        for (int pass = NORMALIZED ? 0 : 1; pass < 2; pass++) {
            for (int start = warp; start < items; start += all * batch) {
#pragma unroll
                for (int i = 0; i < batch; i++) {
                    int item = start + i * all;
                    if (NORMALIZED && pass == 1 && items <= all * batch) continue;  // they are here
                    if (item < items) loaded[i] = load_inputs(work, item / chunks, (first_chunk + item % chunks) * CHUNK + lane * 8);
                }
#pragma unroll
                for (int i = 0; i < batch; i++) {
                    int item = start + i * all, token = item / chunks;
                    if (item >= items) continue;
                    if (pass == 0) find_peak(token, loaded[i], lane);
                    else put(token, work.tokens, item % chunks, loaded[i], NORMALIZED ? scale_of(token, lane) : 1.0f, lane);
                }
            }
            if (pass == 0) synchronize_block();
        }
    }
};
