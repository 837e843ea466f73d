// Integer codes of 2, 3, 4 or 8 bits (BITS) to operands of the matrix unit: (q − z), exact in fp16 and bf16.
//
// A lane holds two rows, eight apart. Of each chunk of 32 inputs it holds eight consecutive ones, 8 t … 8 t + 7 for t = lane % 4.
// The codes of one row lie in cells: CELL_WORDS words of CHUNKS chunks, one cell of either row in turn. In a word a pair of
// codes has the same place in either half, so that one operation takes both out:
//
//   4 bits  1 word  of 1 chunk:   pair p at bit 4 p
//   2 bits  1 word  of 2 chunks:  pair p at bit 2 p
//   3 bits  3 words of 4 chunks:  pair p < 15 in word p / 5 at bit 3 (p % 5); bit r of pair 15 in word r at bit 15
//   8 bits  2 words of 1 chunk:   pair p in word p / 2 at bit 8 (p % 2)
#pragma once
#include "numbers.cuh"

constexpr int CELL_WORDS = BITS == 8 ? 2 : BITS == 3 ? 3 : 1;
constexpr int CHUNKS = BITS == 3 ? 4 : BITS == 2 ? 2 : 1;
constexpr int LOADS = UNIT * BITS / 256;  // of 16 bytes to a lane, for 16 rows and UNIT inputs

// Loads of a unit that are used up with its first `inputs`.
DEVICE constexpr int loads_before(int inputs) { return inputs / (32 * CHUNKS) * 2 * CELL_WORDS / 4; }

// Loads of a unit that its first `inputs` need.
DEVICE constexpr int loads_for(int inputs) { return ((inputs + 32 * CHUNKS - 1) / (32 * CHUNKS) * 2 * CELL_WORDS + 3) / 4; }

// Shift that brings the field at bit `place` of a half into the mantissa, as few different ones as possible.
DEVICE constexpr int field_shift(int place) {
    constexpr int fields = MANTISSA / BITS > 0 ? MANTISSA / BITS : 1;
    return place / (fields * BITS) * (fields * BITS);
}

// What turns a field into (q − z): zero points of two rows.
struct ZeroPair {
#if BITS == 8 && ACTIVATION == 0
    float minus_zero[2];  // −(2^23 + z)
    DEVICE void symmetric() { minus_zero[0] = minus_zero[1] = -8388736.0f; }
    DEVICE void set(word zeros) {
        minus_zero[0] = -8388608.0f - (float)(zeros & 0xFFu);
        minus_zero[1] = -8388608.0f - (float)(zeros >> 8 & 0xFFu);
    }
#elif ZEROS
    word minus_zero[2];  // −z in both halves
    DEVICE void symmetric() {}
    DEVICE void set(word zeros) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            word field = pick_bytes(zeros, 0, row ? 0x4141u : 0x4040u) | MAGIC;  // 2^MANTISSA + z
            minus_zero[row] = multiply_add(field, minus(1), MAGIC);
        }
    }
#else
    DEVICE void symmetric() {}
    DEVICE void set(word) {}
#endif
};

// Field at bit PLACE of both halves of `bits`, as (q − z).
template <int PLACE>
DEVICE word field(word bits, const ZeroPair& zero, int row) {
    constexpr int shift = field_shift(PLACE), offset = PLACE - shift;
    word value = select_bits(bits >> shift, twice(((1u << BITS) - 1) << offset), MAGIC);  // 2^MANTISSA + q 2^offset
#if ZEROS && !(BITS == 8 && ACTIVATION == 0)
    word constant = multiply_add(minus(1 << (MANTISSA - offset)), power_of_two(0), zero.minus_zero[row]);
    return multiply_add(value, power_of_two(-offset), constant);
#else
    return multiply_add(value, power_of_two(-offset), minus((1 << (MANTISSA - offset)) + (1 << (BITS - 1))));
#endif
}

// Pair P of a cell of row `row` (0, or 1 for the one eight below).
template <int P>
DEVICE word decode_pair(const word* cell, const ZeroPair& zero, int row) {
#if BITS == 8
    constexpr int bytes = P % 2 ? 0x31 : 0x20;
#if ACTIVATION == 0
    float low = as_float(pick_bytes(cell[P / 2], 0x4B000000u, 0x7440u | (bytes & 0xF))) + zero.minus_zero[row];
    float high = as_float(pick_bytes(cell[P / 2], 0x4B000000u, 0x7440u | bytes >> 4)) + zero.minus_zero[row];
    return pick_bytes(as_word(low), as_word(high), 0x7632u);
#else
    word value = pick_bytes(cell[P / 2], MAGIC, 0x5050u | (bytes & 0xF) | (bytes >> 4) << 8);
#if ZEROS
    return multiply_add(value, power_of_two(0), multiply_add(minus(1024), power_of_two(0), zero.minus_zero[row]));
#else
    return multiply_add(value, power_of_two(0), minus(1024 + 128));
#endif
#endif
#elif BITS == 3
    if constexpr (P < 15) {
        return field<3 * (P % 5)>(cell[P / 5], zero, row);
    } else {
        word bits = select_bits(cell[0] >> 15, 0x00010001u, 0);
        bits = select_bits(cell[1] >> 14, 0x00020002u, bits);
        bits = select_bits(cell[2] >> 13, 0x00040004u, bits);
        return field<0>(bits, zero, row);
    }
#else
    return field<BITS * P>(cell[0], zero, row);
#endif
}

// Operand of step STEP (16 inputs) of a unit from a lane's words.
template <int STEP>
DEVICE void decode_step(const word* words, const ZeroPair& zero, word (&a)[4]) {
    constexpr int chunk = STEP / 2, cell = chunk / CHUNKS * 2 * CELL_WORDS;
    constexpr int pair = chunk % CHUNKS * 4 + STEP % 2 * 2;
    a[0] = decode_pair<pair>(words + cell, zero, 0);
    a[1] = decode_pair<pair>(words + cell + CELL_WORDS, zero, 1);
    a[2] = decode_pair<pair + 1>(words + cell, zero, 0);
    a[3] = decode_pair<pair + 1>(words + cell + CELL_WORDS, zero, 1);
}
