// Keys as SKETCH signs of projections and a norm; with OUTLIERS (8) channels of every 32 tokens sketched apart in OUTLIER_SKETCH.
//
// Signs go into the matrix unit as bytes: bit k of four bytes at once is 0 or 2^k, so the query's sketch is divided by 2^k for
// that bit. It is held in 16 bits, as two signed bytes in neighbouring columns (high, low), and all bits share their integer sums.
// What outliers take away from the sketch, and put in its place, is Σ_j q_j (S σ)_j over the eight outlier channels j: their rows
// of S, likewise in 16 bits, are the columns of a second product with the same bytes.
#pragma once
#include "cache.cuh"

constexpr int SIGN_WORDS = SKETCH / 128, STEPS = (SIGN_WORDS + 1) / 2;  // of a lane for one token; products to a bit
constexpr int APART_WORDS = OUTLIERS ? OUTLIER_SKETCH / 128 : 1, APART_STEPS = (APART_WORDS + 1) / 2;
constexpr int KEY_SIGNS = 0, KEY_NORMS = STAGE * SKETCH / 8, KEY_APART = KEY_NORMS + STAGE * 2;
constexpr int KEY_APART_NORMS = KEY_APART + (OUTLIERS ? STAGE * OUTLIER_SKETCH / 8 : 0);
constexpr int KEY_OUTLIERS = KEY_APART_NORMS + (OUTLIERS ? STAGE * 2 : 0), KEY_STAGE = KEY_OUTLIERS + (OUTLIERS ? 16 : 0);
constexpr int PLANES = 8;
// Of the prepared query: sketch for each lane; of heads 2^k-free factor and offset; then the query itself, high and low.
constexpr int LANE_BYTES = STEPS * PLANES * 2 * 4, PREPARED_FACTORS = 32 * LANE_BYTES, PREPARED_QUERY = PREPARED_FACTORS + HEADS * 2 * 4;
constexpr int PREPARED = PREPARED_QUERY + HEADS * 2 * HEAD_DIM * 2;
// Of the table, for the sketch and then that of outliers: words of channel, step, bit, quarter, (high, low), half; then sums of
// rows, of both; then the two units.
constexpr int TABLE_ROW = STEPS * PLANES * 16, TABLE_APART_ROW = APART_STEPS * PLANES * 16;
constexpr int TABLE_APART = HEAD_DIM * TABLE_ROW * 4, TABLE_SUMS = TABLE_APART + HEAD_DIM * TABLE_APART_ROW * 4;  // bytes

// Where sign `index` of the query's sketch goes: lane quarter, its byte, and the place that it is divided by.
struct Place {
    int quarter, byte, bit;
    DEVICE explicit Place(int index) : bit(index % 8) {
        const int at = index / 32, word_at = at % SIGN_WORDS;  // SIGN_WORDS words to a quarter, two to a product
        quarter = at / SIGN_WORDS, byte = ((word_at / 2 * PLANES + bit) * 2 + word_at % 2) * 4 + index / 8 % 4;
    }
};

template <int WORDS, int PRODUCTS>
struct Signs {
    word upper[2 * PRODUCTS], lower[2 * PRODUCTS];  // of tokens `row` and 8 more
    DEVICE void read(const unsigned char* signs, int token, int quarter) {
        word a[WORDS], b[WORDS];
        read_words(a, signs + (token * 4 + quarter) * 4 * WORDS);
        read_words(b, signs + ((token + 8) * 4 + quarter) * 4 * WORDS);
#pragma unroll
        for (int at = 0; at < 2 * PRODUCTS; at++) upper[at] = at < WORDS ? a[at] : 0, lower[at] = at < WORDS ? b[at] : 0;
    }
    DEVICE void plane(word (&bytes)[4], int step, int bit) const {
        const word mask = 0x01010101u << bit;
        bytes[0] = upper[2 * step] & mask, bytes[1] = lower[2 * step] & mask;
        bytes[2] = upper[2 * step + 1] & mask, bytes[3] = lower[2 * step + 1] & mask;
    }
};

struct KeyFeed {
    Feed<SKETCH / 8> signs;
    Feed<2> norms, apart_norms;
    Feed<OUTLIERS ? OUTLIER_SKETCH / 8 : 16> apart;
    const unsigned char* outliers;

    DEVICE void begin(const Arguments& a, int sequence, int head, int base, int lane) {
        signs.begin(a.keys[0], sequence, head, base, lane);
        norms.begin(a.keys[1], sequence, head, base, lane);
        if constexpr (OUTLIERS > 0) {
            apart.begin(a.keys[2], sequence, head, base, lane);
            apart_norms.begin(a.keys[3], sequence, head, base, lane);
            outliers = a.keys[4].of(sequence, head) + base / STAGE * OUTLIERS;
        }
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int left, int lane) {
        signs.template copy<WHOLE>(stage + KEY_SIGNS, left, lane);
        norms.template copy<WHOLE>(stage + KEY_NORMS, left, lane);
        if constexpr (OUTLIERS > 0) {
            apart.template copy<WHOLE>(stage + KEY_APART, left, lane);
            apart_norms.template copy<WHOLE>(stage + KEY_APART_NORMS, left, lane);
            if (lane == 0) copy_8_to_shared(stage + KEY_OUTLIERS, outliers);
            outliers += OUTLIERS;
        }
    }
};

