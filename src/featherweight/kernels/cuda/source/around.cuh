// What a decode step has around the product of one token, taken along by it: the norm before it, the activation of half of its
// outputs, the sum with a residual, and what the norm after it needs. Each is done where its pointer is not null, and asked for
// before it is needed.
//
// A norm is two halves. Who writes a row also writes it times the norm's gain, and the sum of its squares, one part a block;
// who multiplies by that row divides its finished sums by the root of the mean square. Parts are added in a fixed order.
//
// Fixed when compiled: AROUND (0: none of this), GATED (0; 1 SiLU, 2 GELU by its tanh form: outputs of the first half of the
// rows, activated, times those of the second).
#pragma once
#include "tiles.cuh"

#if AROUND
// What one output meets.
struct Beside {
    float residual, gain;
};

struct Around {
    const float* squares;       // of the row that `x` is scaled from: parts
    const half_word* residual;  // added to the outputs; may be `y`
    const float* gain;          // of the norm that follows
    half_word* scaled;          // outputs times gain
    float* squares_out;         // a part for each block
    int parts;
    float inputs, eps;

    // What the norm before the product multiplies by; a lane has all its parts on the way at once.
    DEVICE float factor(int lane) const {
        if (!squares) return 1.0f;
        float sum = 0.0f;
        for (int first = lane; first < parts; first += 8 * 32) {
            float part[8];
#pragma unroll
            for (int i = 0; i < 8; i++) part[i] = first + i * 32 < parts ? squares[first + i * 32] : 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) sum += part[i];
        }
        return inverse_root(sum_over_warp(sum) / inputs + eps);
    }

    DEVICE Beside load(int row, bool inside) const {
        return {residual && inside ? from_number(residual[row]) : 0.0f, gain && inside ? gain[row] : 0.0f};
    }

    // Completes output `row`, writes it, and returns its square if it is wanted.
    DEVICE float finish(half_word* y, int row, float value, const Beside& beside) const {
        half_word rounded = to_number(value + beside.residual);
        y[row] = rounded;
        if (!gain) return 0.0f;
        value = from_number(rounded);
        scaled[row] = to_number(value * beside.gain);
        return value * value;
    }
};

DEVICE float activate(float value) {
    float scale = 1.0f;
    if (GATED == 2) scale = 1.5957691216057308f * (1.0f + 0.044715f * value * value);
    return value / (1.0f + exponential(-scale * value));
}

// The sum over all threads of a block, for the first of them; `room` holds one number a warp.
DEVICE float sum_over_block(float value, float* room, int lane, int warp, int warps) {
    value = sum_over_warp(value);
    synchronize_block();
    if (lane == 0) room[warp] = value;
    synchronize_block();
    float sum = 0.0f;
    for (int other = 0; other < warps; other++) sum += room[other];
    return sum;
}
#endif
