// Keys as integers of 8 bits, a scale and a minimum for KEY_GROUP channels of a token.
//
// Codes are operands as they stand. The query is held in 16 bits, as two signed bytes in neighbouring columns.
#pragma once
#include "cache.cuh"

static_assert(HEAD_DIM == 128, "a lane's words fill four products");
constexpr int MOST_BESIDE = 16;  // warps whose registers hold the making of scores and the adding of values at once
constexpr int PRODUCTS = 4, KEY_GROUPS = HEAD_DIM / KEY_GROUP;
constexpr int KEY_CODES = 0, KEY_SCALES = STAGE * HEAD_DIM, KEY_MINIMA = KEY_SCALES + STAGE * 2 * KEY_GROUPS;
constexpr int KEY_STAGE = KEY_MINIMA + STAGE * 2 * KEY_GROUPS;
constexpr int LANE_BYTES = PRODUCTS * 2 * 4, SKETCH = HEAD_DIM;
constexpr int PREPARED_FACTORS = 32 * LANE_BYTES, PREPARED = PREPARED_FACTORS + HEADS * 2 * 4;
constexpr float LARGEST = 32500.0f, UNIT = 1.0f;  // of the query's integers; what one of a sum counts

// Where channel `index` of the query goes: product index / 32, of which a quarter has 8 channels, half by half.
struct Place {
    int quarter, byte;
    DEVICE explicit Place(int index) : quarter(index % 32 / 8), byte((index / 32 * 2 + index % 8 / 4) * 4 + index % 4) {}
};

struct KeyFeed {
    Feed<HEAD_DIM> codes;
    Feed<2 * KEY_GROUPS> scales, minima;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        codes.begin(a.keys[0], sequence, head, lane);
        scales.begin(a.keys[1], sequence, head, lane);
        minima.begin(a.keys[2], sequence, head, lane);
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        codes.copy<WHOLE>(stage + KEY_CODES, at, left, lane);
        scales.copy<WHOLE>(stage + KEY_SCALES, at, left, lane);
        minima.copy<WHOLE>(stage + KEY_MINIMA, at, left, lane);
    }
};

struct Keys {
    word query[PRODUCTS][2];
    float factor, totals[KEY_GROUPS];  // of head `quarter`; totals of its query over each group, scaled

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, const half_word* columns, int lane, int row, int quarter) {
        read_words((word(&)[PRODUCTS * 2])query, prepared + lane * LANE_BYTES);
        factor = ((const float2*)(prepared + PREPARED_FACTORS))[quarter].x;
        const half_word* mine = columns + (2 * quarter - row) * HEAD_DIM + 16 * row;  // 16 channels of the head's first column
        float sum = 0;
#pragma unroll
        for (int at = 0; at < 16; at++) sum += from_number(mine[at]);
#pragma unroll
        for (int group = 0; group < KEY_GROUPS; group++) {
            totals[group] = 16 * row / KEY_GROUP == group ? sum * a.scaling : 0;
            for (int lanes = 4; lanes < 32; lanes *= 2) totals[group] += exchange(totals[group], lanes);
        }
    }

    DEVICE void seek(const Arguments&, int, int, int) {}
    DEVICE void fetch(int, int, int) {}

    template <class Between>
    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments&, const unsigned char*, int row, int quarter, const Between& between) {
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const int token = 16 * tile + token_of(row);
            int sums[KEY_GROUPS][4] = {};
#pragma unroll
            for (int product = 0; product < PRODUCTS; product++) {
                const unsigned char* codes = stage + KEY_CODES + token * HEAD_DIM + 32 * product + 8 * quarter;
                const uint2 upper = *(const uint2*)codes, lower = *(const uint2*)(codes + 8 * HEAD_DIM);
                const word bytes[4] = {upper.x, lower.x, upper.y, lower.y};
                multiply_unsigned(sums[32 * product / KEY_GROUP], bytes, query[product][0], query[product][1]);
            }
            between(tile);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const half_word* scales = (const half_word*)(stage + KEY_SCALES) + (token + 8 * half) * KEY_GROUPS;
                const half_word* minima = (const half_word*)(stage + KEY_MINIMA) + (token + 8 * half) * KEY_GROUPS;
                float score = 0;
#pragma unroll
                for (int group = 0; group < KEY_GROUPS; group++) {
                    const float product = (float)(sums[group][2 * half] * 256 + sums[group][2 * half + 1]) * factor;
                    score += from_number(scales[group]) * product + from_number(minima[group]) * totals[group];
                }
                x[tile][half] = score;
            }
        }
    }
};
