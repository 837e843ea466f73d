// Values as integers of VALUE_BITS (2, 4, 8), a scale and a minimum for VALUE_GROUP channels of a token.
//
// Codes of 2 and 4 bits lie in W words of a token, that of channel c at field c / W of word c % W; those of 8 bits in their order. They
// come transposed, by half words of two tokens, so that one operation takes a field out of both. A field is an integer in the lowest
// bits of a 16-bit number: a number as it stands, times a power of two.
#pragma once
#include "cache.cuh"

constexpr int VALUE_WORDS = HEAD_DIM * VALUE_BITS / 32, VALUE_CHUNKS = VALUE_WORDS / 4;  // of 16 bytes
constexpr int VALUE_GROUPS = HEAD_DIM / VALUE_GROUP, OPERANDS = (VALUE_GROUPS + 1) / 2;
constexpr int VALUE_CODES = 0, VALUE_SCALES = STAGE * 4 * VALUE_WORDS;
constexpr int VALUE_MINIMA = VALUE_SCALES + STAGE * 2 * VALUE_GROUPS, VALUE_STAGE = VALUE_MINIMA + STAGE * 2 * VALUE_GROUPS;
constexpr bool ROTATED_VALUES = false;
constexpr bool SIDE_BY_SIDE = VALUE_GROUPS == 4 && VALUE_BITS < 8;  // the groups of a column

struct ValueFeed {
    Feed<4 * VALUE_WORDS, true> codes;
    Feed<2 * VALUE_GROUPS> scales, minima;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        codes.begin(a.values[0], sequence, head, lane);
        scales.begin(a.values[1], sequence, head, lane);
        minima.begin(a.values[2], sequence, head, lane);
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        codes.template copy<WHOLE>(stage + VALUE_CODES, at, left, lane);
        scales.template copy<WHOLE>(stage + VALUE_SCALES, at, left, lane);
        minima.template copy<WHOLE>(stage + VALUE_MINIMA, at, left, lane);
    }
};

struct Values {
    float sums[TILES][4] = {};  // [0], [2] with one half of the groups, [1], [3] with the other: see `store`
    float minima[4] = {};       // [0] of group `row`

    static DEVICE void clear(unsigned char* stage, int left, int lane) {
        clear_rows<2 * VALUE_GROUPS>(stage + VALUE_SCALES, left, lane);
        clear_rows<2 * VALUE_GROUPS>(stage + VALUE_MINIMA, left, lane);
    }

    int codes, first_at, second_at, low_at, other_at;  // where in a stage this lane reads: codes, scales and minima of two tokens

    DEVICE void begin(const Arguments&, int row, int quarter) {
        const int lane = 4 * row + quarter, shared = SIDE_BY_SIDE ? 2 * (row & 1) : VALUE_GROUPS > 1 ? row & 1 : 0;
        codes = VALUE_CODES + 16 * spread<VALUE_CHUNKS>((token_of(lane % 8) + lane / 16 * 8) * VALUE_CHUNKS + lane / 8 % 2);
        first_at = VALUE_SCALES + 2 * (quarter * VALUE_GROUPS + shared), second_at = VALUE_SCALES + 2 * ((7 - quarter) * VALUE_GROUPS + shared);
        low_at = VALUE_MINIMA + 2 * (quarter * VALUE_GROUPS + row % VALUE_GROUPS);
        other_at = VALUE_MINIMA + 2 * ((7 - quarter) * VALUE_GROUPS + row % VALUE_GROUPS);
        hold(codes), hold(first_at), hold(second_at), hold(low_at), hold(other_at);
    }

    DEVICE void rescale(float factor) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) sums[tile][index] *= factor;
        }
