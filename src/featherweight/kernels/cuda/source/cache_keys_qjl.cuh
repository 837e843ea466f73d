// Keys as SKETCH signs of projections and a norm; with OUTLIERS (8) channels of every 32 tokens sketched apart in OUTLIER_SKETCH.
//
// Signs go into the matrix unit as they lie, a bit each: it counts those that a token's row of bits and a column have in common. Columns
// are the bit planes of integers, four of whose heads or eight of whose channels make a product. A count of at most 256 is a 16-bit number as it stands, so a second product,
// in 16 bits, weighs the planes by powers of two and adds them up: of the query's sketch, in PLANES bits; and of the outlier channels' rows
// of S, in 8 bits, with the query's channels for weights. These take from the sketch what outliers have in it, and make their own.
#pragma once
#include "cache.cuh"

constexpr int MOST_BESIDE = OUTLIERS ? 8 : 16;  // warps whose registers hold the making of scores and the adding of values at once
constexpr int SIGN_WORDS = SKETCH / 128, APART_WORDS = OUTLIERS ? OUTLIER_SKETCH / 128 : 1;  // of a lane for one token
constexpr bool ALIKE = SIGN_WORDS == APART_WORDS;  // both sketches have the same columns of S
constexpr int KEY_SIGNS = 0, KEY_NORMS = STAGE * SKETCH / 8, KEY_APART = KEY_NORMS + STAGE * 2;
constexpr int KEY_APART_NORMS = KEY_APART + (OUTLIERS ? STAGE * OUTLIER_SKETCH / 8 : 0);
constexpr int KEY_STAGE = KEY_APART_NORMS + (OUTLIERS ? STAGE * 2 : 0);

constexpr int PLANES = 12, SLICES = PLANES / 2, TABLE_PLANES = 8;  // a slice: two planes of four heads
constexpr int KEY_EXTRA = NUMBER == 0 ? 96 : 4;  // weights are held times 2^KEY_EXTRA
constexpr float LARGEST = (1 << (PLANES - 1)) - 1, UNIT = two_to(SUBNORMAL - KEY_EXTRA);  // of the query's integers; what one of a sum counts
// Of the prepared query: bits for each lane; of heads factor and offset; then of every channel for all eight columns, the heads' high and
// low ones, a weight and the sums of its entries.
constexpr int SKETCH_WORDS = (SLICES * SIGN_WORDS + 3) / 4 * 4, LANE_BYTES = 4 * SKETCH_WORDS, PREPARED_FACTORS = 32 * LANE_BYTES;
constexpr int ENTRY = ALIKE ? 2 : 4, PREPARED_QUERY = PREPARED_FACTORS + HEADS * 2 * 4;  // ENTRY: words
constexpr int PREPARED = PREPARED_QUERY + (OUTLIERS ? HEAD_DIM * 2 * HEADS * 4 * ENTRY : 0);
// Of the table, for the sketch and then that of outliers: bits of channel, plane by plane, in chunks of 16 bytes of each quarter; then of
// every channel the sum of its entries, high and low, for both sketches; then every channel's unit.
constexpr int TABLE_ROW = TABLE_PLANES * SKETCH / 8, TABLE_APART_ROW = TABLE_PLANES * 16 * APART_WORDS, TABLE_APART = HEAD_DIM * TABLE_ROW;
constexpr int TABLE_SUMS = TABLE_APART + HEAD_DIM * TABLE_APART_ROW, TABLE_UNITS = TABLE_SUMS + HEAD_DIM * 8;

// Where word `word_at` of a plane of head `head` goes in the prepared query.
DEVICE int place_of(int head, int plane, int word_at) {
    const int lane = (2 * head + plane % 2) * 4 + word_at % 4;
    return lane * SKETCH_WORDS + plane / 2 * SIGN_WORDS + word_at / 4;
}

