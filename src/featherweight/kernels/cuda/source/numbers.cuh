// Activations and scales: bf16 (ACTIVATION 0) or fp16 (1); scales fp16, bf16 or fp32 as they are stored.
#pragma once
#include "intrinsics.cuh"

#if ACTIVATION == 0
constexpr int MANTISSA = 7, BIAS = 127;
DEVICE word multiply_add(word a, word b, word c) { return multiply_add_bf16(a, b, c); }
DEVICE void multiply_tile(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_bf16(c, a, b0, b1); }
DEVICE half_word to_number(float value) { return to_bf16(value); }
DEVICE float from_number(half_word bits) { return from_bf16(bits); }
DEVICE word pack_numbers(float low, float high) { return pack_two_bf16(low, high); }
#else
constexpr int MANTISSA = 10, BIAS = 15;
DEVICE word multiply_add(word a, word b, word c) { return multiply_add_fp16(a, b, c); }
DEVICE void multiply_tile(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_fp16(c, a, b0, b1); }
DEVICE half_word to_number(float value) { return to_fp16(value); }
DEVICE float from_number(half_word bits) { return from_fp16(bits); }
DEVICE word pack_numbers(float low, float high) { return pack_fp16(low, high); }
#endif

DEVICE constexpr word twice(word bits) { return bits | bits << 16; }

// Bits of 2^exponent, and of −value for a whole number below 2^(MANTISSA + 1), in the activations' dtype; both halves alike.
DEVICE constexpr word power_of_two(int exponent) { return twice((word)(BIAS + exponent) << MANTISSA); }
DEVICE constexpr word minus(int value) {
    int exponent = MANTISSA + 1;
    while (exponent > 0 && (value >> exponent) == 0) exponent--;
    return twice(0x8000u | (word)(BIAS + exponent) << MANTISSA | (((word)value << (MANTISSA - exponent)) & ((1u << MANTISSA) - 1)));
}

// A number whose lowest mantissa bits are free to hold an integer: MAGIC | q is 2^MANTISSA + q, exactly.
constexpr word MAGIC = power_of_two(MANTISSA);

#if SCALE == 0
DEVICE float from_scale(half_word bits) { return from_fp16(bits); }
#elif SCALE == 1
DEVICE float from_scale(half_word bits) { return from_bf16(bits); }
#endif

// Scales of two rows, eight apart, which lie side by side.
struct ScalePair {
#if SCALE == 2
    static constexpr int SIZE = 8;
    float first, second;
    DEVICE void load(const unsigned char* place) {
        first = as_float(load_word(place));
        second = as_float(load_word(place + 4));
    }
    DEVICE void read(const unsigned char* shared) { first = ((const float*)shared)[0], second = ((const float*)shared)[1]; }
    DEVICE float upper() const { return first; }
    DEVICE float lower() const { return second; }
#else
    static constexpr int SIZE = 4;
    word both;
    DEVICE void load(const unsigned char* place) { both = load_word(place); }
    DEVICE void read(const unsigned char* shared) { both = *(const word*)shared; }
    DEVICE float upper() const { return from_scale((half_word)(both & 0xFFFFu)); }
    DEVICE float lower() const { return from_scale((half_word)(both >> 16)); }
#endif
};
