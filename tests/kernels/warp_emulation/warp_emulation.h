// As `warp.cuh`, under a host compiler.
#pragma once
#include "emulation.h"

inline void close_copies() {}
template <int LEFT>
inline void wait_for_copies() {}

inline void synchronize_warp() {
    emulation::together<int, int>(0, [](const int* const*, int* const*) {});
}
inline float exchange(float value, int lanes) {
    struct Given { float value; int lanes; };
    return emulation::together<Given, float>(Given{value, lanes}, [](const Given* const* in, float* const* out) {
        for (int at = 0; at < 32; at++) *out[at] = in[at ^ in[at]->lanes]->value;
    });
}
inline float broadcast(float value, int lane) {
    struct Given { float value; int lane; };
    return emulation::together<Given, float>(Given{value, lane}, [](const Given* const* in, float* const* out) {
        for (int at = 0; at < 32; at++) *out[at] = in[in[at]->lane]->value;
    });
}
inline bool any_lane(bool value) {
    return emulation::together<bool, bool>(value, [](const bool* const* in, bool* const* out) {
        bool any = false;
        for (int at = 0; at < 32; at++) any |= *in[at];
        for (int at = 0; at < 32; at++) *out[at] = any;
    });
}
inline word vote(bool value) {
    return emulation::together<bool, word>(value, [](const bool* const* in, word* const* out) {
        word all = 0;
        for (int at = 0; at < 32; at++) all |= (word)*in[at] << at;
        for (int at = 0; at < 32; at++) *out[at] = all;
    });
}
inline float divide(float a, float b) { return a / b; }
inline word transpose(word value) {
    return emulation::together<word, word>(value, [](const word* const* in, word* const* out) {
        for (int at = 0; at < 32; at++) {
            const int row = at / 4, column = at % 4 * 2;
            const auto element = [&](int r, int c) { return *in[r * 4 + c / 2] >> 16 * (c % 2) & 0xFFFF; };
            *out[at] = element(column, row) | element(column + 1, row) << 16;
        }
    });
}
inline void multiply_unsigned(int (&c)[4], const word (&a)[4], word b0, word b1) { emulation::byte_product<false>(c, a, b0, b1); }
inline void multiply_signed(int (&c)[4], const word (&a)[4], word b0, word b1) { emulation::byte_product<true>(c, a, b0, b1); }
inline void multiply_short_bf16(float (&c)[4], word a0, word a1, word b) {
    const word a[4] = {a0, a1, 0, 0};
    emulation::product<emulated_bf16, 8>(c, a, b, 0);
}
inline void multiply_short_fp16(float (&c)[4], word a0, word a1, word b) {
    const word a[4] = {a0, a1, 0, 0};
    emulation::product<from_fp16, 8>(c, a, b, 0);
}
inline word pair_bf16(float low, float high) { return to_bf16(low) | (word)to_bf16(high) << 16; }
inline word pair_fp16(float low, float high) { return to_fp16(low) | (word)to_fp16(high) << 16; }
inline float power(float exponent) { return std::exp2(exponent); }
inline float4 load_fresh(const float* address) { return *(const float4*)address; }
inline bool take_ticket(word* tickets, word count) {
    const bool last = *tickets == count - 1;
    *tickets = last ? 0 : *tickets + 1;
    return last;
}
inline void publish() {}