// A lane's signs of tokens `row` and 8 more.
template <int WORDS>
struct Signs {
    static constexpr int STEPS = (WORDS + 1) / 2;  // of 256 signs, or 128
    word steps[STEPS][4];

    // Lanes name rows of 16 bytes: of eight tokens, the eight after them, and both again further on.
    static DEVICE int place(int lane) {
        return 16 * spread<WORDS>((lane / 8 % 2 * 8 + token_of(lane % 8)) * WORDS + (WORDS == 1 ? 0 : lane / 16));
    }
    DEVICE void read(const unsigned char* signs, int tile, int place) {
        signs += 256 * WORDS * tile;
        if constexpr (WORDS == 1) {
            load_rows(steps[0][0], steps[0][1], signs + place);
        } else {
#pragma unroll
            for (int step = 0; step < STEPS; step++) load_rows(steps[step], signs + (place ^ 32 * step));
        }
    }
    // What they have in common with eight columns, in a step, as 16-bit numbers of both tokens.
    DEVICE void count(word (&numbers)[2], const word* column, int step) const {
        int counts[4] = {};
        if constexpr (WORDS == 1) count_common(counts, steps[0][0], steps[0][1], column[0]);
        else count_common(counts, steps[step], column[2 * step], column[2 * step + 1]);
        numbers[0] = lower_halves(counts[0], counts[1]), numbers[1] = lower_halves(counts[2], counts[3]);
    }
    // sums += counts for two planes, times their weights.
    DEVICE void weigh(float (&sums)[4], const word* first, const word* second, word weight, word other) const {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            word a[2], b[2];
            count(a, first, step);
            count(b, second, step);
            const word numbers[4] = {a[0], a[1], b[0], b[1]};
            multiply_tile(sums, numbers, weight, other);
        }
    }
};

struct KeyFeed {
    Feed<SKETCH / 8, true> signs;
    Feed<2> norms, apart_norms;
    Feed<OUTLIERS ? OUTLIER_SKETCH / 8 : 16, true> apart;

    DEVICE void begin(const Arguments& a, int sequence, int head, int lane) {
        signs.begin(a.keys[0], sequence, head, lane);
        norms.begin(a.keys[1], sequence, head, lane);
        if constexpr (OUTLIERS > 0) {
            apart.begin(a.keys[2], sequence, head, lane);
            apart_norms.begin(a.keys[3], sequence, head, lane);
        }
    }
    template <bool WHOLE>
    DEVICE void copy(unsigned char* stage, int at, int left, int lane) {
        signs.template copy<WHOLE>(stage + KEY_SIGNS, at, left, lane);
        norms.template copy<WHOLE>(stage + KEY_NORMS, at, left, lane);
        if constexpr (OUTLIERS > 0) {
            apart.template copy<WHOLE>(stage + KEY_APART, at, left, lane);
            apart_norms.template copy<WHOLE>(stage + KEY_APART_NORMS, at, left, lane);
        }
    }
};

