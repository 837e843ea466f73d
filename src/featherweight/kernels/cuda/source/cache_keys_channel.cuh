// Keys as integers of KEY_BITS (2, 4), a scale and a minimum for each channel of KEY_GROUP (whole stages) tokens.
//
// Codes lie as those of values; pairs of fields of a word are 16-bit numbers as they stand. The query is multiplied by the
// group's scales, and its product with the minima is added to all scores of the group.
#pragma once
#include "cache.cuh"

constexpr int MOST_BESIDE = 16;  // warps whose registers hold the making of scores and the adding of values at once
constexpr int KEY_WORDS = HEAD_DIM * KEY_BITS / 32, MY_WORDS = KEY_WORDS / 4, FIELDS = 16 / KEY_BITS, PAIRS = MY_WORDS * FIELDS;
constexpr int KEY_CODES = 0, KEY_SCALES = STAGE * 4 * KEY_WORDS, KEY_MINIMA = KEY_SCALES + 2 * HEAD_DIM;
constexpr int KEY_STAGE = KEY_MINIMA + 2 * HEAD_DIM;
constexpr int PREPARED = 0;
constexpr int KEY_EXTRA = NUMBER == 0 ? 96 : 4;

struct KeyFeed {
    Feed<4 * KEY_WORDS> codes;
    const unsigned char *scales, *minima;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        codes.begin(a.keys[0], sequence, head, lane);
        scales = a.keys[1].of(sequence, head) + 16 * lane;
        minima = a.keys[2].of(sequence, head) + 16 * lane;
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        codes.template copy<WHOLE>(stage + KEY_CODES, at, left, lane);
        if (16 * lane < 2 * HEAD_DIM) {
            const unsigned long long group = (unsigned)at / (KEY_GROUP / STAGE) * (2ull * HEAD_DIM);
            copy_to_shared(stage + KEY_SCALES + 16 * lane, scales + group, true);
            copy_to_shared(stage + KEY_MINIMA + 16 * lane, minima + group, true);
        }
    }
};

struct Keys {
    word query[PAIRS];  // divided by a field's place

    static DEVICE constexpr int shift(int field) { return field * KEY_BITS / 8 * 8; }
    static DEVICE constexpr int place(int field) { return field * KEY_BITS % 8; }

    DEVICE void begin(const Arguments&, const unsigned char*, const half_word* asked, int, int, int quarter) {
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
#pragma unroll
            for (int index = 0; index < MY_WORDS; index++) {
                const int channel = field * KEY_WORDS + quarter * MY_WORDS + index;
                const float unit = two_to(KEY_EXTRA - place(field));
                query[index * FIELDS + field] =
                    pair(from_number(asked[channel]) * unit, from_number(asked[channel + FIELDS * KEY_WORDS]) * unit);
            }
        }
    }

    // Numbers of the lane's channels in pairs of fields, out of a row of one for each channel.
    static DEVICE void read_pairs(word (&pairs)[PAIRS], const unsigned char* numbers, int quarter) {
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
            word low[MY_WORDS / 2], high[MY_WORDS / 2];
            read_words(low, numbers + 2 * (field * KEY_WORDS + quarter * MY_WORDS));
            read_words(high, numbers + 2 * ((field + FIELDS) * KEY_WORDS + quarter * MY_WORDS));
#pragma unroll
            for (int index = 0; index < MY_WORDS; index += 2) {
                pairs[index * FIELDS + field] = lower_halves(low[index / 2], high[index / 2]);
                pairs[(index + 1) * FIELDS + field] = upper_halves(low[index / 2], high[index / 2]);
            }
        }
    }

    DEVICE void seek(const Arguments&, int, int, int) {}
    DEVICE void fetch(int, int, int) {}

    template <class Between>
    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments& a, const unsigned char*, int row, int quarter, const Between& between) {
        word numbers[PAIRS];
        read_pairs(numbers, stage + KEY_MINIMA, quarter);
        float bias[4] = {};
#pragma unroll
        for (int at = 0; at < PAIRS; at += 2) {
            const word low = times(numbers[at], place(at % FIELDS)), high = times(numbers[at + 1], place((at + 1) % FIELDS));
            const word rows[4] = {low, low, high, high};
            multiply_tile(bias, rows, query[at], query[at + 1]);
        }
        read_pairs(numbers, stage + KEY_SCALES, quarter);
#pragma unroll
        for (int at = 0; at < PAIRS; at++) numbers[at] = multiply_pair(numbers[at], query[at]);
        const float unit = a.scaling * two_to(SUBNORMAL - KEY_EXTRA), offset = bias[0] * (a.scaling * two_to(-KEY_EXTRA));
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            word upper[MY_WORDS], lower[MY_WORDS];
            const int token = 16 * tile + token_of(row);
            read_words(upper, stage + KEY_CODES + (token * 4 + quarter) * 4 * MY_WORDS);
            read_words(lower, stage + KEY_CODES + ((token + 8) * 4 + quarter) * 4 * MY_WORDS);
            float sums[4] = {};
#pragma unroll
            for (int at = 0; at < PAIRS; at += 2) {
                const word codes[4] = {field(upper, at), field(lower, at), field(upper, at + 1), field(lower, at + 1)};
                multiply_tile(sums, codes, numbers[at], numbers[at + 1]);
            }
            between(tile);
            x[tile][0] = sums[0] * unit + offset;
            x[tile][1] = sums[2] * unit + offset;
        }
    }

    static DEVICE word times(word value, int exponent) {
        return exponent ? multiply_pair(value, twice(NUMBER == 0 ? (127 + exponent) << 7 : (15 + exponent) << 10)) : value;
    }

    static DEVICE word field(const word (&words)[MY_WORDS], int at) {
        const int number = at % FIELDS;
        return words[at / FIELDS] >> shift(number) & twice(((1u << KEY_BITS) - 1) << place(number));
    }
};
