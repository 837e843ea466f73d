// One token's attention over a coded cache: what the codecs of keys and of values share with the walk over the tokens.
//
// A warp reads STAGE tokens at a time in two tiles of 16, with up to four query heads of one key head. Lanes are named by
// `row` = lane / 4 and `quarter` = lane % 4. Scores come out of the matrix unit with tokens as rows: lane (row, quarter) holds
// those of tokens `token_of(row)` and 8 more, for query head `quarter`. Weights go in with tokens along the sum, in pairs
// `quarter`, 7 - quarter, and 8 + quarter, 15 - quarter; so no shared memory bank is asked for twice at once.
//
// Fixed when compiled: NUMBER (0 bf16, 1 fp16), HEAD_DIM, and what the codecs name.
#pragma once
#include "warp.cuh"

constexpr int STAGE = 32, HEADS = 4, TILES = HEAD_DIM / 16;
constexpr float LOWEST = -1e30f;

// Tokens of all sequences and key heads: bytes from one to the next, of entries that follow each other.
struct Rows {
    const unsigned char* data;
    long long batch, head;
    DEVICE const unsigned char* of(int sequence, int key_head) const { return data + sequence * batch + key_head * head; }
};

struct Arguments {
    Rows query, keys[5], values[3], exact_keys, exact_values, first_keys, first_values;
    const unsigned char* prepared;  // the query as the codec of keys reads it
    const unsigned char* table;     // the key codec's constants
    const unsigned char* levels;    // the value codec's constants
    const float* rotation;          // [HEAD_DIM, HEAD_DIM] that the mixture of coded values is multiplied by, its rows one after another
    const unsigned char* mask;      // [sequences, tokens], 1 for a token that is seen
    half_word* out;
    float* partial;
    word* tickets;
    const int* lengths;  // on the device: coded keys, coded values, tokens; or null, and those below count
    int coded_keys, coded_values, tokens;
    int first;           // tokens at the beginning that are exact
    int group;           // query heads of a key head
    int mask_stride;
    int key_ring, value_ring;  // exact tokens lie in rings of so many less one; 0 if one after another
    int apart;           // whether the first part reads nothing but the exact tokens
    float scaling;       // of the scores, times log2 e
};

#if NUMBER == 0
constexpr int SUBNORMAL = 133, EXTRA = 96;  // an integer's bits are the number times 2^-SUBNORMAL; weights are held times 2^EXTRA
constexpr float SLACK = 8.0f;               // of the largest score before all is scaled again
DEVICE word multiply_add(word a, word b, word c) { return multiply_add_bf16(a, b, c); }
DEVICE void multiply_tile(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_bf16(c, a, b0, b1); }
DEVICE void multiply_short(float (&c)[4], word a0, word a1, word b) { multiply_short_bf16(c, a0, a1, b); }
DEVICE word pair(float low, float high) { return pair_bf16(low, high); }
DEVICE half_word to_number(float value) { return to_bf16(value); }
DEVICE float from_number(half_word bits) { return from_bf16(bits); }
#else
constexpr int SUBNORMAL = 24, EXTRA = 0;
constexpr float SLACK = 4.0f;
DEVICE word multiply_add(word a, word b, word c) { return multiply_add_fp16(a, b, c); }
DEVICE void multiply_tile(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_fp16(c, a, b0, b1); }
DEVICE void multiply_short(float (&c)[4], word a0, word a1, word b) { multiply_short_fp16(c, a0, a1, b); }
DEVICE word pair(float low, float high) { return pair_fp16(low, high); }
DEVICE half_word to_number(float value) { return to_fp16(value); }
DEVICE float from_number(half_word bits) { return from_fp16(bits); }
#endif

constexpr float MOST = NUMBER == 0 ? 3.38953139e38f : 65504.0f, LEAST = NUMBER == 0 ? 1.17549435e-38f : 5.96046448e-8f;  // numbers

DEVICE word multiply_pair(word a, word b) { return multiply_add(a, b, 0x80008000u); }
DEVICE constexpr word twice(word bits) { return bits | bits << 16; }

// 2^exponent, of either sign.
DEVICE constexpr float two_to(int exponent) {
    float value = 1.0f;
    for (int step = 0; step < exponent; step++) value *= 2.0f;
    for (int step = 0; step > exponent; step--) value *= 0.5f;
    return value;
}

DEVICE int token_of(int row) { return row & 1 ? 7 - row / 2 : row / 2; }

DEVICE word lower_halves(word a, word b) { return pick_bytes(a, b, 0x5410u); }
DEVICE word upper_halves(word a, word b) { return pick_bytes(a, b, 0x7632u); }

template <int WORDS>
DEVICE void read_words(word (&words)[WORDS], const unsigned char* shared) {
    if constexpr (WORDS == 1) {
        words[0] = *(const word*)shared;
    } else if constexpr (WORDS == 2) {
        uint2 read = *(const uint2*)shared;
        words[0] = read.x, words[1] = read.y;
    } else {
#pragma unroll
        for (int at = 0; at < WORDS; at += 4) {
            uint4 read = *(const uint4*)(shared + 4 * at);
            words[at] = read.x, words[at + 1] = read.y, words[at + 2] = read.z, words[at + 3] = read.w;
        }
    }
}

// Where the chunk of 16 bytes with this number lies, of rows of CHUNKS (1, 2, 4, 8): the same of eight rows in a row in different banks.
template <int CHUNKS>
DEVICE constexpr int spread(int chunk) { return chunk ^ (chunk >> 3 & CHUNKS - 1); }

// Rows of BYTES bytes a token on their way to shared memory, a stage at a time: where this lane's first 16 bytes of the first come from.
template <int BYTES, bool SPREAD = false>
struct Feed {
    const unsigned char* source;

    int place;  // and where it goes

    DEVICE void begin(const Rows& rows, int sequence, int head, int lane) {
        source = rows.of(sequence, head) + 16 * lane;
        place = 16 * (SPREAD ? spread<BYTES / 16>(lane) : lane);
        hold(source);
        if (SPREAD) hold(place);
    }

    // Stage `at`, to `shared`; unless it is WHOLE, zeros where rows from `left` on begin.
    template <bool WHOLE>
    DEVICE void copy(unsigned char* shared, int at, int left, int lane) {
        const unsigned char* from = source + (unsigned long long)at * (STAGE * BYTES);
#pragma unroll
        for (int chunk = 0; chunk < STAGE * BYTES; chunk += 512) {
            if (STAGE * BYTES - chunk >= 512 || 16 * lane < STAGE * BYTES - chunk) {
                const int turned = SPREAD && BYTES == 128 && chunk % 1024 ? place ^ 64 : place;
                copy_to_shared(shared + turned + chunk, from + chunk, WHOLE || chunk + 16 * lane < left * BYTES);
            }
        }
    }
};

// Zeros in place of the stage's rows from `left` on, whatever the memory behind the last token holds.
template <int BYTES>
DEVICE void clear_rows(unsigned char* shared, int left, int lane) {
    for (int at = left * BYTES + 2 * lane; at < STAGE * BYTES; at += 64) *(half_word*)(shared + at) = 0;
}
