// Values as rotated levels of VALUE_BITS (3, 4) and a gain: the mixture is rotated back when all is added up.
//
// 3 bits: levels are 16-bit numbers, picked byte by byte. 4 bits: bytes around 128, which as they stand are numbers times a power
// of two; what the 128 add is taken away at the end, by the sum of weights times gains.
#pragma once
#include "cache_levels.cuh"

static_assert(HEAD_DIM == 128, "a lane's codes of a token are 16");
constexpr int VALUE_BYTES = HEAD_DIM * VALUE_BITS / 8;
constexpr int VALUE_CODES = 0, VALUE_GAINS = STAGE * VALUE_BYTES, VALUE_STAGE = VALUE_GAINS + STAGE * 2;
constexpr bool ROTATED_VALUES = true;

struct ValueFeed {
    Feed<VALUE_BYTES> codes;
    Feed<2> gains;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        codes.begin(a.values[0], sequence, head, lane);
        gains.begin(a.values[1], sequence, head, lane);
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        codes.copy<WHOLE>(stage + VALUE_CODES, at, left, lane);
        gains.copy<WHOLE>(stage + VALUE_GAINS, at, left, lane);
    }
};

struct Values {
    float sums[TILES][4] = {};  // [0], [2]: coordinate 16 i + row (+ 8)
    float whole[4] = {};        // [0]: weights times gains
    word table[4];              // 3 bits: lower bytes of the levels, upper bytes; 4 bits: positive levels
    float unit;

    DEVICE void begin(const Arguments& a, int, int) {
#pragma unroll
        for (int index = 0; index < 4; index++) table[index] = ((const word*)a.levels)[index];
        unit = ((const float*)a.levels)[4];
    }

    static DEVICE void clear(unsigned char* stage, int left, int lane) { clear_rows<2>(stage + VALUE_GAINS, left, lane); }

    DEVICE void rescale(float factor) {
#pragma unroll
        for (int at = 0; at < TILES; at++) {
#pragma unroll
            for (int index = 0; index < 4; index++) sums[at][index] *= factor;
        }
#pragma unroll
        for (int index = 0; index < 4; index++) whole[index] *= factor;
    }

    DEVICE void add(const unsigned char* stage, int tile, word first, word second, int row, int quarter) {
        const int tokens[4] = {16 * tile + quarter, 16 * tile + 7 - quarter, 16 * tile + 8 + quarter, 16 * tile + 15 - quarter};
        const half_word* gains = (const half_word*)(stage + VALUE_GAINS);
        const word weights[2] = {multiply_pair(first, gains[tokens[0]] | (word)gains[tokens[1]] << 16),
                                 multiply_pair(second, gains[tokens[2]] | (word)gains[tokens[3]] << 16)};
        const unsigned char* rows[4];
#pragma unroll
        for (int at = 0; at < 4; at++) rows[at] = stage + VALUE_CODES + tokens[at] * VALUE_BYTES;
        if constexpr (VALUE_BITS == 3) add_three(rows, weights, row);
        else add_four(rows, weights, row);
    }

