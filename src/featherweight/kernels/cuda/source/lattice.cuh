// Codes of the lattice and nibbles of a low-rank factor to operands of the integer matrix unit; see lattice.cu.
#pragma once
#include "instructions.cuh"

constexpr int PARTS = BITS > 2 ? 2 : 1;  // codes of a vector

// Shared memory by address: sums from its start, tables of 64 KB at 64 KB and (3 bits) 128 KB, so that a byte of a code put into
// byte 1 of an address picks an entry; the rest after them.
constexpr int TABLE = 65536;

// Ranks of L to a load; groups and tokens of which a warp makes the low-rank term's input at a time.
constexpr int RANKS = 64, LOADS = RANK / RANKS, TASKS = 4;

struct Arguments {
    const uint4* codes;            // [tiles][slices][BITS][32]
    const word* tables;            // [2 or 3][256]
    const float* scale;            // [1]: of the codewords
    const uint4* planes;           // [tokens][2][256 slices] bytes
    const float* steps;            // [tokens]
    const uint4* left;             // [tiles][RANK / 64][32]
    const half_word* left_scales;  // [groups][RANK]
    const float* t;                // [tokens][RANK]
    void* output;                  // [splits][tokens][rows]
    int tiles, slices, rows, tokens, group_tiles, output_type, most_tiles, sums_at;
    float residual;                // what the second codeword is divided by
};

// Products of low nibbles, and of high ones, which count 16.
struct Sums {
    int low[4], high[4];
};

// Where a token's sum of a row stands in `[tile of columns][row][4]`.
DEVICE int place_of(int n, int rows, int row, int token) { return (n * rows + row) * 4 + (token & 3); }

// Sums start at minus the zero point, `times` halves of 16 times the sum of the inputs; `zero` is -8 times that.
DEVICE void start(Sums (&sums)[COLUMNS], const int2 (&zero)[COLUMNS], int times) {
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[n].low[i] = 0;
            sums[n].high[i] = times * (i & 1 ? zero[n].y : zero[n].x);
        }
}

// Both products of 16 rows by 64 inputs; two vectors of either of a lane's rows, as `a ^ b`.
DEVICE void multiply_nibbles(Sums (&sums)[COLUMNS], const word (&a)[4], const word (&b)[4], const uint4 (&x)[COLUMNS]) {
    word low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        low[i] = differing_bits(a[i], b[i], 0x0F0F0F0Fu);
        high[i] = differing_bits(a[i], b[i], 0xF0F0F0F0u);
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        multiply_bytes(sums[n].low, low, x[n].x, x[n].y);
        multiply_bytes(sums[n].high, high, x[n].z, x[n].w);
    }
}

// The entry of a table that byte BYTE of `bits` names; `base`: the table's address for this lane.
template <int BYTE, int OFFSET>
DEVICE word look_up(word bits, word base) {
#if LOOKUP == 1
    return load_shared<OFFSET>(select_bits(BYTE == 0 ? bits << 8 : bits >> (8 * BYTE - 8), 0xFF00u, base));
#else
    return load_shared<OFFSET>(pick_bytes(bits, base, 0x7604 | BYTE << 4));
#endif
}

// Two codes of each of a lane's rows.
DEVICE void multiply_codes(Sums (&sums)[COLUMNS], word first, word second, int lane, const uint4 (&x)[COLUMNS]) {
    word base = TABLE + lane * 4;
    word vectors[4] = {look_up<1, 0>(first, base), look_up<1, 0>(second, base), look_up<3, 0>(first, base), look_up<3, 0>(second, base)};
    word signs[4] = {look_up<0, 128>(first, base), look_up<0, 128>(second, base), look_up<2, 128>(first, base),
                     look_up<2, 128>(second, base)};
    multiply_nibbles(sums, vectors, signs, x);
}

// Codes of one byte: those of the first row in bytes 0 and 1 of `bits`, of the second in bytes 2 and 3.
DEVICE void multiply_small(Sums (&sums)[COLUMNS], word bits, int lane, const uint4 (&x)[COLUMNS]) {
    word base = TABLE + lane * 4;
    word vectors[4] = {look_up<0, TABLE>(bits, base), look_up<2, TABLE>(bits, base), look_up<1, TABLE>(bits, base),
                       look_up<3, TABLE>(bits, base)};
    const word nothing[4] = {};
    multiply_nibbles(sums, vectors, nothing, x);
}

// The tables, one copy a lane: entry e stands at 256 e, T in its first 128 bytes, S in the others; the small codebook's 64 KB on.
DEVICE void spread_tables(unsigned char* place, const word* tables) {
    for (int i = threadIdx.x; i < 256 * (BITS == 3 ? 3 : 2); i += blockDim.x) {
        word bits = tables[i];
        unsigned char* entry = place + (i & 255) * 256 + (i >> 8 & 1) * 128 + (i >> 9) * TABLE;
#pragma unroll
        for (int part = 0; part < 8; part++) *(uint4*)(entry + ((part + i) & 7) * 16) = make_uint4(bits, bits, bits, bits);
    }
}

// t times the scales of L as integers, once for each group of outputs that a block sees.
struct Projected {
    float* steps;           // [groups][tokens]
    int2* totals;           // [groups][tokens]
    unsigned char* planes;  // [groups][tokens][2][RANK]
    int tokens;

