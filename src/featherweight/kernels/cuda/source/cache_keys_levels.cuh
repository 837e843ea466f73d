// Keys as rotated levels of KEY_BITS (3, 4) and a gain, with KEY_GROUP around the means of so many tokens, 0 for none.
//
// The query is rotated and held in 16 bits, as two signed bytes in neighbouring columns; levels are bytes.
#pragma once
#include "cache_levels.cuh"

static_assert(HEAD_DIM == 128, "a lane's words fill four products");
constexpr int MOST_BESIDE = 16;  // warps whose registers hold the making of scores and the adding of values at once
constexpr int KEY_BYTES = HEAD_DIM * KEY_BITS / 8, PRODUCTS = 4;
constexpr int KEY_CODES = 0, KEY_GAINS = STAGE * KEY_BYTES, KEY_MEANS = KEY_GAINS + STAGE * 2;
constexpr int KEY_STAGE = KEY_MEANS + (KEY_GROUP ? 2 * HEAD_DIM : 0);
constexpr int LANE_BYTES = PRODUCTS * 2 * 4, SKETCH = HEAD_DIM;
constexpr int PREPARED_FACTORS = 32 * LANE_BYTES, PREPARED = PREPARED_FACTORS + HEADS * 2 * 4;
constexpr float LARGEST = 32500.0f, UNIT = 1.0f;  // of the query's integers; what one of a sum counts

// Where coordinate `index` of the rotated query goes: lane quarter, and its byte.
struct Place {
    int quarter, byte;
    DEVICE explicit Place(int index) {
        if (KEY_BITS == 3) {  // field f of word w: product f % 4, half f / 8, byte 2 (f / 4 % 2) + w % 2
            const int field = index / 8, word_at = index % 8;
            quarter = word_at / 2, byte = (field % 4 * 2 + field / 8) * 4 + field / 4 % 2 * 2 + word_at % 2;
        } else {  // field f of word w: product w % 4, half f / 4, byte f % 4
            const int field = index / 16, word_at = index % 16;
            quarter = word_at / 4, byte = (word_at % 4 * 2 + field / 4) * 4 + field % 4;
        }
    }
};

struct KeyFeed {
    Feed<KEY_BYTES> codes;
    Feed<2> gains;
    const unsigned char* means;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        codes.begin(a.keys[0], sequence, head, lane);
        gains.begin(a.keys[1], sequence, head, lane);
        if constexpr (KEY_GROUP > 0) {
            means = a.keys[2].of(sequence, head) + 16 * lane;
        }
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        codes.copy<WHOLE>(stage + KEY_CODES, at, left, lane);
        gains.copy<WHOLE>(stage + KEY_GAINS, at, left, lane);
        if constexpr (KEY_GROUP > 0) {
            const unsigned long long group = (unsigned)at / (KEY_GROUP / STAGE) * (2ull * HEAD_DIM);
            if (16 * lane < 2 * HEAD_DIM) copy_to_shared(stage + KEY_MEANS + 16 * lane, means + group, true);
        }
    }
};

struct Keys {
    word query[PRODUCTS][2], levels[2];
    float factor;
    const half_word* asked;

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, const half_word* columns, int lane, int, int quarter) {
        read_words((word(&)[PRODUCTS * 2])query, prepared + lane * LANE_BYTES);
        factor = ((const float2*)(prepared + PREPARED_FACTORS))[quarter].x;
        levels[0] = ((const word*)a.table)[0], levels[1] = ((const word*)a.table)[1];
        asked = columns;
    }

    DEVICE void seek(const Arguments&, int, int, int) {}
    DEVICE void fetch(int, int, int) {}

    template <class Between>
    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments& a, const unsigned char*, int row, int quarter, const Between& between) {
        float bias = 0;
        if constexpr (KEY_GROUP > 0) bias = product_with_means(stage + KEY_MEANS, quarter) * a.scaling;
        const half_word* gains = (const half_word*)(stage + KEY_GAINS);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            const int token = 16 * tile + token_of(row);
            int sums[4] = {};
            multiply(sums, stage + KEY_CODES + token * KEY_BYTES, quarter);
            between(tile);
            x[tile][0] = from_number(gains[token]) * ((float)(sums[0] * 256 + sums[1]) * factor) + bias;
            x[tile][1] = from_number(gains[token + 8]) * ((float)(sums[2] * 256 + sums[3]) * factor) + bias;
        }
    }

    DEVICE float product_with_means(const unsigned char* means, int quarter) const {
        float sums[4] = {};
#pragma unroll
        for (int at = 0; at < HEAD_DIM; at += 32) {
            const uint4 mean = *(const uint4*)(means + 2 * (at + 8 * quarter)), part = *(const uint4*)(asked + at + 8 * quarter);
            const word first[4] = {mean.x, mean.x, mean.y, mean.y}, second[4] = {mean.z, mean.z, mean.w, mean.w};
            multiply_tile(sums, first, part.x, part.y);
            multiply_tile(sums, second, part.z, part.w);
        }
        return sums[0];
    }

    DEVICE void multiply(int (&sums)[4], const unsigned char* codes, int quarter) const {
        const unsigned char* others = codes + 8 * KEY_BYTES;
        if constexpr (KEY_BITS == 3) {
            word a[4], b[4];
            const uint2 upper = *(const uint2*)(codes + 8 * quarter), lower = *(const uint2*)(others + 8 * quarter);
            join_bits(a, upper.x, upper.y, *(const word*)(codes + 32 + 4 * quarter));
            join_bits(b, lower.x, lower.y, *(const word*)(others + 32 + 4 * quarter));
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const word bytes[4] = {pick_levels(levels, a[s]), pick_levels(levels, b[s]), pick_levels(levels, a[s] >> 16),
                                       pick_levels(levels, b[s] >> 16)};
                multiply_signed(sums, bytes, query[s][0], query[s][1]);
            }
        } else {
            int negative[4] = {};
            word a[4], b[4];
            read_words(a, codes + 16 * quarter);
            read_words(b, others + 16 * quarter);
#pragma unroll
            for (int s = 0; s < 4; s++) {
                const word bytes[4] = {pick_levels(levels, a[s]), pick_levels(levels, b[s]), pick_levels(levels, a[s] >> 16),
                                       pick_levels(levels, b[s] >> 16)};
                multiply_signed(sums, bytes, query[s][0], query[s][1]);
                const word c = a[s] ^ 0x88888888u, d = b[s] ^ 0x88888888u;
                const word turned[4] = {pick_levels(levels, c), pick_levels(levels, d), pick_levels(levels, c >> 16), pick_levels(levels, d >> 16)};
                multiply_signed(negative, turned, query[s][0], query[s][1]);
            }
#pragma unroll
            for (int index = 0; index < 4; index++) sums[index] -= negative[index];
        }
    }
};
