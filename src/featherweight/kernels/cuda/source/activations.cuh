// The activations of one warp's units in shared memory, by stages: fp16 `[tokens][STRIDE]`; then, `[…][WIDTH]`, what the zero
// points contribute to each group (their sum, on a symmetric grid times −z), and 2^24 over the factor that they carry. `arrange.cu`
// makes them once for all blocks, which then only copy them (ARRANGED).
#pragma once
#include "fields.cuh"

#ifndef ARRANGED
#define ARRANGED 0
#endif

constexpr int STRIDE = UNIT + 32;  // of a token's activations in shared memory: no bank conflicts
constexpr int WIDTH = COLUMNS * 8;

struct Activations {
    unsigned char* stages;
    int bytes, tokens, inputs, stride, row_warp, row_warps, lane;
    const half_word* x;  // or the stages that were made before

    DEVICE const unsigned char* stage(int index) const { return stages + index * bytes; }
    DEVICE const float* sums(int index) const { return (const float*)(stages + index * bytes + tokens * STRIDE * 2); }

    DEVICE void put(int unit, int index) const {
#if ARRANGED
        for (int at = (row_warp * 32 + lane) * 16; at < bytes; at += row_warps * 512) {
            copy_to_shared(stages + index * bytes + at, (const unsigned char*)x + (long)unit * bytes + at, unit * UNIT < inputs);
        }
#else
        for (int token = row_warp; token < tokens; token += row_warps) put_token(token, unit, index);
#endif
    }

    DEVICE void put_token(int token, int unit, int index) const {
        constexpr int PIECES = UNIT / 256;  // of eight inputs, to a lane
        float values[PIECES][8];
        float largest = 0.0f;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int input = unit * UNIT + (piece * 32 + lane) * 8;
            uint4 raw = {0, 0, 0, 0};
            if (input < inputs) raw = load_now(x + (long)token * stride + input);
            const word* words = (const word*)&raw;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                values[piece][i] = from_number((half_word)(words[i / 2] >> i % 2 * 16));
                largest = maximum(largest, magnitude(values[piece][i]));
            }
        }
        int carried = 140 - (int)(warp_maximum(as_word(largest)) >> 23);  // the largest times 2^carried is in [2^13, 2^14)
        carried = carried < 126 ? carried : 126;
        float* beside = (float*)(stages + index * bytes + tokens * STRIDE * 2);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int place = piece * 32 + lane;
            word offsets = offsets_of(0);
            if (CHUNKS > 1) offsets = place / 4 % CHUNKS == 1 ? offsets_of(1) : offsets;
            if (CHUNKS > 2) offsets = place / 4 % CHUNKS == 2 ? offsets_of(2) : place / 4 % CHUNKS == 3 ? offsets_of(3) : offsets;
            uint4 made;
            word* words = (word*)&made;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float factor = as_float((word)(127 + carried - (int)(offsets >> 4 * i & 15)) << 23);
                words[i] = pack_fp16(values[piece][2 * i] * factor, values[piece][2 * i + 1] * factor);
                sum += values[piece][2 * i] + values[piece][2 * i + 1];
            }
            *(uint4*)(stages + index * bytes + 2 * (token * STRIDE + place * 8)) = made;
#pragma unroll
            for (int distance = 1; distance < GROUP / 8; distance *= 2) sum += from_lane(sum, distance);
            if (place % (GROUP / 8) == 0) {
                float zero = ZEROS ? 1.0f : -(float)(1 << (BITS - 1));
                beside[place * 8 / GROUP * WIDTH + token] = sum * as_float((word)(103 + carried) << 23) * zero;  // 2^(carried − 24)
            }
        }
        int back = 151 - carried;
        if (lane == 0) beside[GROUPS_OF_UNIT * WIDTH + token] = as_float((word)(back < 254 ? back : 254) << 23);
    }
};
