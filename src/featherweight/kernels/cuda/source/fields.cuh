// Codes as the matrix unit takes them without any arithmetic: a code of b bits, cut out where it lies in the mantissa of an fp16
// number, is the subnormal q 2^(offset − 24), exactly. Activations make up for the offset and carry the rest as a power of two:
// they are made fp16 when they come into shared memory, so that the largest of a unit lies just below 2^14.
#pragma once
#include "tiles.cuh"

constexpr int GROUPS_OF_UNIT = BLOCKS * GROUPS, MANTISSA_FP16 = 10;
constexpr int STRIDE = UNIT + 32;  // of a token's activations in shared memory: no bank conflicts
constexpr int WIDTH = COLUMNS * 8;

// Shift that brings the field at bit `place` of a half into the mantissa, as few different ones as possible.
DEVICE constexpr int shift_of(int place) { return place / (MANTISSA_FP16 / BITS * BITS) * (MANTISSA_FP16 / BITS * BITS); }

// Bit of a half at which pair `pair` of a cell lies, and what is left of it after the shift.
DEVICE constexpr int place_of(int pair) { return BITS == 8 ? pair % 2 * 8 : BITS == 3 ? (pair < 15 ? pair % 5 * 3 : 0) : pair * BITS; }
DEVICE constexpr int offset_of(int pair) { return place_of(pair) - shift_of(place_of(pair)); }

// Offsets of the four pairs that a lane holds of chunk `chunk`, four bits each.
DEVICE constexpr word offsets_of(int chunk) {
    int pair = chunk % CHUNKS * 4;
    return offset_of(pair) | offset_of(pair + 1) << 4 | offset_of(pair + 2) << 8 | offset_of(pair + 3) << 12;
}

template <int PAIR>
DEVICE word field_pair(const word* cell) {
    constexpr word mask = twice(((1u << BITS) - 1) << offset_of(PAIR));
    if constexpr (BITS == 3 && PAIR == 15) {
        word bits = select_bits(cell[0] >> 15, 0x00010001u, 0);
        bits = select_bits(cell[1] >> 14, 0x00020002u, bits);
        return select_bits(cell[2] >> 13, 0x00040004u, bits);
    } else {
        return cell[BITS == 8 ? PAIR / 2 : BITS == 3 ? PAIR / 5 : 0] >> shift_of(place_of(PAIR)) & mask;
    }
}

// Operand of step STEP (16 inputs) of a unit from a lane's words.
template <int STEP>
DEVICE void field_step(const word* words, word (&a)[4]) {
    constexpr int chunk = STEP / 2, cell = chunk / CHUNKS * 2 * CELL_WORDS, pair = chunk % CHUNKS * 4 + STEP % 2 * 2;
    a[0] = field_pair<pair>(words + cell);
    a[1] = field_pair<pair>(words + cell + CELL_WORDS);
    a[2] = field_pair<pair + 1>(words + cell);
    a[3] = field_pair<pair + 1>(words + cell + CELL_WORDS);
}

// The activations of one warp's units in shared memory, by stages: fp16 `[tokens][STRIDE]`; then, `[…][WIDTH]`, what the zero
// points contribute to each group (their sum, on a symmetric grid times −z), and 2^24 over the factor that they carry.
struct Activations {
    unsigned char* stages;
    int bytes, tokens, inputs, stride, row_warp, row_warps, lane;
    const half_word* x;

    DEVICE const unsigned char* stage(int index) const { return stages + index * bytes; }
    DEVICE const float* sums(int index) const { return (const float*)(stages + index * bytes + tokens * STRIDE * 2); }

    DEVICE void put(int unit, int index) const {
        for (int token = row_warp; token < tokens; token += row_warps) put_token(token, unit, index);
    }

    DEVICE void put_token(int token, int unit, int index) const {
        constexpr int PIECES = UNIT / 256;  // of eight inputs, to a lane
        float values[PIECES][8];
        float largest = 0.0f;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int input = unit * UNIT + (piece * 32 + lane) * 8;
            uint4 raw = {0, 0, 0, 0};
            if (input < inputs) raw = load_now(x + (long)token * stride + input);
            const word* words = (const word*)&raw;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                values[piece][i] = from_number((half_word)(words[i / 2] >> i % 2 * 16));
                largest = maximum(largest, magnitude(values[piece][i]));
            }
        }
        int carried = 140 - (int)(warp_maximum(as_word(largest)) >> 23);  // the largest times 2^carried is in [2^13, 2^14)
        carried = carried < 126 ? carried : 126;
        float* beside = (float*)(stages + index * bytes + tokens * STRIDE * 2);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            int place = piece * 32 + lane;
            word offsets = offsets_of(0);
            if (CHUNKS > 1) offsets = place / 4 % CHUNKS == 1 ? offsets_of(1) : offsets;
            if (CHUNKS > 2) offsets = place / 4 % CHUNKS == 2 ? offsets_of(2) : place / 4 % CHUNKS == 3 ? offsets_of(3) : offsets;
            uint4 made;
            word* words = (word*)&made;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float factor = as_float((word)(127 + carried - (int)(offsets >> 4 * i & 15)) << 23);
                words[i] = pack_fp16(values[piece][2 * i] * factor, values[piece][2 * i + 1] * factor);
                sum += values[piece][2 * i] + values[piece][2 * i + 1];
            }
            *(uint4*)(stages + index * bytes + 2 * (token * STRIDE + place * 8)) = made;
#pragma unroll
            for (int distance = 1; distance < GROUP / 8; distance *= 2) sum += from_lane(sum, distance);
            if (place % (GROUP / 8) == 0) {
                float zero = ZEROS ? 1.0f : -(float)(1 << (BITS - 1));
                beside[place * 8 / GROUP * WIDTH + token] = sum * as_float((word)(103 + carried) << 23) * zero;  // 2^(carried − 24)
            }
        }
        int back = 151 - carried;
        if (lane == 0) beside[GROUPS_OF_UNIT * WIDTH + token] = as_float((word)(back < 254 ? back : 254) << 23);
    }
};
