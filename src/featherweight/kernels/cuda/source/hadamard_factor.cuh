// Part of hadamard.cu: the factor A, applied by the matrix unit to the row in 16-bit numbers.
#pragma once
#include "hadamard_steps.cuh"

// The row in 16-bit numbers: one plane as it comes, or a float32 in two. Rows that fill up a tile are zeros.
DEVICE void load_raw(half_word* raw, const unsigned char* signs, const Arguments& given, int row) {
    for (int first = threadIdx.x * 8; first < TILES * 16 * COLUMNS; first += THREADS * 8 * BATCH) {
        Entries loaded[BATCH] = {};
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + i * THREADS * 8 < LOCAL) loaded[i] = load_8(given, row, outside(first + i * THREADS * 8, own_block()));
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = first + i * THREADS * 8;
            if (at >= TILES * 16 * COLUMNS) break;
#pragma unroll
            for (int plane = 0; plane < INPUTS; plane++) {
                word pairs[4];
#if IN == 0
                float v[8] = {};
                if (at < LOCAL) unpack_8(v, loaded[i], signs, outside(at, own_block()));
#pragma unroll
                for (int k = 0; k < 4; k++) pairs[k] = plane_bf16(v[2 * k], v[2 * k + 1], plane);
#else
                word negative = !INVERTED && at < LOCAL ? signs[outside(at, own_block()) / 8] : 0;
#pragma unroll
                for (int k = 0; k < 4; k++)
                    pairs[k] = ((const word*)loaded[i].words)[k] ^ ((negative << (15 - 2 * k) & 0x8000u) | (negative << (30 - 2 * k) & 0x80000000u));
#endif
                *(uint4*)(raw + plane * TILES * 16 * PITCH + at / COLUMNS * PITCH + at % COLUMNS) =
                    make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            }
        }
    }
    synchronize_block();
}

DEVICE void expand(word (&a)[4], word signs, int tile) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = (signs << (15 - i - 4 * (tile & 3)) & 0x80008000u) ^ (IN == 2 ? 0x3C003C00u : 0x3F803F80u);
}

DEVICE void load_columns(word (&b)[4], const half_word* raw, int tile, int column, int lane) {
    load_transposed(b, raw + (tile * 16 + (lane & 15)) * PITCH + column + (lane >> 4) * 8);
}

DEVICE void multiply_pair(float (&d)[2][4], const word (&a)[4], const word (&b)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++)
        if (IN == 2) multiply_fp16(d[n], a, b[2 * n], b[2 * n + 1]);
        else multiply_bf16(d[n], a, b[2 * n], b[2 * n + 1]);
}

DEVICE void store_tile(float* values, const float (&d)[2][4], int tile, int column, int lane) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + (lane >> 2) + half * 8;
            if (row < FACTOR)
                *(float2*)(values + place(row * COLUMNS + column + n * 8 + (lane & 3) * 2)) = make_float2(d[n][2 * half], d[n][2 * half + 1]);
        }
}

// Signs of A that a warp takes: all tiles of a small one; two tiles of rows of a large one. They are asked for before the row is there.
struct Operands {
    static constexpr int UNITS = COLUMNS / 16, WORDS = (TILES + 3) / 4, HEIGHT = HELD ? TILES : 2;
    static constexpr int WIDE = UNITS % 2 ? 1 : 2, SETS = UNITS / WIDE, SHARE = WARPS > SETS ? WARPS / SETS : 1;  // of a large one
    word signs[HEIGHT][WORDS];

    static DEVICE int first() { return HELD ? 0 : threadIdx.x / 32 % SHARE * 2; }
    DEVICE void load(const word* factor, int from) {
#pragma unroll
        for (int m = 0; m < HEIGHT; m++)
#pragma unroll
            for (int k = 0; k < WORDS; k++) signs[m][k] = load_word(factor + (min(from + m, TILES - 1) * WORDS + k) * 32 + (threadIdx.x & 31));
    }
};

// A applied to all columns. A small one in place: a warp first takes all its columns to registers. A large one to `values`,
// several warps to the same columns.
DEVICE void dense_step(float* values, const half_word* raw, const word* factor, Operands& operands) {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#if FACTOR <= 64
    constexpr int units = Operands::UNITS, each = (units + WARPS - 1) / WARPS;
    word b[each][INPUTS][TILES][4];
#pragma unroll
    for (int i = 0; i < each; i++)
        if (warp + i * WARPS < units)
#pragma unroll
            for (int plane = 0; plane < INPUTS; plane++)
#pragma unroll
                for (int k = 0; k < TILES; k++)
                    load_columns(b[i][plane][k], raw + plane * TILES * 16 * PITCH, k, (warp + i * WARPS) * 16, lane);
    synchronize_block();
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int i = 0; i < each; i++) {
            float d[2][4] = {};
            if (warp + i * WARPS >= units) continue;
#pragma unroll
            for (int k = 0; k < TILES; k++) {
                word a[4];
                expand(a, operands.signs[m][0], k);
#pragma unroll
                for (int plane = 0; plane < INPUTS; plane++) multiply_pair(d, a, b[i][plane][k]);
            }
            store_tile(values, d, m, (warp + i * WARPS) * 16, lane);
        }
#else
    constexpr int wide = Operands::WIDE;
    for (int set = warp / Operands::SHARE; set < Operands::SETS; set += WARPS / Operands::SHARE)
        for (int m = Operands::first(); m < TILES; m += Operands::SHARE * 2) {
            if (m != Operands::first() || set != warp / Operands::SHARE) operands.load(factor, m);
            float d[2][wide][2][4] = {};
#pragma unroll
            for (int k = 0; k < TILES; k++) {
                word a[2][4], b[4];
                expand(a[0], operands.signs[0][k / 4], k);
                expand(a[1], operands.signs[1][k / 4], k);
#pragma unroll
                for (int unit = 0; unit < wide; unit++)
#pragma unroll
                    for (int plane = 0; plane < INPUTS; plane++) {
                        load_columns(b, raw + plane * TILES * 16 * PITCH, k, (set * wide + unit) * 16, lane);
                        multiply_pair(d[0][unit], a[0], b);
                        multiply_pair(d[1][unit], a[1], b);
                    }
            }
#pragma unroll
            for (int unit = 0; unit < wide; unit++) {
                store_tile(values, d[0][unit], m, (set * wide + unit) * 16, lane);
                if (m + 1 < TILES) store_tile(values, d[1][unit], m + 1, (set * wide + unit) * 16, lane);
            }
        }
#endif
    synchronize_block();
}
