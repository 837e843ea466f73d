// Keys as SKETCH signs of projections and a norm; with OUTLIERS (8) channels of every 32 tokens sketched apart in OUTLIER_SKETCH.
//
// Signs go into the matrix unit as bytes: bit k of four bytes at once is 0 or 2^k, so the query's sketch is multiplied by 2^(7 - k) for
// that bit. It is held in 16 bits, as two signed bytes in neighbouring columns (high, low), and all bits share their integer sums.
// With outliers bits are shifted to the two highest places first, to count 128 or 64. What outliers take away from the sketch, and put in its place, is Σ_j q_j (S σ)_j over the eight outlier channels j: their rows of S, in
// signed bytes with a unit of their own, are the columns of a second product with the same bytes, and a third one has the outliers'
// signs; these keep bits that count 128 and 64 apart.
#pragma once
#include "cache.cuh"

constexpr int SIGN_WORDS = SKETCH / 128, PRODUCTS = 4 * SIGN_WORDS;  // of a lane for one token; products of 32 signs
constexpr int APART_WORDS = OUTLIERS ? OUTLIER_SKETCH / 128 : 1, APART_PRODUCTS = 4 * APART_WORDS;
constexpr bool ALIKE = SIGN_WORDS == APART_WORDS;  // both sketches have the same columns of S
constexpr int KEY_SIGNS = 0, KEY_NORMS = STAGE * SKETCH / 8, KEY_APART = KEY_NORMS + STAGE * 2;
constexpr int KEY_APART_NORMS = KEY_APART + (OUTLIERS ? STAGE * OUTLIER_SKETCH / 8 : 0);
constexpr int KEY_STAGE = KEY_APART_NORMS + (OUTLIERS ? STAGE * 2 : 0);
constexpr float BYTE = 128.0f;  // what a sign counts at most
// Of the prepared query: sketch for each lane; of heads factor and offset; then the query itself, high and low.
constexpr int LANE_BYTES = PRODUCTS * 2 * 4, PREPARED_FACTORS = 32 * LANE_BYTES, PREPARED_QUERY = PREPARED_FACTORS + HEADS * 2 * 4;
constexpr int PREPARED = PREPARED_QUERY + HEADS * 2 * HEAD_DIM * 2;
// Of the table, for the sketch and then that of outliers: words of channel, two products, quarter, product, half; then of every
// channel what a sum of bytes is multiplied by and what is taken away, for both sketches.
constexpr int TABLE_ROW = 32 * PRODUCTS, TABLE_APART_ROW = 32 * APART_PRODUCTS;
constexpr int TABLE_APART = HEAD_DIM * TABLE_ROW, TABLE_UNITS = TABLE_APART + HEAD_DIM * TABLE_APART_ROW;

// A product takes two words of a lane at one bit, or the only word at two bits.
DEVICE constexpr int bit_of(int words, int product, int half) {
    return words == 1 ? 7 - product / 2 * 4 - product % 2 - 2 * half : 7 - product % 8;
}
// Where a bit is when it goes in: what it counts is 2 to that.
DEVICE constexpr int place_of(int bit) { return OUTLIERS ? 6 + bit % 2 : bit; }

// Where sign `index` of the query's sketch goes: lane quarter, its byte, and how often it is counted.
struct Place {
    int quarter, byte;
    float times;
    DEVICE explicit Place(int index) {
        const int at = index / 32, word_at = at % SIGN_WORDS, down = 7 - index % 8;
        const int product = SIGN_WORDS == 1 ? down / 4 * 2 + down % 2 : word_at / 2 * 8 + down;
        const int half = SIGN_WORDS == 1 ? down / 2 % 2 : word_at % 2;
        quarter = at / SIGN_WORDS, byte = (product * 2 + half) * 4 + index / 8 % 4, times = (float)(128 >> place_of(7 - down));
    }
};

