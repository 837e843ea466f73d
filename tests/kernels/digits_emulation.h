// What `digits.cuh` asks of the card, on a CPU.
#pragma once
#include "emulation.h"

DEVICE void multiply_signed(int (&c)[4], const word (&a)[4], word b0, word b1) { multiply_byte_matrices<int8_t>(c, a, b0, b1); }
DEVICE word count_bits(word bits) { return __builtin_popcount(bits); }
DEVICE int round_to_int(float value) { return (int)std::nearbyint(value); }
DEVICE word append_byte(word bytes, word value) { return bytes << 8 | value; }
template <int BYTE>
DEVICE word add_byte(word bytes, word value) { return value + (bytes >> 8 * BYTE & 0xFF); }
template <int HALF>
DEVICE word take_half(word pair) { return pair >> 16 * HALF & 0xFFFF; }
DEVICE word take_upper(word pair) { return multiply_two_fp16(pick_bytes(pair, 0, 0x3232u), 0x3C003C00u); }
DEVICE word add_before_in_eight(word value, int apart) {
    int lane = fibre_here->lane, from = lane % 8 < apart ? lane : lane - apart;
    word other = word_from_lane(value, from);
    return from == lane ? value : value + other;
}
DEVICE word shift_down(word low, word high, word bits) { return bits >= 32 ? high : (word)(((uint64_t)high << 32 | low) >> bits); }
DEVICE word shift_up(word low, word high, word bits) { return bits >= 32 ? low : (word)(((uint64_t)high << 32 | low) << bits >> 32); }
