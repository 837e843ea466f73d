// Activations that a warp of `kept.cu` keeps, and what lies where in the shared memory of its block.
//
// Fixed when compiled: what `kept.cu` names.
#pragma once
#define FIELD_BITS (ACTIVATION ? 10 : 8)
#include "fields.cuh"
#include "sending.cuh"
#include "parts.cuh"

constexpr int WARPS = INPUT_WARPS * ROW_WARPS, PAIRS = COLUMNS * 4, UNIT_CHUNKS = UNIT / 32;  // pairs of tokens
constexpr int TILE_BYTES = 160 * PAIRS;  // sums of a tile: pairs of tokens by 16 rows and four empty, no bank conflicts
// Entries are sums of two rows and two tokens; a block adds up OWNED of them for the cluster.
constexpr int TILE_ENTRIES = PAIRS * 8, ENTRIES = ROW_WARPS * TILE_ENTRIES, OWNED = ENTRIES / SPLITS, SLOTS = SPLITS > 1 ? 4 : 0;
// Shared memory: what comes ahead; sums of two rounds; what blocks sent, of SLOTS rounds; what zero points contribute; barriers.
constexpr int SUMS_AT = STAGES * WARPS * PART_BYTES, SENT_AT = SUMS_AT + 2 * WARPS * TILE_BYTES;
constexpr int ZERO_SUMS_AT = SENT_AT + SLOTS * ENTRIES * 16, BARRIERS_AT = ZERO_SUMS_AT + WARPS * GROUPS_OF_UNIT * PAIRS * 16;
constexpr int SENDERS = WARPS * 32 / ENTRIES, WRITERS = WARPS * 32 / OWNED;  // sets of threads that take turns
static_assert(SENDERS * ENTRIES == WARPS * 32 && OWNED * SPLITS == ENTRIES, "all threads have one entry");

// Codes cut out of their words are integers times 2^-133 in bf16, whose lowest eight bits count evenly, 2^-24 in fp16. Activations carry a
// power of two that brings the largest of a token and a unit to [2^119, 2^120), or [2^13, 2^14); not more than 2^126.
constexpr int MOST = ACTIVATION ? 140 : 246, LEAST = ACTIVATION ? -2 : 6, BACK = ACTIVATION ? 151 : 260;

typedef word Tokens[COLUMNS][UNIT_CHUNKS][4];  // of a lane: tokens lane / 4 and eight on, inputs 8 (lane % 4) … of each chunk

template <int CHUNK>
DEVICE void scale_chunks(Tokens& numbers, int column, int carried) {
    if constexpr (CHUNK < UNIT_CHUNKS) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            word& both = numbers[column][CHUNK][pair];
            int exponent = 127 + carried - (int)(offsets_of(CHUNK) >> 4 * pair & 15);
#if ACTIVATION == 0
            both = multiply_add(both, twice((word)exponent << 7), 0x80008000u);
#else
            float factor = as_float((word)exponent << 23);
            both = pack_fp16(from_fp16((half_word)(both & 0xFFFFu)) * factor, from_fp16((half_word)(both >> 16)) * factor);
#endif
        }
        scale_chunks<CHUNK + 1>(numbers, column, carried);
    }
}

// Asks for a lane's activations of a unit.
DEVICE void load_tokens(Tokens& numbers, const half_word* x, int unit, int inputs, int tokens, int stride, int lane) {
    x += unit * UNIT + lane % 4 * 8;
    bool whole = unit * UNIT + UNIT <= inputs;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        int token = column * 8 + lane / 4;
        const half_word* from = x + (long)(token < tokens ? token : tokens - 1) * stride;
        uint4(&raw)[UNIT_CHUNKS] = *(uint4(*)[UNIT_CHUNKS])numbers[column];
        if (whole) {
#pragma unroll
            for (int chunk = 0; chunk < UNIT_CHUNKS; chunk++) raw[chunk] = load_now(from + chunk * 32);
        } else {
#pragma unroll
            for (int chunk = 0; chunk < UNIT_CHUNKS; chunk++) {
                raw[chunk] = {0, 0, 0, 0};
                if (unit * UNIT + chunk * 32 + lane % 4 * 8 < inputs) raw[chunk] = load_now(from + chunk * 32);
            }
        }
    }
}

// Makes up for the offsets and gives them their power of two. `factors`: what takes the sums of tokens lane % 4 * 2 and the next back.
DEVICE void scale_tokens(Tokens& numbers, float2 (&factors)[COLUMNS], int lane) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        word most = 0;
#pragma unroll
        for (int part = 0; part < UNIT_CHUNKS * 4; part++) most = larger_magnitudes(most, numbers[column][part / 4][part % 4]);
        float largest = maximum(from_number((half_word)(most & 0x7FFFu)), from_number((half_word)(most >> 16 & 0x7FFFu)));
        largest = maximum(largest, from_lane(largest, 1));
        largest = maximum(largest, from_lane(largest, 2));
        int carried = MOST - (int)(as_word(largest) >> 23);
        carried = carried < LEAST ? LEAST : carried < 126 ? carried : 126;
        scale_chunks<0>(numbers, column, carried);
        word factor = (word)(BACK - carried) << 23;
        factors[column].x = as_float(word_from_lane(factor, lane % 4 * 8));
        factors[column].y = as_float(word_from_lane(factor, lane % 4 * 8 + 4));
    }
}
