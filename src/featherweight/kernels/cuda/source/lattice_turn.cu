// What lattice.cu leaves of the output's rotation: y = diag(signs) S x / sqrt(size), S Sylvester's matrix between blocks of outputs.
// Of the input [tokens][2^BLOCKS][rows] fp32, row i = f 2^near + j of block b becomes the output f 2^twos + b 2^near + j.
//
// A warp takes four neighbouring rows of all blocks; three bits of the block are lanes, the others a lane's own values.
//
// Fixed when compiled: BLOCKS (the exponent, 3 to 8), OUT (1 bf16, 2 fp16), WARPS.
#include "instructions.cuh"

struct Turn {
    const float* input;
    const unsigned char* signs;  // [size / 8]: bit set for -1
    half_word* output;           // [tokens][size]
    int tokens, rows, twos, near;
    float scale;
};

constexpr int VALUES = 1 << (BLOCKS - 3);

KERNEL void __launch_bounds__(WARPS * 32) lattice_turn(Turn given) {
    release_dependents();
    int lane = threadIdx.x & 31, item = blockIdx.x * WARPS + (threadIdx.x >> 5), token = item / (given.rows / 4);
    if (token >= given.tokens) return;
    int row = item % (given.rows / 4) * 4 + (lane & 3), block = lane >> 2;
    int at = (row >> given.near << given.twos) + (block << given.near) + (row & ((1 << given.near) - 1)), stride = 8 << given.near;
    word negative[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) negative[i] = load_byte(given.signs + (at + i * stride) / 8) >> (at + i * stride) % 8 << 31;
    wait_for_inputs();
    const float* from = given.input + ((long)(token << BLOCKS) + block) * given.rows + row;
    float v[VALUES];
#pragma unroll
    for (int i = 0; i < VALUES; i++) v[i] = load_float_now(from + (long)i * 8 * given.rows);
#pragma unroll
    for (int half = 1; half < VALUES; half *= 2)
#pragma unroll
        for (int i = 0; i < VALUES; i++)
            if (!(i & half)) {
                float a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2)
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            float other = exchange(v[i], apart);
            v[i] = lane & apart ? other - v[i] : v[i] + other;
        }
    half_word* to = given.output + ((long)token * given.rows << BLOCKS) + at;
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        float value = as_float(as_word(v[i] * given.scale) ^ negative[i]);
        to[i * stride] = OUT == 1 ? to_bf16(value) : to_fp16(value);
    }
}

EXPORT(lattice_turn)
