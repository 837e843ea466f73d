// Parts of lattice.cu: the input's product with R, by a cluster of blocks, and part of the output's rotation.
#pragma once
#include "lattice.cuh"

#if CLUSTER > 1
constexpr int RANK_TILES = (RANK / 16 + CLUSTER - 1) / CLUSTER;  // of 16 ranks, that a block multiplies

// 16 ranks of R by 256 inputs: nibbles with sign as the product reads codes, and their scales.
struct Right {
    uint4 codes[4];
    word scales[4][2];

    DEVICE void load(const Arguments& given, int tile, int slice, int lane) {
        if (tile * 16 >= RANK || slice >= given.slices) return;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            codes[k] = load_stream(given.right + (((long)tile * given.slices + slice) * 4 + k) * 32 + lane);
            int group = min((slice * 256 + k * 64) / given.right_group, given.right_groups - 1);
#pragma unroll
            for (int half = 0; half < 2; half++)
                scales[k][half] = load_half_word(given.right_scales + group * RANK + tile * 16 + half * 8 + (lane >> 2));
        }
    }

    // Adds to the sums of a lane's two ranks, of the tokens 4 n + lane % 4, in sixteenths of the input's steps.
    DEVICE void multiply(float (&sums)[COLUMNS][2], const uint4 (&x)[4][COLUMNS]) const {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const word high[4] = {codes[k].x & 0xF0F0F0F0u, codes[k].y & 0xF0F0F0F0u, codes[k].z & 0xF0F0F0F0u, codes[k].w & 0xF0F0F0F0u};
            const word low[4] = {codes[k].x << 4 & 0xF0F0F0F0u, codes[k].y << 4 & 0xF0F0F0F0u, codes[k].z << 4 & 0xF0F0F0F0u,
                                 codes[k].w << 4 & 0xF0F0F0F0u};
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                int c[4] = {};
                multiply_signed_bytes(c, low, x[k][n].x, x[k][n].y);
                multiply_signed_bytes(c, high, x[k][n].z, x[k][n].w);
#pragma unroll
                for (int half = 0; half < 2; half++)
                    sums[n][half] += fmaf((float)c[2 * half], 256.0f, (float)c[2 * half + 1]) * from_fp16((half_word)scales[k][half]);
            }
        }
    }
};

// t = R x, every block some ranks. A warp multiplies some slices, one warp adds them up and hands the sums to all blocks.
struct Projection {
    float* t;         // [tokens][RANK]
    float* partials;  // [RANK_TILES][WARPS][tokens][16]
    int tokens, block;

    DEVICE Projection(float* place, const Arguments& given) : t(place), partials(place + given.tokens * RANK), tokens(given.tokens), block(blockIdx.y) {}

    // `first` holds the block's first ranks of the slice `warp`, `x` that slice.
    DEVICE void multiply(const Arguments& given, Right& first, uint4 (&x)[4][COLUMNS], int warp, int lane) const {
        float sums[RANK_TILES][COLUMNS][2] = {};
        for (int slice = warp; slice < given.slices; slice += WARPS) {
            if (slice != warp) load_planes(x, given, slice, lane);
#pragma unroll
            for (int i = 0; i < RANK_TILES; i++) {
                int tile = block + i * CLUSTER;
                if (tile * 16 >= RANK) break;
                if (i || slice != warp) first.load(given, tile, slice, lane);
                first.multiply(sums[i], x);
            }
        }
#pragma unroll
        for (int i = 0; i < RANK_TILES; i++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                if (4 * n + (lane & 3) < tokens) {
                    float* to = partials + ((i * WARPS + warp) * tokens + 4 * n + (lane & 3)) * 16 + (lane >> 2);
                    to[0] = sums[i][n][0], to[8] = sums[i][n][1];
                }
    }

    DEVICE void share(const float* steps, unsigned long long* barrier, int lane) const {
        for (int i = 0; i < RANK_TILES; i++) {
            int tile = block + i * CLUSTER;
            for (int at = lane; at < tokens * 16 && tile * 16 < RANK; at += 32) {
                float sum = 0;
#pragma unroll
                for (int warp = 0; warp < WARPS; warp++) sum += partials[(i * WARPS + warp) * tokens * 16 + at];
                sum *= steps[at / 16] / 16;
#pragma unroll
                for (int to = 0; to < CLUSTER; to++) send_to_block(t + at / 16 * RANK + tile * 16 + at % 16, barrier, to, sum);
            }
        }
    }
};

#endif

#if FACTOR
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
#pragma unroll
        for (int f = 0; f < FACTOR; f++) {
            word negative = factor[(row >> TWOS) * WORDS + f / 32] << (31 - f % 32) & 0x80000000u;
            sums[f % 2] += as_float(as_word(from[f << TWOS]) ^ negative);
        }
        output[(long)token * given.rows + row] = sums[0] + sums[1];
    }
}
#endif
