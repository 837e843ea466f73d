// Part of lattice.cu: what of the output's rotation takes place within the rows of a block.
#pragma once
#include "lattice.cuh"

// A block's rows are FACTOR times 2^TWOS neighbours: those parts of the rotation are its own. `local`: [tokens][rows] fp32.
template <class Value>
DEVICE void store_turned(const Arguments& given, const word* factor, float* local, int block, Value value) {
    constexpr int ROWS = FACTOR << TWOS, PADDED = (ROWS + 31) / 32 * 32, WORDS = (FACTOR + 31) / 32;
    float* output = (float*)given.output + (long)block * ROWS;
    for (int i = threadIdx.x; i < given.tokens * PADDED; i += blockDim.x) {
        int token = i / PADDED, row = i % PADDED;
        float v = row < ROWS ? value(token, row) : 0;
#pragma unroll
        for (int apart = 1; apart < 1 << TWOS; apart *= 2) {
            float other = exchange(v, apart);
            v = row & apart ? other - v : v + other;
        }
        if (row < ROWS) (FACTOR > 1 ? local[token * ROWS + row] : output[(long)token * given.rows + row]) = v;
    }
    if (FACTOR == 1) return;
    synchronize_block();
    for (int i = threadIdx.x; i < given.tokens * ROWS; i += blockDim.x) {
        int token = i / ROWS, row = i % ROWS;
        const float* from = local + token * ROWS + (row & ((1 << TWOS) - 1));
        float sums[2] = {};
#pragma unroll 4  // code that runs once waits for itself
        for (int f = 0; f < FACTOR; f++) {
            word negative = factor[(row >> TWOS) * WORDS + f / 32] << (31 - f % 32) & 0x80000000u;
            sums[f % 2] += as_float(as_word(from[f << TWOS]) ^ negative);
        }
        output[(long)token * given.rows + row] = sums[0] + sums[1];
    }
}
