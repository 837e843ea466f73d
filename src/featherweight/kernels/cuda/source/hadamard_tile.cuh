// Transforms of 8 bits of an index by the matrix unit: 256 entries of a warp as a 16 x 16 matrix X become H X H, in tf32.
//
// Of an index, four bits are rows k, four are columns n; a lane holds g = lane / 4 and t = lane % 4. Before, k0 k1 = t, n0 n1 n2 = g and
// entries are [n3][k3][k2]; after, k0 k1 k2 = g, n1 n2 = t and entries are [n3][k3][n0].
#pragma once
#include "instructions.cuh"

// Bits of k and n that are transformed; of the others nothing is added up.
template <int ROWS_MASK, int COLUMNS_MASK>
struct Tile {
    word first[2][4], second[2][2][2];  // operands: [rows 0 - 7, 8 - 15][...], [columns n by halves][n' by halves][...]

    static DEVICE word entry(int a, int b, int mask) {
        if ((a ^ b) & ~mask) return 0;
        int both = a & b & mask;
        both ^= both >> 2, both ^= both >> 1;
        return 0x3F800000u | (word)(both & 1) << 31;
    }

    DEVICE Tile(int lane) {
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < 4; i++) first[half][i] = entry(g + 8 * (i & 1), 8 * half + t + 4 * (i >> 1), ROWS_MASK);
#pragma unroll
            for (int to = 0; to < 2; to++)
#pragma unroll
                for (int i = 0; i < 2; i++) second[half][to][i] = entry(8 * half + 2 * t + i, 8 * to + g, COLUMNS_MASK);
        }
    }

    static DEVICE word rounded(float value) { return as_word(value) + 0x1000; }  // the unit drops the last 13 bits

    DEVICE void transform(float (&x)[8]) const {
        float middle[2][4] = {}, last[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int k = 0; k < 2; k++) multiply_tf32(middle[n], first[k], rounded(x[4 * n + 2 * k]), rounded(x[4 * n + 2 * k + 1]));
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const word a[4] = {rounded(middle[n][0]), rounded(middle[n][2]), rounded(middle[n][1]), rounded(middle[n][3])};
#pragma unroll
            for (int to = 0; to < 2; to++) multiply_tf32(last[to], a, second[n][to][0], second[n][to][1]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = last[i / 4][i % 4];
    }
};

// Bits of the index of registers, `apart` entries of 8.
template <int bits>
DEVICE void add_registers(float (&v)[1 << bits][8]) {
#pragma unroll
    for (int half = 1; half < 1 << bits; half *= 2)
#pragma unroll
        for (int i = 0; i < 1 << bits; i++)
            if (!(i & half))
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    float a = v[i][e], b = v[i + half][e];
                    v[i][e] = a + b, v[i + half][e] = a - b;
                }
}
