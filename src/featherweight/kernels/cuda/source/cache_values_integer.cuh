// Values as integers of VALUE_BITS (2, 4, 8), a scale and a minimum for VALUE_GROUP channels of a token.
//
// Codes of 2 and 4 bits lie in W words of a token, that of channel c at field c / W of word c % W; those of 8 bits in their order.
// So a tile's rows come from different words, and one operation takes a field out of two tokens' words. A field is an integer
// in the lowest bits of a 16-bit number: a number as it stands, times a power of two.
#pragma once
#include "cache.cuh"

constexpr int VALUE_WORDS = HEAD_DIM * VALUE_BITS / 32, LANE_WORDS = VALUE_WORDS / 8;
constexpr int VALUE_GROUPS = HEAD_DIM / VALUE_GROUP, OPERANDS = (VALUE_GROUPS + 1) / 2;
constexpr int VALUE_CODES = 0, VALUE_SCALES = STAGE * 4 * VALUE_WORDS;
constexpr int VALUE_MINIMA = VALUE_SCALES + STAGE * 2 * VALUE_GROUPS, VALUE_STAGE = VALUE_MINIMA + STAGE * 2 * VALUE_GROUPS;
constexpr bool ROTATED_VALUES = false;

struct ValueFeed {
    Feed<4 * VALUE_WORDS> codes;
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
    float sums[TILES][4] = {};  // channel 16 i + row (+ 8): [0], [2] of even groups, [1], [3] of odd ones
    float minima[4] = {};       // [0] of group `row`

    static DEVICE void clear(unsigned char* stage, int left, int lane) {
        clear_rows<2 * VALUE_GROUPS>(stage + VALUE_SCALES, left, lane);
        clear_rows<2 * VALUE_GROUPS>(stage + VALUE_MINIMA, left, lane);
    }

    DEVICE void begin(const Arguments&) {}

    DEVICE void rescale(float factor) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) sums[tile][index] *= factor;
        }
#pragma unroll
        for (int index = 0; index < 4; index++) minima[index] *= factor;
    }

    // Group `group` of two tokens, from the words that hold their groups.
    static DEVICE word of_group(const unsigned char* numbers, int token, int other, int group) {
        const half_word* values = (const half_word*)numbers;
        return values[token * VALUE_GROUPS + group] | (word)values[other * VALUE_GROUPS + group] << 16;
    }

    // Weights of the tile's tokens (two pairs) times the values.
    DEVICE void add(const unsigned char* stage, int tile, word first, word second, int row, int quarter) {
        const unsigned char *scales = stage + VALUE_SCALES, *lowest = stage + VALUE_MINIMA;
        const int a = 16 * tile + quarter, b = 16 * tile + 7 - quarter;
        word weights[OPERANDS][2];
        if constexpr (VALUE_GROUPS == 4) {
            const word selector = row & 1 ? 0x7632u : 0x5410u;
            uint2 s[4] = {*(const uint2*)(scales + 8 * a), *(const uint2*)(scales + 8 * b), *(const uint2*)(scales + 8 * a + 64),
                          *(const uint2*)(scales + 8 * b + 64)};
            weights[0][0] = multiply_pair(first, pick_bytes(s[0].x, s[1].x, selector));
            weights[1][0] = multiply_pair(first, pick_bytes(s[0].y, s[1].y, selector));
            weights[0][1] = multiply_pair(second, pick_bytes(s[2].x, s[3].x, selector));
            weights[1][1] = multiply_pair(second, pick_bytes(s[2].y, s[3].y, selector));
        } else {
#pragma unroll
            for (int operand = 0; operand < OPERANDS; operand++) {
                const int group = VALUE_GROUPS == 1 ? 0 : 2 * operand + (row & 1);
                weights[operand][0] = multiply_pair(first, of_group(scales, a, b, group));
                weights[operand][1] = multiply_pair(second, of_group(scales, a + 8, b + 8, group));
            }
        }
        const int group = row % VALUE_GROUPS;
        const word low[4] = {of_group(lowest, a, b, group), 0, of_group(lowest, a + 8, b + 8, group), 0};
        multiply_tile(minima, low, first, second);

        word halves[LANE_WORDS][2][2];  // of a word: of the pairs of tokens, the lower and the upper half
        const unsigned char* codes = stage + VALUE_CODES + 4 * row;
#pragma unroll
        for (int index = 0; index < LANE_WORDS; index++) {
#pragma unroll
            for (int two = 0; two < 2; two++) {
                word x = *(const word*)(codes + (a + 8 * two) * 4 * VALUE_WORDS + 32 * index);
                word y = *(const word*)(codes + (b + 8 * two) * 4 * VALUE_WORDS + 32 * index);
                halves[index][two][0] = lower_halves(x, y);
                halves[index][two][1] = upper_halves(x, y);
            }
        }
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            const word values[4] = {field(halves, at, 0, 0), field(halves, at, 1, 0), field(halves, at, 0, 1), field(halves, at, 1, 1)};
            const int operand = group_of(at) / 2;
            multiply_tile(sums[at], values, weights[operand][0], weights[operand][1]);
        }
    }

    // Where a tile's eight rows lie: which of the lane's words, from which bit on; and the channel of row 0.
    static DEVICE constexpr int word_of(int at, int half) { return VALUE_BITS == 8 ? at / 2 : (16 * at + 8 * half) % VALUE_WORDS / 8; }
    static DEVICE constexpr int bit_of(int at, int half) {
        return VALUE_BITS == 8 ? (2 * (at % 2) + half) * 8 : (16 * at + 8 * half) / VALUE_WORDS * VALUE_BITS;
    }
    static DEVICE constexpr int shift(int at, int half) { return bit_of(at, half) % 16 / 8 * 8; }
    static DEVICE constexpr int place(int at, int half) { return bit_of(at, half) % 8; }
    static DEVICE constexpr int group_of(int at) { return (VALUE_BITS == 8 ? at / 2 * 32 : 16 * at) / VALUE_GROUP; }
    static DEVICE int channel_of(int at, int half, int row) {
        return VALUE_BITS == 8 ? 4 * (row + 8 * (at / 2)) + 2 * (at % 2) + half : 16 * at + 8 * half + row;
    }

    static DEVICE word field(const word (&halves)[LANE_WORDS][2][2], int at, int half, int two) {
        return halves[word_of(at, half)][two][bit_of(at, half) / 16] >> shift(at, half) & twice(((1u << VALUE_BITS) - 1) << place(at, half));
    }

    // Sums of head `quarter` to [HEAD_DIM] floats, in units of the values times 2^EXTRA; `room` [VALUE_GROUPS].
    DEVICE void store(float* target, float* room, int row) const {
        if (row < VALUE_GROUPS) room[row] = minima[0];
        synchronize_warp();
#pragma unroll
        for (int at = 0; at < TILES; at++) {
            const int group = group_of(at), odd = VALUE_GROUPS == 1 ? 0 : group & 1;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float unit = two_to(SUBNORMAL - 60 - place(at, half));
                target[channel_of(at, half, row)] = sums[at][2 * half + odd] * unit * two_to(60) + room[group];
            }
        }
    }
};
