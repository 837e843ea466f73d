// Codes of 3 or 4 bits that pick levels out of a table: four bytes of them by one instruction, whose selectors are four nibbles.
//
// 3 bits: a word has the lower two bits of its codes in 16 fields, a word of high bits those of two such words, so that both come
// together in nibbles without more than shifts. 4 bits: seven levels of either sign; a selector whose highest bit is set picks
// the sign of a byte, which is 0: so codes pick the positive levels, and turned around the negative ones.
#pragma once
#include "cache.cuh"

// Nibbles of two words of lower bits and one of high bits: S[s] has fields 4 j + s of `a` and `b` in byte j.
DEVICE void join_bits(word (&selectors)[4], word a, word b, word high) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
        const word up = s < 2 ? b << (4 - 2 * s) : b >> (2 * s - 4), top = s < 2 ? high << (2 - s) : high >> (s - 2);
        selectors[s] = (a >> 2 * s & 0x03030303u) | (up & 0x30303030u) | (top & 0x44444444u);
    }
}

// Four levels of a table of eight bytes by the lower 16 bits.
DEVICE word pick_levels(const word (&table)[2], word selectors) { return pick_bytes(table[0], table[1], selectors); }
