// What a decode step has around the product of one token, taken along by it: the norm before it, the sum with a residual, and
// what the norm after it needs. Each is done where its pointer is not null.
//
// A norm is two halves. Who writes a row also writes it times the norm's gain, and the sum of its squares, one part a block;
// who multiplies by that row divides its finished sums by the root of the mean square. Parts are added in a fixed order.
#pragma once
#include "numbers.cuh"

struct Around {
    const float* squares;       // of the row that `x` is scaled from: parts
    const half_word* residual;  // added to the outputs; may be `y`
    const float* gain;          // of the norm that follows
    half_word* scaled;          // outputs times gain
    float* squares_out;         // a part for each block
    int parts;
    float inputs, eps;

    // What the norm before the product multiplies by.
    DEVICE float factor(int lane) const {
        if (!squares) return 1.0f;
        float sum = 0.0f;
        for (int part = lane; part < parts; part += 32) sum += squares[part];
        return inverse_root(sum_over_warp(sum) / inputs + eps);
    }

    // Completes output `row`, writes it, and returns its square if it is wanted.
    DEVICE float finish(half_word* y, int row, float value) const {
        if (residual) value += from_number(residual[row]);
        half_word rounded = to_number(value);
        y[row] = rounded;
        if (!gain) return 0.0f;
        value = from_number(rounded);
        scaled[row] = to_number(value * gain[row]);
        return value * value;
    }
};


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
