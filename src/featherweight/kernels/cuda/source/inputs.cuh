// Activations of a block to shared memory, in the order in which `multiply` reads them. A storage that wants fp16 (NORMALIZED) gets
// bf16 activations as fp16 numbers, each token times a power of two that brings its largest below 2^15.
//
// The storage says where four consecutive inputs of a token lie: `pair_place(input, pair)`, of the first two and the last two.
#pragma once

DEVICE uint2 load_four(const Work& work, const half_word* token, int input) {
    half_word v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int from = input + i;
        if (work.gather) from = work.gather[from];
        v[i] = from >= 0 && from < work.inputs ? token[from] : 0;
    }
    return make_uint2(v[0] | (word)v[1] << 16, v[2] | (word)v[3] << 16);
}

// Activations of a token, from input `from` on, as they are; warps of a token take 256 inputs in turn.
DEVICE word copy_token(const Work& work, const half_word* token, half_word* to, int first, int count, int warp, int warps) {
    bool whole = !work.gather && work.x_stride % 8 == 0;
    word largest = 0;
#pragma unroll 4
    for (int eight = (warp * 32 + threadIdx.x % 32) * 8; eight < count; eight += warps * 256) {
        int input = first + eight;
        uint2 a, b;
        if (whole && input + 8 <= work.inputs) {
            uint4 both = *(const uint4*)(token + input);
            a = make_uint2(both.x, both.y), b = make_uint2(both.z, both.w);
        } else {
            a = load_four(work, token, input), b = load_four(work, token, input + 4);
        }
        *(word*)(to + pair_place(eight, 0)) = a.x;
        *(word*)(to + pair_place(eight, 1)) = a.y;
        *(word*)(to + pair_place(eight + 4, 0)) = b.x;
        *(word*)(to + pair_place(eight + 4, 1)) = b.y;
        largest = max_magnitude(max_magnitude(max_magnitude(max_magnitude(largest, a.x), a.y), b.x), b.y);
    }
    return largest;
}

DEVICE void stage_inputs(const Work& work, int first, int count, half_word* inputs, int stride, float* factors, word* scratch) {
    constexpr bool normalized = NORMALIZED && ACTIVATION == 0;
    constexpr int all = WARPS + COLLECTORS;
    int per_token = work.tokens >= all ? 1 : all / work.tokens, at_once = all / per_token;
    int part = threadIdx.x / 32 % per_token, start = threadIdx.x / 32 / per_token;
    if (threadIdx.x < 8 * COLUMNS) {
        scratch[threadIdx.x] = 0;
        factors[threadIdx.x] = 1.0f;
    }
    synchronize_block();
    for (int token = start; token < work.tokens && start < at_once; token += at_once) {
        word largest = copy_token(work, work.x + (long long)token * work.x_stride, inputs + token * stride, first, count, part, per_token);
        if (!normalized) continue;
        largest = largest_in_warp(largest);
        if (threadIdx.x % 32 == 0) raise_shared(scratch + token, largest);
    }
    if (!normalized) return;
    synchronize_block();
    for (int token = start; token < work.tokens && start < at_once; token += at_once) {
        int exponent = scratch[token] >> 7;                // of the largest, with bf16's bias
        int up = exponent == 0 ? 0 : 127 + 14 - exponent;  // x 2^up lies below 2^15
        up = up > 126 ? 126 : up < -126 ? -126 : up;
        float scale = as_float((word)(127 + up) << 23);
        if (part == 0 && threadIdx.x % 32 == 0) factors[token] = as_float((word)(127 - up) << 23);
        for (int eight = (part * 32 + threadIdx.x % 32) * 8; eight < count; eight += per_token * 256) {
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                word* at = (word*)(inputs + token * stride + pair_place(eight + pair / 2 * 4, pair % 2));
                *at = pack_fp16(as_float(*at << 16) * scale, as_float(*at & 0xFFFF0000u) * scale);
            }
        }
    }
}
