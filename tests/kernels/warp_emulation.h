// What `warp.cuh` asks of the card beside `intrinsics.cuh`, by plain arithmetic.
#pragma once
#include "emulation.h"

DEVICE void close_copies() {}
DEVICE void hold(int&) {}
DEVICE void hold(const unsigned char*&) {}
template <int LEFT>
DEVICE void wait_for_copies() {}

DEVICE float exchange(float value, int lanes) { return of_lane(value, fibre_here->lane ^ lanes); }
DEVICE float broadcast(float value, int lane) { return of_lane(value, lane); }
DEVICE int broadcast(int value, int lane) { return of_lane(value, lane); }
DEVICE int take_number(word* calls) { return (*calls)++; }
DEVICE bool any_lane(bool value) {
    bool any = false;
    for (int lane = 0; lane < 32; lane++) any |= of_lane(value, lane);
    return any;
}
DEVICE int count_bits(word bits) { return __builtin_popcount(bits); }
DEVICE word vote(bool value) {
    word all = 0;
    for (int lane = 0; lane < 32; lane++) all |= (word)of_lane(value, lane) << lane;
    return all;
}
DEVICE float divide(float a, float b) { return a / b; }
DEVICE word transpose(word value) {
    int row = fibre_here->lane / 4, column = fibre_here->lane % 4 * 2;
    word first = of_lane(value, column * 4 + row / 2), second = of_lane(value, column * 4 + 4 + row / 2);
    return (first >> 16 * (row % 2) & 0xFFFF) | (second >> 16 * (row % 2)) << 16;
}
DEVICE void multiply_unsigned(int (&c)[4], const word (&a)[4], word b0, word b1) { multiply_byte_matrices<uint8_t>(c, a, b0, b1); }
DEVICE void multiply_signed(int (&c)[4], const word (&a)[4], word b0, word b1) { multiply_byte_matrices<int8_t>(c, a, b0, b1); }
DEVICE word word_of_row(const unsigned char* row, int matrix) {
    return ((const word*)of_lane(row, 8 * matrix + fibre_here->lane / 4))[fibre_here->lane % 4];
}
DEVICE void load_rows(word (&d)[4], const unsigned char* row) {
    for (int matrix = 0; matrix < 4; matrix++) d[matrix] = word_of_row(row, matrix);
}
DEVICE void load_rows(word& first, word& second, const unsigned char* row) { first = word_of_row(row, 0), second = word_of_row(row, 1); }
DEVICE void load_transposed(word (&d)[4], const unsigned char* row) {
    for (int matrix = 0; matrix < 4; matrix++) d[matrix] = transpose(word_of_row(row, matrix));
}
DEVICE void count_common(int (&c)[4], const word (&a)[4], word b0, word b1) {
    auto& words = fibre_here->warp->words;
    int lane = fibre_here->lane;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    words[lane][4] = b0;
    words[lane][5] = b1;
    synchronize_warp();
    for (int part = 0; part < 4; part++) {
        int row = lane / 4, column = lane % 4 * 2 + part % 2;
        for (int k = 0; k < 8; k++) {
            c[part] += __builtin_popcount(words[row * 4 + k % 4][part / 2 + k / 4 * 2] & words[column * 4 + k % 4][4 + k / 4]);
        }
    }
    synchronize_warp();
}
DEVICE void count_common(int (&c)[4], word a0, word a1, word b0) { count_common(c, {a0, a1, 0, 0}, b0, 0); }
DEVICE void multiply_short_bf16(float (&c)[4], word a0, word a1, word b) { multiply_bf16(c, {a0, a1, 0, 0}, b, 0); }
DEVICE void multiply_short_fp16(float (&c)[4], word a0, word a1, word b) { multiply_fp16(c, {a0, a1, 0, 0}, b, 0); }
DEVICE word pair_bf16(float low, float high) { return to_bf16(low) | (word)to_bf16(high) << 16; }
DEVICE word pair_fp16(float low, float high) { return pack_fp16(low, high); }
DEVICE float power(float exponent) { return std::exp2(exponent); }
DEVICE float4 load_fresh(const float* address) { return *(const float4*)address; }
DEVICE bool take_ticket(word* tickets, word count) {
    bool last = *tickets == count - 1;
    *tickets = last ? 0 : *tickets + 1;
    return last;
}