struct Keys {
    word sketch[STEPS][PLANES][2];
    float factor, offset;

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, const half_word*, int lane, int row, int quarter) {
        read_words((word(&)[STEPS * PLANES * 2])sketch, prepared + lane * LANE_BYTES);
        const float2 both = ((const float2*)(prepared + PREPARED_FACTORS))[quarter];
        factor = both.x, offset = both.y;
    }

    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments& a, const unsigned char* prepared, int row, int quarter) {
        const int token = token_of(row);
        const half_word *norms = (const half_word*)(stage + KEY_NORMS), *apart_norms = (const half_word*)(stage + KEY_APART_NORMS);
        Signs<SIGN_WORDS, STEPS> signs[2];
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            signs[tile].read(stage + KEY_SIGNS, 16 * tile + token, quarter);
            int sums[4] = {};
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
#pragma unroll
                for (int bit = 0; bit < PLANES; bit++) {
                    word bytes[4];
                    signs[tile].plane(bytes, step, bit);
                    multiply_unsigned(sums, bytes, sketch[step][bit][0], sketch[step][bit][1]);
                }
            }
            x[tile][0] = from_number(norms[16 * tile + token]) * ((float)(sums[0] * 256 + sums[1]) * factor - offset);
            x[tile][1] = from_number(norms[16 * tile + token + 8]) * ((float)(sums[2] * 256 + sums[3]) * factor - offset);
        }
        if constexpr (OUTLIERS > 0) {
            const unsigned char* channels = stage + KEY_OUTLIERS;
            const int mine = channels[row], first = channels[2 * quarter], second = channels[2 * quarter + 1];
            const float* units = (const float*)(a.table + TABLE_SUMS) + 2 * HEAD_DIM;
            const half_word* query = (const half_word*)(prepared + PREPARED_QUERY) + row * HEAD_DIM;
            const word asked = query[first] | (word)query[second] << 16;
            float terms[2][4];
            products<SIGN_WORDS, STEPS>(terms, signs, a.table + (mine * TABLE_ROW + 4 * quarter) * 4, units[0],
                                        (const float*)(a.table + TABLE_SUMS), first, second);
            Signs<APART_WORDS, APART_STEPS> apart[2];
            apart[0].read(stage + KEY_APART, token, quarter);
            apart[1].read(stage + KEY_APART, 16 + token, quarter);
            float others[2][4];
            products<APART_WORDS, APART_STEPS>(others, apart, a.table + TABLE_APART + (mine * TABLE_APART_ROW + 4 * quarter) * 4,
                                               units[1], (const float*)(a.table + TABLE_SUMS) + HEAD_DIM, first, second);
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const int at = 16 * tile + token;
                const float n[2] = {from_number(norms[at]), from_number(norms[at + 8])};
                const float o[2] = {from_number(apart_norms[at]), from_number(apart_norms[at + 8])};
                const word low = pair(o[0] * others[tile][0] - n[0] * terms[tile][0], o[0] * others[tile][1] - n[0] * terms[tile][1]);
                const word high = pair(o[1] * others[tile][2] - n[1] * terms[tile][2], o[1] * others[tile][3] - n[1] * terms[tile][3]);
                float more[4] = {};
                multiply_short(more, low, high, asked);
                x[tile][0] += more[0] + more[1];
                x[tile][1] += more[2] + more[3];
            }
        }
    }

    // Of both tiles: rows of S times signs, `c/m (S σ)_j` for outlier channels j = 2 quarter and the next.
    template <int WORDS, int PRODUCTS>
    static DEVICE void products(float (&terms)[2][4], const Signs<WORDS, PRODUCTS> (&signs)[2], const unsigned char* rows, float unit,
                                const float* row_sums, int first, int second) {
        int high[2][4] = {}, low[2][4] = {};
#pragma unroll
        for (int step = 0; step < PRODUCTS; step++) {
#pragma unroll
            for (int bit = 0; bit < PLANES; bit++) {
                const uint4 columns = ((const uint4*)rows)[(step * PLANES + bit) * 4];
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    word bytes[4];
                    signs[tile].plane(bytes, step, bit);
                    multiply_unsigned(high[tile], bytes, columns.x, columns.y);
                    multiply_unsigned(low[tile], bytes, columns.z, columns.w);
                }
            }
        }
        const float sums[2] = {row_sums[first], row_sums[second]};
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                terms[tile][index] = (float)(high[tile][index] * 256 + low[tile][index]) * unit - sums[index & 1];
            }
        }
    }
};
