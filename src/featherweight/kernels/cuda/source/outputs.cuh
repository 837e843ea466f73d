// From the sums that a block's warps put down in shared memory to outputs: added over warps and the SHARING blocks of a cluster.
#pragma once
#include "tiles.cuh"

DEVICE float activate(float value) {
    float scale = GATED == 2 ? 1.5957691216057308f * (1.0f + 0.044715f * value * value) : 1.0f;
    return value / (1.0f + exponential(-scale * value));
}

struct Outputs {
    half_word* y;
    const half_word* bias;
    int rows, tokens, stride, row_shift;  // a block has sums of 2^row_shift rows

    // Adds what the input warps of all blocks of the cluster found, in a fixed order.
    DEVICE float add(const float* place, int input_warps) const {
        float sum = 0.0f;
        for (int other = 0; other < SHARING; other++) {
#pragma unroll 8
            for (int warp = 0; warp < input_warps; warp++) sum += load_from_block(place + warp * tokens * ((1 << row_shift) + 4), other);
        }
        return sum;
    }

    DEVICE void write(const float* sums, int block, int input_warps, int split, int thread, int threads) const {
        int shift = GATED ? row_shift - 1 : row_shift;  // of the outputs of a block
        for (int entry = split * threads + thread; entry < tokens << shift; entry += SHARING * threads) {
            int token = entry >> shift, at = entry & ((1 << shift) - 1), row = (block << shift) + at;
            if (row >= rows) continue;
            const float* place = sums + token * ((1 << row_shift) + 4) + (GATED ? at / 16 * 32 + at % 16 : at);
            float sum = add(place, input_warps) + (bias ? from_number(bias[row]) : 0.0f);
#if GATED
            sum = activate(sum) * (add(place + 16, input_warps) + (bias ? from_number(bias[rows + row]) : 0.0f));
#endif
            y[(long)token * stride + row] = to_number(sum);
        }
    }
};