template <int WORDS>
struct Signs {
    word upper[WORDS], lower[WORDS];  // of tokens `row` and 8 more
    DEVICE void read(const unsigned char* signs, int token, int quarter) {
        read_words(upper, signs + (token * 4 + quarter) * 4 * WORDS);
        read_words(lower, signs + ((token + 8) * 4 + quarter) * 4 * WORDS);
    }
    DEVICE void bytes(word (&of)[4], int product) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = WORDS == 1 ? 0 : product / 8 * 2 + half, bit = bit_of(WORDS, product, half), place = place_of(bit);
            of[2 * half] = upper[at] << place - bit & 0x01010101u << place;
            of[2 * half + 1] = lower[at] << place - bit & 0x01010101u << place;
        }
    }
};

struct KeyFeed {
    Feed<SKETCH / 8> signs;
    Feed<2> norms, apart_norms;
    Feed<OUTLIERS ? OUTLIER_SKETCH / 8 : 16> apart;

    DEVICE void begin(const Arguments& a, int sequence, int head, int base, int lane) {
        signs.begin(a.keys[0], sequence, head, base, lane);
        norms.begin(a.keys[1], sequence, head, base, lane);
        if constexpr (OUTLIERS > 0) {
            apart.begin(a.keys[2], sequence, head, base, lane);
            apart_norms.begin(a.keys[3], sequence, head, base, lane);
        }
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int left, int lane) {
        signs.template copy<WHOLE>(stage + KEY_SIGNS, left, lane);
        norms.template copy<WHOLE>(stage + KEY_NORMS, left, lane);
        if constexpr (OUTLIERS > 0) {
            apart.template copy<WHOLE>(stage + KEY_APART, left, lane);
            apart_norms.template copy<WHOLE>(stage + KEY_APART_NORMS, left, lane);
        }
    }
};

// What a stage's outlier channels bring along: for the lane that of `row` with its row of S, two products at a time, and those of
// 2 quarter and the next with their units and the query. Asked for a stage ahead, and read before the stage's signs are there.
struct Outliers {
    static constexpr bool HELD = SIGN_WORDS <= 2;  // longer rows are read as they are used
    const unsigned char* channels;
    int mine, two, held;
    uint4 rows[HELD ? PRODUCTS / 2 : 1];
    float4 units[2];
    word asked;

    DEVICE void seek(const Arguments& a, int sequence, int head, int stage, int row, int quarter) {
        channels = a.keys[4].of(sequence, head) + (long long)stage * OUTLIERS;
        ask(row, quarter);
    }
    DEVICE void ask(int row, int quarter) { mine = channels[row], two = ((const half_word*)channels)[quarter]; }
    DEVICE void fetch(const Arguments& a, const unsigned char* prepared, bool more, int row, int quarter) {
        const half_word* query = (const half_word*)(prepared + PREPARED_QUERY) + row * HEAD_DIM;
        const float4* all = (const float4*)(a.table + TABLE_UNITS);
        held = mine;
        if constexpr (HELD) {
#pragma unroll
            for (int at = 0; at < PRODUCTS / 2; at++) rows[at] = row_of(a.table, TABLE_ROW, quarter)[4 * at];
        }
        units[0] = all[two & 255], units[1] = all[two >> 8];
        asked = query[two & 255] | (word)query[two >> 8] << 16;
        channels += OUTLIERS;
        if (more) ask(row, quarter);
    }
    DEVICE const uint4* row_of(const unsigned char* table, int bytes, int quarter) const {
        return (const uint4*)(table + held * bytes) + quarter;
    }
};
DEVICE void multiply_columns(int (&sums)[2][4], const word (&bytes)[4], const uint4& columns, int product) {
    multiply_unsigned(sums[product % 2], bytes, product % 2 ? columns.z : columns.x, product % 2 ? columns.w : columns.y);
}