// What a stage's outlier channels bring along: for the lane the planes of that of `row`, and sums and weights of those of
// 2 quarter and the next. Asked for a stage ahead, and read before the stage's signs are there.
struct Outliers {
    static constexpr bool HELD = SIGN_WORDS <= 2;  // longer rows are read as they are used
    static constexpr int CHUNKS = TABLE_PLANES * SIGN_WORDS / 4;
    const unsigned char *channels, *planes, *entries;  // this lane's
    uint2 asked;
    int held;
    uint4 chunks[HELD ? CHUNKS : 1];
    word first[ENTRY], second[ENTRY], weights[TABLE_PLANES];

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, int row, int quarter) {
        planes = a.table + 16 * quarter, entries = prepared + PREPARED_QUERY + 4 * ENTRY * row;
    }
    DEVICE void seek(const Arguments& a, int sequence, int head, int stage) {
        channels = a.keys[4].of(sequence, head);
        ask(stage);
    }
    DEVICE void ask(int stage) { asked = *(const uint2*)(channels + (unsigned long long)stage * OUTLIERS); }
    DEVICE void fetch(int next, int row, int quarter) {
        held = pick_bytes(asked.x, asked.y, row) & 255;
        const word two = pick_bytes(asked.x, asked.y, 0x10 + 0x22 * quarter);
        read_words(first, entries + (two & 255) * (8 * HEADS * ENTRY));
        read_words(second, entries + (two >> 8 & 255) * (8 * HEADS * ENTRY));
        if constexpr (HELD) {
#pragma unroll
            for (int at = 0; at < CHUNKS; at++) chunks[at] = row_of(0, TABLE_ROW)[4 * at];
        }
        if (next >= 0) ask(next);
    }
    DEVICE const uint4* row_of(int table, int bytes) const { return (const uint4*)(planes + table + held * bytes); }
    // Weights of all planes, the highest being negative.
    DEVICE void weigh() {
        weights[0] = lower_halves(first[0], second[0]);
#pragma unroll
        for (int plane = 1; plane < TABLE_PLANES; plane++) {
            const int exponent = plane, sign = plane == TABLE_PLANES - 1 ? 0x8000 : 0;
            weights[plane] = multiply_pair(weights[0], twice(sign | (NUMBER == 0 ? (127 + exponent) << 7 : (15 + exponent) << 10)));
        }
    }
    // What all signs being set would count, in two columns.
    DEVICE float whole(bool apart) const {
        float c[4] = {};
        const word a = first[apart ? ENTRY / 2 : 1], b = second[apart ? ENTRY / 2 : 1];
        const word high = lower_halves(a, b), low = upper_halves(a, b), rows[4] = {high, high, low, low};
        multiply_tile(c, rows, weights[0], weights[0]);
        return c[0] + c[1];
    }
    // sums += planes of the channels, weighed.
    template <int WORDS>
    DEVICE void add(float (&sums)[4], const Signs<WORDS>& signs, const uint4* row) const {
        constexpr int PAIRS = TABLE_PLANES / 2, CHUNKS_OF_PAIR = WORDS / 2;  // 0: two pairs to a chunk
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            word words[2 * WORDS < 4 ? 4 : 2 * WORDS];
#pragma unroll
            for (int at = 0; at < (CHUNKS_OF_PAIR ? CHUNKS_OF_PAIR : 1); at++) {
                const int index = CHUNKS_OF_PAIR ? pair * CHUNKS_OF_PAIR + at : pair / 2;
                const uint4 chunk = HELD && WORDS == SIGN_WORDS ? chunks[index % (HELD ? CHUNKS : 1)] : row[4 * index];
                words[4 * at] = chunk.x, words[4 * at + 1] = chunk.y, words[4 * at + 2] = chunk.z, words[4 * at + 3] = chunk.w;
            }
            const int first = CHUNKS_OF_PAIR ? 0 : pair % 2 * 2;
            signs.weigh(sums, words + first, words + first + WORDS, weights[2 * pair], weights[2 * pair + 1]);
        }
    }
};

struct Keys {
    word sketch[SKETCH_WORDS];
    float factor, offset;
    int mine, signs_at, apart_at, norms_at;  // where in a stage this lane reads
    Outliers outliers;

