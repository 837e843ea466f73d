// Keys and values as they are: few tokens, read straight from memory.
#pragma once
#include "cache.cuh"

// Tokens [first, end) of a sequence as they are, in a ring of `ring` and one, or one after another.
struct Exact {
    const unsigned char* rows;
    int first, end, ring;

    // Where a token is; outside, the nearest inside.
    DEVICE const unsigned char* row(int token) const {
        token = token < end ? token : end - 1;
        token = token < first ? first : token;
        return rows + (long long)(ring ? token & ring : token - first) * HEAD_DIM * 2;
    }
};

// Scores of 32 tokens from `base` on.
DEVICE void score_exact(float (&x)[2][2], const Exact& keys, const half_word* asked, int base, float scaling, int row, int quarter) {
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
        const unsigned char* rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows[half] = keys.row(base + 16 * tile + 8 * half + token_of(row));
        }
        float sums[4] = {};
#pragma unroll
        for (int at = 0; at < HEAD_DIM; at += 32) {
            const uint4 upper = *(const uint4*)(rows[0] + 2 * (at + 8 * quarter)), lower = *(const uint4*)(rows[1] + 2 * (at + 8 * quarter));
            const uint4 query = *(const uint4*)(asked + row * HEAD_DIM + at + 8 * quarter);
            const word first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
            multiply_tile(sums, first, query.x, query.y);
            multiply_tile(sums, second, query.z, query.w);
        }
        x[tile][0] = sums[0] * scaling;
        x[tile][1] = sums[2] * scaling;
    }
}

struct ExactValues {
    float sums[TILES][4] = {};  // rows: channels HEAD_DIM / 8 row + 2 i, and the next
    Exact values;
    int base;

    DEVICE void at(const Exact& of, int from) { values = of, base = from; }

    DEVICE void rescale(float factor) {
#pragma unroll
        for (int at = 0; at < TILES; at++) {
#pragma unroll
            for (int index = 0; index < 4; index++) sums[at][index] *= factor;
        }
    }

    DEVICE void add(const unsigned char*, int tile, word first, word second, int row, int quarter) {
        const int places[4] = {quarter, 7 - quarter, 8 + quarter, 15 - quarter};
        word words[4][TILES];
#pragma unroll
        for (int place = 0; place < 4; place++) {
            read_words(words[place], values.row(base + 16 * tile + places[place]) + HEAD_DIM / 8 * row * 2);
        }
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            const word both[4] = {lower_halves(words[0][at], words[1][at]), upper_halves(words[0][at], words[1][at]),
                                    lower_halves(words[2][at], words[3][at]), upper_halves(words[2][at], words[3][at])};
            multiply_tile(sums[at], both, first, second);
        }
    }

    DEVICE void store(float* target, float*, int row) const {
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            target[HEAD_DIM / 8 * row + 2 * at] = sums[at][0];
            target[HEAD_DIM / 8 * row + 2 * at + 1] = sums[at][2];
        }
    }
};