struct Keys {
    word sketch[PRODUCTS][2];
    float factor, offset;
    Outliers outliers;

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, const half_word*, int lane, int row, int quarter) {
        read_words((word(&)[PRODUCTS * 2])sketch, prepared + lane * LANE_BYTES);
        const float2 both = ((const float2*)(prepared + PREPARED_FACTORS))[quarter];
        factor = both.x, offset = both.y;
    }
    DEVICE void seek(const Arguments& a, int sequence, int head, int stage, int row, int quarter) {
        if constexpr (OUTLIERS > 0) outliers.seek(a, sequence, head, stage, row, quarter);
    }
    // What the next stage's scores need beside its tokens; `more` stages follow it.
    DEVICE void fetch(const Arguments& a, const unsigned char* prepared, bool more, int row, int quarter) {
        if constexpr (OUTLIERS > 0) outliers.fetch(a, prepared, more, row, quarter);
    }

    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments& a, const unsigned char*, int row, int quarter) {
        if constexpr (OUTLIERS > 0) {  // tile by tile: registers are short
#pragma unroll 1
            for (int tile = 0; tile < 2; tile++) {
                float scores[2];
                score_tile(scores, stage, a, 16 * tile + token_of(row), quarter);
                if (tile == 0) x[0][0] = scores[0], x[0][1] = scores[1];
                else x[1][0] = scores[0], x[1][1] = scores[1];
            }
        } else {
#pragma unroll
            for (int tile = 0; tile < 2; tile++) score_tile(x[tile], stage, a, 16 * tile + token_of(row), quarter);
        }
    }

    // Of tokens `token` and 8 more.
    DEVICE void score_tile(float (&x)[2], const unsigned char* stage, const Arguments& a, int token, int quarter) {
        int sums[4] = {}, taken[2][4] = {}, given[2][4] = {};  // of bits that count 128, 64
        Signs<SIGN_WORDS> signs;
        signs.read(stage + KEY_SIGNS, token, quarter);
        Signs<APART_WORDS> apart;
        if constexpr (OUTLIERS > 0) apart.read(stage + KEY_APART, token, quarter);
        uint4 columns;
        word bytes[4];
#pragma unroll
        for (int product = 0; product < PRODUCTS; product++) {
            if constexpr (OUTLIERS > 0) {
                if (product % 2 == 0) columns = Outliers::HELD ? outliers.rows[product / 2] : outliers.row_of(a.table, TABLE_ROW, quarter)[product / 2 * 4];
            }
            signs.bytes(bytes, product);
            multiply_unsigned(sums, bytes, sketch[product][0], sketch[product][1]);
            if constexpr (OUTLIERS > 0) multiply_columns(taken, bytes, columns, product);
            if constexpr (OUTLIERS > 0 && ALIKE) {
                apart.bytes(bytes, product);
                multiply_columns(given, bytes, columns, product);
            }
        }
        if constexpr (OUTLIERS > 0 && !ALIKE) {
#pragma unroll
            for (int product = 0; product < APART_PRODUCTS; product++) {
                if (product % 2 == 0) columns = outliers.row_of(a.table + TABLE_APART, TABLE_APART_ROW, quarter)[product / 2 * 4];
                apart.bytes(bytes, product);
                multiply_columns(given, bytes, columns, product);
            }
        }
        const half_word* norms = (const half_word*)(stage + KEY_NORMS) + token;
        const float norm[2] = {from_number(norms[0]), from_number(norms[8])};
        x[0] = norm[0] * ((float)(sums[0] * 256 + sums[1]) * factor - offset);
        x[1] = norm[1] * ((float)(sums[2] * 256 + sums[3]) * factor - offset);
        if constexpr (OUTLIERS > 0) {
            const half_word* others = (const half_word*)(stage + KEY_APART_NORMS) + token;
            const float other[2] = {from_number(others[0]), from_number(others[8])};
            float terms[4], more[4] = {};
#pragma unroll
            for (int index = 0; index < 4; index++) {  // what outliers take away from the sketch, and their own in its place
                const float4 unit = outliers.units[index % 2];
                const float away = (float)(taken[0][index] + 2 * taken[1][index]) * unit.x - unit.y;
                terms[index] = other[index / 2] * ((float)(given[0][index] + 2 * given[1][index]) * unit.z - unit.w) - norm[index / 2] * away;
            }
            multiply_short(more, pair(terms[0], terms[1]), pair(terms[2], terms[3]), outliers.asked);
            x[0] += more[0] + more[1];
            x[1] += more[2] + more[3];
        }
    }
};