    DEVICE void begin(const Arguments& a, const unsigned char* prepared, const half_word*, int lane, int row, int quarter) {
        read_words(sketch, prepared + lane * LANE_BYTES);
        const float2 both = ((const float2*)(prepared + PREPARED_FACTORS))[quarter];
        factor = both.x, offset = both.y;
        mine = row == 2 * quarter ? -1 : 0;  // a head's first column takes its planes
        signs_at = KEY_SIGNS + Signs<SIGN_WORDS>::place(lane), apart_at = KEY_APART + Signs<APART_WORDS>::place(lane), norms_at = KEY_NORMS + 2 * token_of(row);
        hold(mine), hold(signs_at), hold(norms_at);
        if (!ALIKE) hold(apart_at);
        if constexpr (OUTLIERS > 0) outliers.begin(a, prepared, row, quarter);
    }
    DEVICE void seek(const Arguments& a, int sequence, int head, int stage) {
        if constexpr (OUTLIERS > 0) outliers.seek(a, sequence, head, stage);
    }
    // What the scores of the stage sought need beside its tokens; `next` is sought then, unless it is -1.
    DEVICE void fetch(int next, int row, int quarter) {
        if constexpr (OUTLIERS > 0) outliers.fetch(next, row, quarter);
    }

    // Minus the weights of two planes of the query's sketch.
    static DEVICE constexpr word weight(int slice) {
        const int base = NUMBER == 0 ? 127 : 15, mantissa = NUMBER == 0 ? 7 : 10;
        const word low = 0x8000u | (base + KEY_EXTRA + 2 * slice) << mantissa, high = (slice == SLICES - 1 ? 0 : 0x8000u) | (base + KEY_EXTRA + 2 * slice + 1) << mantissa;
        return low | high << 16;
    }

    // `between(tile)` runs beside the tile's products.
    template <class Between>
    DEVICE void score(float (&x)[2][2], const unsigned char* stage, const Arguments& a, const unsigned char*, int row, int quarter, const Between& between) {
        float less = -offset, more = 0;
        if constexpr (OUTLIERS > 0) {
            const float unit = factor * two_to(KEY_EXTRA - SUBNORMAL - 1) * two_to(-KEY_EXTRA);
            outliers.weigh();
            const float whole = outliers.whole(false) * unit;
            less += whole;
            more = (ALIKE ? whole : outliers.whole(true) * unit) * RATIO;
        }
#pragma unroll
        for (int tile = 0; tile < 2; tile++) score_tile(x[tile], stage, tile, less, more, between);
    }

    static constexpr float RATIO = OUTLIERS ? (float)SKETCH / OUTLIER_SKETCH : 0;

    template <class Between>
    DEVICE void score_tile(float (&x)[2], const unsigned char* stage, int tile, float less, float more, const Between& between) {
        float sums[4] = {}, others[4] = {};  // of the sketch less outliers', negative; of outliers
        Signs<SIGN_WORDS> signs;
        signs.read(stage, tile, signs_at);
#pragma unroll
        for (int slice = 0; slice < SLICES; slice += 2) {
            const word* column = sketch + slice * SIGN_WORDS;
            signs.weigh(sums, column, column + SIGN_WORDS, weight(slice) & mine, weight(slice + 1) & mine);
        }
        between(tile);
        const half_word* norms = (const half_word*)(stage + norms_at + 32 * tile);
        if constexpr (OUTLIERS > 0) {
            Signs<APART_WORDS> apart;
            apart.read(ALIKE ? stage + (KEY_APART - KEY_SIGNS) : stage, tile, ALIKE ? signs_at : apart_at);
            outliers.add(sums, signs, outliers.row_of(0, TABLE_ROW));
            outliers.add(others, apart, ALIKE ? outliers.row_of(0, TABLE_ROW) : outliers.row_of(TABLE_APART, TABLE_APART_ROW));
        }
        x[0] = from_number(norms[0]) * (less - (sums[0] + sums[1]) * factor);
        x[1] = from_number(norms[8]) * (less - (sums[2] + sums[3]) * factor);
        if constexpr (OUTLIERS > 0) {
            const half_word* apart_norms = (const half_word*)(stage + norms_at + (KEY_APART_NORMS - KEY_NORMS) + 32 * tile);
            x[0] += from_number(apart_norms[0]) * ((others[0] + others[1]) * (factor * RATIO) - more);
            x[1] += from_number(apart_norms[8]) * ((others[2] + others[3]) * (factor * RATIO) - more);
        }
    }
};
