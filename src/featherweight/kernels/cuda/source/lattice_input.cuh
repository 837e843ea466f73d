// Part of lattice.cu: the rotation of one token's input of 2^INPUT, by the warps of every block for themselves.
#pragma once
#include "lattice.cuh"
#include "planes.cuh"

constexpr int SIZE = 1 << INPUT, OWN = SIZE / (WARPS * 32), WIDTH = SIZE / WARPS;  // entries of a thread, of a warp

struct Input {
    word negative[OWN / 8];

    DEVICE void load_signs(const Arguments& given) {
#pragma unroll
        for (int i = 0; i < OWN / 8; i++) negative[i] = load_byte(given.input_signs + threadIdx.x * (OWN / 8) + i);
    }

    // Bits of the index within a warp; `values` gets the entries as they stand in the row.
    DEVICE void turn_neighbours(const Arguments& given, float* values, int lane) const {
        float v[OWN];
#pragma unroll
        for (int i = 0; i < OWN / 8; i++) {
            uint4 loaded = load_now((const half_word*)given.input + threadIdx.x * OWN + i * 8);
            const word pairs[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
            for (int k = 0; k < 8; k++) {
                word pair = pairs[k / 2];
                float value = IN == 1 ? as_float(k & 1 ? pair & 0xFFFF0000u : pair << 16) : k & 1 ? upper_fp16(pair) : lower_fp16(pair);
                v[i * 8 + k] = as_float(as_word(value) ^ (negative[i] << (31 - k) & 0x80000000u));
            }
        }
#pragma unroll
        for (int half = 1; half < OWN; half *= 2)
#pragma unroll
            for (int i = 0; i < OWN; i++)
                if (!(i & half)) {
                    float a = v[i], b = v[i + half];
                    v[i] = a + b, v[i + half] = a - b;
                }
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2)
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                float other = exchange(v[i], apart);
                v[i] = lane & apart ? other - v[i] : v[i] + other;
            }
#pragma unroll
        for (int i = 0; i < OWN; i += 4) *(float4*)(values + threadIdx.x * OWN + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }

    // The four highest bits, two threads to a column; then integers. `scratch`: 16 numbers.
    DEVICE void turn_warps(const Arguments& given, const float* values, unsigned char* planes, float* scratch, float* steps, int warp) const {
        float v[OWN / 8][8], most = 0;
        int half = threadIdx.x / 256, column = threadIdx.x % 256;
#pragma unroll
        for (int i = 0; i < OWN / 8; i++) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                float a = values[k * WIDTH + i * 256 + column], b = values[(k + 8) * WIDTH + i * 256 + column];
                v[i][k] = half ? a - b : a + b;
            }
#pragma unroll
            for (int apart = 1; apart < 8; apart *= 2)
#pragma unroll
                for (int k = 0; k < 8; k++)
                    if (!(k & apart)) {
                        float a = v[i][k], b = v[i][k + apart];
                        v[i][k] = a + b, v[i][k + apart] = a - b;
                    }
#pragma unroll
            for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(v[i][k]));
        }
        most = as_float(warp_maximum(as_word(most)));
        if (!(threadIdx.x & 31)) scratch[warp] = most;
        synchronize_threads(1, WARPS * 32);
#pragma unroll
        for (int i = 0; i < WARPS; i++) most = fmaxf(most, scratch[i]);
        float per = most > 0 ? 32512.0f / most : 0;
#pragma unroll
        for (int i = 0; i < OWN / 8; i++)
#pragma unroll
            for (int k = 0; k < 8; k++) {
                int x = round_to_int(v[i][k] * per), at = byte_of((half * 8 + k) * WIDTH + i * 256 + column);
                planes[at] = (unsigned char)((x + 128) >> 8), planes[SIZE + at] = (unsigned char)x;
            }
        if (threadIdx.x == 0) *steps = most * given.input_scale / 32512.0f;
    }

    DEVICE void turn(const Arguments& given, float* values, unsigned char* planes, float* scratch, float* steps, int warp, int lane) const {
        turn_neighbours(given, values, lane);
        synchronize_threads(1, WARPS * 32);
        turn_warps(given, values, planes, scratch, steps, warp);
        synchronize_threads(1, WARPS * 32);
    }
};
