// Keys and values as they are: few tokens, read straight from memory.
#pragma once
#include "cache.cuh"

// Scores of 32 tokens from `base` on, of `count`; rows outside are read as the nearest inside.
DEVICE void score_exact(float (&x)[2][2], const unsigned char* keys, const half_word* asked, int base, int count, float scaling, int row,
                        int quarter) {
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
        const unsigned char* rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int token = base + 16 * tile + 8 * half + token_of(row);
            token = token < 0 ? 0 : token < count ? token : count - 1;
            rows[half] = keys + (long long)token * HEAD_DIM * 2;
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
    const unsigned char* rows = nullptr;
    int base = 0, count = 0;

    DEVICE void at(const unsigned char* values, int from, int tokens) { rows = values, base = from, count = tokens; }

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
            int token = base + 16 * tile + places[place];
            token = token < 0 ? 0 : token < count ? token : count - 1;
            read_words(words[place], rows + ((long long)token * HEAD_DIM + HEAD_DIM / 8 * row) * 2);
        }
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            const word values[4] = {lower_halves(words[0][at], words[1][at]), upper_halves(words[0][at], words[1][at]),
                                    lower_halves(words[2][at], words[3][at]), upper_halves(words[2][at], words[3][at])};
            multiply_tile(sums[at], values, first, second);
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
