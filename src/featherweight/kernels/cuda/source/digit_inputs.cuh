// Activations of a block in shared memory as integers of two bytes: those of a chunk and a token times a power of two that brings the
// largest below 2^14. Of 64 inputs of a token the upper bytes lie before the lower ones, lane t's four times four of either together.
#pragma once
#include "given.cuh"

struct Inputs {
    float* factors;      // [chunk][token]: what that took out
    half_word* numbers;  // [token][stride]
    int stride;
    half_word* plain;
    half_word* groups;   // integers [chunk][token][8]: sums over groups of GROUP inputs

    // One token's digits are two columns.
    static DEVICE int token_of(int column, int lane, int tokens) {
        int token = column * 8 + lane / 4;
        return SINGLE ? token % 2 : token < tokens ? token : column ? lane / 4 : 0;
    }
    // Eights of numbers change places, so that the same input of eight tokens lies in eight groups of banks.
    static DEVICE int swizzle(int token) { return token / 2 % 4 * 8; }
    DEVICE int row(int token) const { return SINGLE ? token * 32 : token * stride; }
    DEVICE float factor(int) const { return 1.0f; }
    DEVICE const int* sums(int chunk, int tokens) const { return (const int*)groups + chunk * tokens * 8; }

    static DEVICE int kept_factors(int chunks) { return chunks * 8 * COLUMNS; }
    DEVICE void clear() const {}

    DEVICE void put(int token, int tokens, int chunk, const uint4& v, int lane) const {
        word pairs[4] = {v.x, v.y, v.z, v.w};
        word largest = largest_in_warp(max_magnitude(max_magnitude(max_magnitude(max_magnitude(0, v.x), v.y), v.z), v.w));
        int exponent = (int)(as_word(from_number((half_word)largest)) >> 23), up = exponent == 0 ? 0 : 127 + 13 - exponent;
        up = up > 126 ? 126 : up < -126 ? -126 : up;
        float scale = as_float((word)(127 + up) << 23);
        if (lane == 0) factors[chunk * 8 * COLUMNS + token] = as_float((word)(127 - up) << 23);
        int sum = 0, apart = swizzle(token) * 2;
        unsigned char* to = (unsigned char*)(numbers + token * stride + chunk * CHUNK) + lane / 8 * 128;
#pragma unroll
        for (int four = 0; four < 2; four++) {
            word upper = 0, lower = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int number = round_to_int(from_number((half_word)(pairs[four * 2 + i / 2] >> i % 2 * 16)) * scale);
                upper |= ((word)(number + 128) >> 8 & 0xFF) << 8 * i;
                lower |= ((word)number & 0xFF) << 8 * i;  // less 256 times that, a byte with sign
                sum += number;
            }
            word* at = (word*)(to + (((lane % 2 * 2 + four) * 16) ^ apart) + lane % 8 / 2 * 4);
            at[0] = upper;
            at[16] = lower;
        }
        for (int lanes = 1; lanes < GROUP / 8; lanes *= 2) sum += (int)word_from_lane((word)sum, lane ^ lanes);
        if (lane % (GROUP / 8) == 0) ((int*)sums(chunk, tokens))[token * 8 + lane * 8 / GROUP] = sum;
    }

    DEVICE void stage(const Work& work, int first_chunk, int chunks, int warp, int lane) const {
        constexpr int all = WARPS + COLLECTORS, batch = 4;
        for (int start = warp; start < work.tokens * chunks; start += all * batch) {
            uint4 loaded[batch];
#pragma unroll
            for (int i = 0; i < batch; i++) {
                int item = start + i * all;
                if (item < work.tokens * chunks) loaded[i] = load_inputs(work, item / chunks, (first_chunk + item % chunks) * CHUNK + lane * 8);
            }
#pragma unroll
            for (int i = 0; i < batch; i++) {
                int item = start + i * all;
                if (item < work.tokens * chunks) put(item / chunks, work.tokens, item % chunks, loaded[i], lane);
            }
        }
    }
};