    DEVICE void add_three(const unsigned char* const (&rows)[4], const word (&weights)[2], int row) {
        word selectors[2][4];
        const int odd = 4 * (row & 1);
#pragma unroll
        for (int two = 0; two < 2; two++) {
            const unsigned char *x = rows[2 * two], *y = rows[2 * two + 1];
            const word a = *(const word*)(x + 4 * row), b = *(const word*)(y + 4 * row);
            const word high_a = *(const word*)(x + 32 + 4 * (row / 2)) >> odd, high_b = *(const word*)(y + 32 + 4 * (row / 2)) >> odd;
            join_bits(selectors[two], a, b, (high_a & 0x0F0F0F0Fu) | (high_b << 4 & 0xF0F0F0F0u));
        }
        const word low[2] = {table[0], table[1]}, high[2] = {table[2], table[3]};
#pragma unroll
        for (int pair_at = 0; pair_at < 4; pair_at += 2) {  // fields 4 j + pair_at and the next are tile 2 j + pair_at / 2
#pragma unroll
            for (int half = 0; half < 2; half++) {
                word bytes[2][2][2];  // which of the two fields, pair of tokens, lower and upper bytes
#pragma unroll
                for (int next = 0; next < 2; next++) {
#pragma unroll
                    for (int two = 0; two < 2; two++) {
                        const word chosen = selectors[two][pair_at + next] >> 16 * half;
                        bytes[next][two][0] = pick_levels(low, chosen);
                        bytes[next][two][1] = pick_levels(high, chosen);
                    }
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const word order = j ? 0x7362u : 0x5140u;
                    const word values[4] = {
                        pick_bytes(bytes[0][0][0], bytes[0][0][1], order), pick_bytes(bytes[1][0][0], bytes[1][0][1], order),
                        pick_bytes(bytes[0][1][0], bytes[0][1][1], order), pick_bytes(bytes[1][1][0], bytes[1][1][1], order)};
                    multiply_tile(sums[2 * (2 * half + j) + pair_at / 2], values, weights[0], weights[1]);
                }
            }
        }
    }

    DEVICE void add_four(const unsigned char* const (&rows)[4], const word (&weights)[2], int row) {
        constexpr word one = NUMBER == 0 ? 0x3F803F80u : 0x3C003C00u;
        const word ones[4] = {one, one, one, one}, positive[2] = {table[0], table[1]};
        multiply_tile(whole, ones, weights[0], weights[1]);
        word fields[2][2][2];  // word of the lane, pair of tokens, even and odd fields
#pragma unroll
        for (int at = 0; at < 2; at++) {
#pragma unroll
            for (int two = 0; two < 2; two++) {
                const word a = *(const word*)(rows[2 * two] + 4 * row + 32 * at), b = *(const word*)(rows[2 * two + 1] + 4 * row + 32 * at);
                fields[at][two][0] = (a & 0x0F0F0F0Fu) | (b << 4 & 0xF0F0F0F0u);
                fields[at][two][1] = (a >> 4 & 0x0F0F0F0Fu) | (b & 0xF0F0F0F0u);
            }
        }
#pragma unroll
        for (int parity = 0; parity < 2; parity++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                word bytes[2][2];
#pragma unroll
                for (int at = 0; at < 2; at++) {
#pragma unroll
                    for (int two = 0; two < 2; two++) {
                        const word chosen = fields[at][two][parity] >> 16 * half, turned = (fields[at][two][parity] ^ 0x88888888u) >> 16 * half;
                        bytes[at][two] = 0x80808080u + pick_levels(positive, chosen) - pick_levels(positive, turned);
                    }
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {  // field parity + 4 half + 2 j is the tile
                    const word order = j ? 0x4342u : 0x4140u;
                    const word values[4] = {pick_bytes(bytes[0][0], 0, order), pick_bytes(bytes[1][0], 0, order),
                                            pick_bytes(bytes[0][1], 0, order), pick_bytes(bytes[1][1], 0, order)};
                    multiply_tile(sums[parity + 4 * half + 2 * j], values, weights[0], weights[1]);
                }
            }
        }
    }

    // Sums of head `quarter` to [HEAD_DIM] floats, in units of the values times 2^EXTRA, still rotated.
    DEVICE void store(float* target, float*, int row) const {
        const float scale = VALUE_BITS == 3 ? 1.0f : unit * two_to(SUBNORMAL - 60), offset = VALUE_BITS == 3 ? 0 : 128 * unit * whole[0];
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            target[16 * at + row] = sums[at][0] * scale * (VALUE_BITS == 3 ? 1.0f : two_to(60)) - offset;
            target[16 * at + 8 + row] = sums[at][2] * scale * (VALUE_BITS == 3 ? 1.0f : two_to(60)) - offset;
        }
    }
};