#pragma unroll
        for (int index = 0; index < 4; index++) minima[index] *= factor;
    }

    // Numbers of two tokens.
    static DEVICE word both(const unsigned char* a, const unsigned char* b, int at) {
        return *(const half_word*)(a + at) | (word) * (const half_word*)(b + at) << 16;
    }

    // Weights of the tile's tokens (two pairs) times the values.
    DEVICE void add(const unsigned char* stage, int tile, word first, word second, int, int) {
        constexpr int NEXT = 8 * 2 * VALUE_GROUPS;  // bytes to the second pair
        const unsigned char *a = stage + first_at + 2 * tile * NEXT, *b = stage + second_at + 2 * tile * NEXT;
        word weights[OPERANDS][2];
        if constexpr (SIDE_BY_SIDE) {
            const word s[4] = {*(const word*)a, *(const word*)b, *(const word*)(a + NEXT), *(const word*)(b + NEXT)};
            weights[0][0] = multiply_pair(first, lower_halves(s[0], s[1])), weights[1][0] = multiply_pair(first, upper_halves(s[0], s[1]));
            weights[0][1] = multiply_pair(second, lower_halves(s[2], s[3])), weights[1][1] = multiply_pair(second, upper_halves(s[2], s[3]));
        } else {
#pragma unroll
            for (int operand = 0; operand < OPERANDS; operand++) {
                weights[operand][0] = multiply_pair(first, both(a, b, 4 * operand));
                weights[operand][1] = multiply_pair(second, both(a, b, 4 * operand + NEXT));
            }
        }
        const unsigned char *c = stage + low_at + 2 * tile * NEXT, *d = stage + other_at + 2 * tile * NEXT;
        const word low[4] = {both(c, d, 0), 0, both(c, d, NEXT), 0};
        multiply_tile(minima, low, first, second);

#pragma unroll
        for (int two = 0; two < VALUE_CHUNKS / 2; two++) {
            word halves[4];  // of two tokens and of two more: of one chunk, of the next
            load_transposed(halves, stage + (codes ^ 32 * two) + 256 * VALUE_CHUNKS * tile);
#pragma unroll
            for (int at = 0; at < FIELDS_OF_HALF; at++) {
                const word values[4] = {field(halves[0], at), field(halves[1], at), field(halves[2], at), field(halves[3], at)};
                const int tile_at = two * FIELDS_OF_HALF + at, operand = operand_of(tile_at);
                multiply_tile(sums[tile_at], values, weights[operand][0], weights[operand][1]);
            }
        }
    }

    // A tile's rows are half words of two chunks, at one field; rows of odd number are upper halves.
    static constexpr int FIELDS_OF_HALF = 16 / VALUE_BITS;
    static DEVICE constexpr int shift(int at) { return at * VALUE_BITS / 8 * 8; }
    static DEVICE constexpr int place(int at) { return at * VALUE_BITS % 8; }
    static DEVICE word field(word half, int at) { return half >> shift(at) & twice(((1u << VALUE_BITS) - 1) << place(at)); }
    static DEVICE constexpr int operand_of(int at) {
        return OPERANDS == 1 ? 0 : VALUE_BITS == 8 ? at / FIELDS_OF_HALF / 2 : at % FIELDS_OF_HALF / (FIELDS_OF_HALF / 2);
    }
    static DEVICE int channel_of(int at, int next, int row) {
        const int word_at = 4 * (at / FIELDS_OF_HALF * 2 + next) + row / 2, field = (row & 1) * FIELDS_OF_HALF + at % FIELDS_OF_HALF;
        return VALUE_BITS == 8 ? 4 * word_at + field : field * VALUE_WORDS + word_at;
    }

    // Sums of head `quarter` to [HEAD_DIM] floats, in units of the values times 2^EXTRA; `room` [VALUE_GROUPS].
    DEVICE void store(float* target, float* room, int row) const {
        if (row < VALUE_GROUPS) room[row] = minima[0];
        synchronize_warp();
#pragma unroll
        for (int at = 0; at < TILES; at++) {
#pragma unroll
            for (int next = 0; next < 2; next++) {
                const int channel = channel_of(at, next, row), group = channel / VALUE_GROUP;
                const bool odd = VALUE_GROUPS > 1 && (VALUE_BITS == 8 ? group & 1 : row & 1);
                const float sum = odd ? sums[at][2 * next + 1] : sums[at][2 * next], unit = two_to(SUBNORMAL - 60 - place(at % FIELDS_OF_HALF));
                target[channel] = sum * unit * two_to(60) + room[group];
            }
        }
    }
};
