// Codes of the lattice and nibbles of a low-rank factor to operands of the integer matrix unit; see lattice.cu.
#pragma once
#include "instructions.cuh"

constexpr int PARTS = BITS > 2 ? 2 : 1;  // codes of a vector

// Shared memory by address: sums from its start, tables of 64 KB at 64 KB and (3 bits) 128 KB, so that a byte of a code put into
// byte 1 of an address picks an entry; the rest after them.
constexpr int TABLE = 65536;

// Ranks of L to a load.
constexpr int RANKS = 64, LOADS = RANK / RANKS;

struct Arguments {
    const uint4* codes;            // [tiles][slices][BITS][32]
    const word* tables;            // [2 or 3][256]
    const float* scale;            // [1]: of the codewords
    const uint4* planes;           // [tokens][2][256 slices] bytes
    const float* steps;            // [tokens]
    const uint4* left;             // [tiles][RANK / 64][32]
    const half_word* left_scales;  // [groups][RANK]
    const float* t;                // [tokens][RANK]; not read in clusters, which make it:
    const uint4* right;            // [RANK / 16][slices][4][32]
    const half_word* right_scales; // [groups][RANK]
    const word* factor;            // [FACTOR][FACTOR / 32]: signs of what the block's part of the rotation is, beside neighbours
    void* output;                  // [splits][tokens][rows]; with FACTOR [tokens][blocks][FACTOR << TWOS]
    int tiles, slices, rows, tokens, left_group, output_type, most_tiles, sums_at, right_group, right_groups, twos, near;
    const void* input;             // [1][2^INPUT], of which planes and steps are made here
    const unsigned char* input_signs;
    float input_scale;             // 1 / sqrt(size)
    float residual;                // what the second codeword is divided by
};

// The planes of one slice.
DEVICE void load_planes(uint4 (&x)[4][COLUMNS], const Arguments& given, int slice, int lane) {
    int column = lane >> 2;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        int token = n * 4 + column / 2;
        const uint4* from = given.planes + ((token * 2 + (column & 1)) * given.slices + slice) * 16 + (lane & 3);
#pragma unroll
        for (int k = 0; k < 4; k++) x[k][n] = token < given.tokens ? from[k * 4] : make_uint4(0, 0, 0, 0);
    }
}

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

// What the low-rank term adds to some tiles: t times the scales of L is rounded to integers, for UNIT rows that share scales.
struct LowRankTerm {
    static constexpr int UNITS = 16 / UNIT;

    const Arguments& given;
    const float* t;         // [tokens][RANK]
    unsigned char* planes;  // [tokens][2][RANK]
    int2* totals;           // [tokens]
    float* steps;           // [tokens]
    int lane;

    // Bytes of a warp's own.
    static DEVICE int size(int tokens) { return tokens * (2 * RANK + 16); }

    DEVICE LowRankTerm(const Arguments& given, const float* t, unsigned char* place, int lane) : given(given), t(t), planes(place), lane(lane) {
        totals = (int2*)(planes + given.tokens * 2 * RANK);
        steps = (float*)(totals + given.tokens);
    }

    DEVICE void load_scales(word (&scales)[LOADS + 1], int row) const {
#pragma unroll
        for (int i = 0; i < LOADS; i++) scales[i] = load_word(given.left_scales + row / given.left_group * RANK + 2 * lane + i * RANKS);
    }

    DEVICE void load_codes(uint4 (&codes)[LOADS + 1], int tile) const {
#pragma unroll
        for (int i = 0; i < LOADS; i++) codes[i] = load_stream(given.left + (tile * LOADS + i) * 32 + lane);
    }

    DEVICE void make(const word (&scales)[LOADS + 1], int token) const {
        float v[LOADS + 1][2], most = 0;
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            float2 two = *(const float2*)(t + token * RANK + 2 * lane + i * RANKS);
            v[i][0] = two.x * lower_fp16(scales[i]), v[i][1] = two.y * upper_fp16(scales[i]);
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
            half_word* to = (half_word*)(planes + token * 2 * RANK + i * RANKS + place);
            to[0] = (half_word)((high & 255) | upper << 8);
            to[RANK / 2] = (half_word)((a & 255) | b << 8);
            total.x += high + upper, total.y += a + b - 256 * (high + upper);
        }
        for (int apart = 16; apart; apart /= 2) total.x += exchange(total.x, apart), total.y += exchange(total.y, apart);
        if (lane == 0) totals[token] = total, steps[token] = most / (16 * 32512.0f);
    }

    // 16 rows, of which those of one unit are kept.
    DEVICE void multiply(float* target, int rows, int row, int unit, const uint4 (&codes)[LOADS + 1]) const {
        int column = lane >> 2, pair = lane & 3;
        Sums sums[COLUMNS];
        int2 zero[COLUMNS];
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            zero[n] = 4 * n + pair < given.tokens ? totals[4 * n + pair] : make_int2(0, 0);
            zero[n].x *= -8, zero[n].y *= -8;
        }
        start(sums, zero, 16);
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            uint4 x[COLUMNS];
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                int token = 4 * n + column / 2;
                const uint4* of = (const uint4*)(planes + (token * 2 + (column & 1)) * RANK + i * RANKS);
                x[n] = token < given.tokens ? of[pair] : make_uint4(0, 0, 0, 0);
            }
            word a[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
            const word nothing[4] = {};
            multiply_nibbles(sums, a, nothing, x);
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
            if (4 * n + pair < given.tokens)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if ((column + 8 * half) / UNIT != unit) continue;
                    float high = (float)(sums[n].low[2 * half] * 16 + sums[n].high[2 * half]);
                    float low = (float)(sums[n].low[2 * half + 1] * 16 + sums[n].high[2 * half + 1]);
                    target[place_of(n, rows, row + column + half * 8, pair)] = fmaf(high, 256.0f, low) * steps[4 * n + pair];
                }
    }

    // All tiles from `warp` on; `original` tells where the row that stands at some place belongs.
    template <class Original>
    DEVICE void add(float* target, int first_tile, int tiles, int warp, Original original) const {
        word scales[LOADS + 1], next[LOADS + 1];
        uint4 codes[LOADS + 1];
        if (warp < tiles) load_scales(next, original(warp * 16));
        for (int tile = warp; tile < tiles; tile += HELPERS) {
            load_codes(codes, first_tile + tile);
#pragma unroll 1
            for (int unit = 0; unit < UNITS; unit++) {
#pragma unroll
                for (int i = 0; i < LOADS; i++) scales[i] = next[i];
                int after = unit + 1 < UNITS ? tile * 16 + (unit + 1) * UNIT : (tile + HELPERS) * 16;
                if (after < tiles * 16) load_scales(next, original(after));
                for (int token = 0; token < given.tokens; token++) make(scales, token);
                synchronize_threads(0, 32);
                multiply(target, given.most_tiles * 16, tile * 16, unit, codes);
                synchronize_threads(0, 32);
            }
        }
    }
};
