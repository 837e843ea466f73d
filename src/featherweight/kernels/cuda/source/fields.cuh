// Codes as the matrix unit takes them without any arithmetic: a code of b bits, cut out where it lies in the mantissa of an fp16
// number, is the subnormal q 2^(offset − 24), exactly. Activations make up for the offset and carry the rest as a power of two:
// they are made fp16 when they come into shared memory, so that the largest of a unit lies just below 2^14.
#pragma once
#include "tiles.cuh"

#ifndef FIELD_BITS
#define FIELD_BITS 10
#endif

constexpr int GROUPS_OF_UNIT = BLOCKS * GROUPS;

// Shift that brings the field at bit `place` of a half into the mantissa, as few different ones as possible.
DEVICE constexpr int shift_of(int place) { return place / (FIELD_BITS / BITS * BITS) * (FIELD_BITS / BITS * BITS); }

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