    DEVICE Projected(float* place, const Arguments& given) : tokens(given.tokens) {
        int groups = (given.most_tiles - 1) / given.group_tiles + 2;
        planes = (unsigned char*)place;
        totals = (int2*)(planes + groups * tokens * 2 * RANK);
        steps = (float*)(totals + groups * tokens);
    }

    // One warp takes one group and token, several times.
    DEVICE void make(const Arguments& given, int first_tile, int tiles, int warp, int lane) {
        int first = first_tile / given.group_tiles, count = ((first_tile + tiles - 1) / given.group_tiles - first + 1) * tokens;
        for (int from = warp; from < count && tiles; from += WARPS * TASKS) {
            word scales[TASKS][LOADS + 1];
            float2 t[TASKS][LOADS + 1];
#pragma unroll
            for (int k = 0; k < TASKS; k++)
#pragma unroll
                for (int i = 0; i < LOADS; i++) {
                    int task = min(from + k * WARPS, count - 1);
                    scales[k][i] = load_word(given.left_scales + (first + task / tokens) * RANK + 2 * lane + i * RANKS);
                    t[k][i] = *(const float2*)(given.t + task % tokens * RANK + 2 * lane + i * RANKS);
                }
#pragma unroll
            for (int k = 0; k < TASKS; k++)
                if (from + k * WARPS < count) round(scales[k], t[k], from + k * WARPS, lane);
        }
    }

    DEVICE void round(const word* scales, const float2* t, int task, int lane) {
        float v[LOADS + 1][2], most = 0;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            v[i][0] = t[i].x * lower_fp16(scales[i]), v[i][1] = t[i].y * upper_fp16(scales[i]);
            most = fmaxf(most, fmaxf(fabsf(v[i][0]), fabsf(v[i][1])));
        }
        for (int apart = 16; apart; apart /= 2) most = fmaxf(most, exchange(most, apart));
        float per = most > 0 ? 32512.0f / most : 0;
        int2 total = make_int2(0, 0);
        int place = lane / 8 * 16 + (lane & 7) * 2, middle = (lane & 7) / 2;  // of every 16 the second and third four change places
        place += middle == 1 ? 4 : middle == 2 ? -4 : 0;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            int a = round_to_int(v[i][0] * per), b = round_to_int(v[i][1] * per), high = (a + 128) >> 8, upper = (b + 128) >> 8;
            half_word* to = (half_word*)(planes + task * 2 * RANK + i * RANKS + place);
            to[0] = (half_word)((high & 255) | upper << 8);
            to[RANK / 2] = (half_word)((a & 255) | b << 8);
            total.x += high + upper, total.y += a + b - 256 * (high + upper);
        }
        for (int apart = 16; apart; apart /= 2) total.x += exchange(total.x, apart), total.y += exchange(total.y, apart);
        if (lane == 0) totals[task] = total, steps[task] = most / (16 * 32512.0f);
    }
};

// 64 ranks for 16 rows twice, from `from` on.
DEVICE void load_left(uint4 (&factor)[2], const Arguments& given, int tile, int from, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (from + i * RANKS < RANK) factor[i] = given.left[(tile * (RANK / RANKS) + from / RANKS + i) * 32 + lane];
}

// What the low-rank term adds to 16 rows; `factor` holds the first ranks.
DEVICE void multiply_low_rank(float* target, int rows, int row, int first_tile, int tile, int lane, uint4 (&factor)[2],
                              const Projected& projected, const Arguments& given) {
    int group = tile / given.group_tiles - first_tile / given.group_tiles, column = lane >> 2, pair = lane & 3;
    Sums sums[COLUMNS];
    int2 zero[COLUMNS];
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        zero[n] = 4 * n + pair < given.tokens ? projected.totals[group * given.tokens + 4 * n + pair] : make_int2(0, 0);
        zero[n].x *= -8, zero[n].y *= -8;
    }
    start(sums, zero, 16);
    for (int from = 0; from < RANK; from += 2 * RANKS) {
        if (from) load_left(factor, given, tile, from, lane);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (from + i * RANKS >= RANK) break;
            uint4 x[COLUMNS];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                int token = 4 * n + column / 2;
                const unsigned char* of = projected.planes + ((group * given.tokens + token) * 2 + (column & 1)) * RANK;
                x[n] = token < given.tokens ? ((const uint4*)(of + from + i * RANKS))[pair] : make_uint4(0, 0, 0, 0);
            }
            word a[4] = {factor[i].x, factor[i].y, factor[i].z, factor[i].w};
            const word nothing[4] = {};
            multiply_nibbles(sums, a, nothing, x);
        }
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
        if (4 * n + pair < given.tokens)
#pragma unroll
            for (int half = 0; half < 4; half += 2) {
                float high = (float)(sums[n].low[half] * 16 + sums[n].high[half]);
                float low = (float)(sums[n].low[half + 1] * 16 + sums[n].high[half + 1]);
                target[place_of(n, rows, row + column + half * 4, pair)] =
                    fmaf(high, 256.0f, low) * projected.steps[group * given.tokens + 4 * n + pair];
            }
}
