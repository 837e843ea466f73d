// Activations of a block in shared memory, in the order in which a storage's `multiply` reads them. Where the storage wants fp16
// (NORMALIZED), activations become fp16 numbers: those of a chunk and a token times a power of two that brings the largest
// below 2^11, so that the sum of 16, which GROUP_SUMS asks for, is one as well. Where it wants them as two bytes (DIGITS), they become
// integers up to 2^14, their upper and their lower bytes apart, and their sums over GROUP inputs lie in the place of those.
#pragma once

#ifndef DIGITS
#define DIGITS 0
#endif

struct Inputs {
    float* factors;      // [chunk][token]: what normalising took out
    half_word* numbers;  // [token][stride]
    int stride;
    half_word* groups;   // [chunk][token][16]: sums of 16 consecutive inputs, in the order 2 t, 2 t + 1, 2 t + 8, 2 t + 9 for t = 0 … 3

    // Eight consecutive inputs of a token.
    static DEVICE uint4 load(const Work& work, int token, int input) {
        const half_word* x = work.x + (long long)token * work.x_stride;
        if (!work.gather && input + 8 <= work.inputs) return *(const uint4*)(x + input);
        word from[8], v[8];
        if (work.gather) {
            *(uint4*)from = *(const uint4*)(work.gather + input);
            *(uint4*)(from + 4) = *(const uint4*)(work.gather + input + 4);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (!work.gather) from[i] = input + i;
            v[i] = from[i] < (word)work.inputs ? x[from[i]] : 0;
        }
        return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
    }

    // A lane's eight inputs of a chunk, put in their places.
    DEVICE void put(int token, int tokens, int chunk, uint4 v, int lane) const {
        word pairs[4] = {v.x, v.y, v.z, v.w};
        float scale = 1.0f;
        if (NORMALIZED) {
            word largest = 0;
#pragma unroll
            for (int pair = 0; pair < 4; pair++) largest = max_magnitude(largest, pairs[pair]);
            int exponent = (int)(as_word(from_number((half_word)largest_in_warp(largest))) >> 23);
            int up = exponent == 0 ? 0 : 127 + (DIGITS ? 13 : 10) - exponent;  // x 2^up lies below 2^11, or 2^14
            up = up > 126 ? 126 : up < -126 ? -126 : up;
            scale = as_float((word)(127 + up) << 23);
            if (lane == 0) factors[chunk * 8 * COLUMNS + token] = as_float((word)(127 - up) << 23);
        }
#if DIGITS
        put_digits(token, tokens, chunk, pairs, scale, lane);
#else
        float sum = 0.0f;
        half_word* to = numbers + token * stride + chunk * CHUNK;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            word number = pairs[pair];
            if (NORMALIZED) number = pack_fp16(from_number((half_word)(number & 0xFFFFu)) * scale, from_number((half_word)(number >> 16)) * scale);
            *(word*)(to + pair_place(lane * 8 + pair / 2 * 4, pair % 2)) = number;
            if (GROUP_SUMS) sum += from_fp16((half_word)(number & 0xFFFFu)) + from_fp16((half_word)(number >> 16));
        }
        if (GROUP_SUMS) {
            sum += from_lane_xor(sum, 1);
            int group = lane / 2;
            if (lane % 2 == 0) groups[(chunk * tokens + token) * 16 + group % 8 / 2 * 4 + group / 8 * 2 + group % 2] = to_fp16(sum);
        }
#endif
    }

#if DIGITS
    DEVICE void put_digits(int token, int tokens, int chunk, const word (&pairs)[4], float scale, int lane) const {
        unsigned char* to = (unsigned char*)(numbers + token * stride + chunk * CHUNK);
        int sum = 0;
#pragma unroll
        for (int four = 0; four < 2; four++) {
            word upper = 0, lower = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int number = round_to_int(from_number((half_word)(pairs[four * 2 + i / 2] >> i % 2 * 16)) * scale), high = (number + 128) >> 8;
                upper |= (word)(high & 0xFF) << 8 * i;
                lower |= (word)(number & 0xFF) << 8 * i;  // less 256 high, a byte with sign
                sum += number;
            }
            word* at = (word*)(to + digits_at(lane * 8 + four * 4));
            at[0] = upper;
            at[16] = lower;
        }
        for (int apart = 1; apart < GROUP / 8; apart *= 2) sum += (int)word_from_lane((word)sum, lane ^ apart);
        if (lane % (GROUP / 8) == 0) ((int*)groups)[(chunk * tokens + token) * 8 + lane * 8 / GROUP] = sum;
    }
#endif

    DEVICE void stage(const Work& work, int first_chunk, int chunks, int warp, int lane) const {
        constexpr int all = WARPS + COLLECTORS, batch = COLUMNS == 2 ? 8 : 4;
        for (int start = warp; start < work.tokens * chunks; start += all * batch) {
            uint4 loaded[batch];
#pragma unroll
            for (int i = 0; i < batch; i++) {
                int item = start + i * all;
                if (item < work.tokens * chunks) loaded[i] = load(work, item / chunks, (first_chunk + item % chunks) * CHUNK + lane * 8);
            }
#pragma unroll
            for (int i = 0; i < batch; i++) {
                int item = start + i * all;
                if (item < work.tokens * chunks) put(item / chunks, work.tokens, item % chunks, loaded[i], lane);
            }
        }
    }
};
