// Signed Hadamard transforms of rows: y = H diag(signs) x, or y = diag(signs) H' x (INVERTED), H = A (x) Sylvester(2^TWOS) / sqrt(SIZE)
// with a factor A of +-1, which the tensor cores apply to the input as it comes; all else is sums in float32.
//
// One block takes one row. -DPLANES gives the row as an integer of 16 bits an entry, x = step X, X = 256 H + L, in two planes of
// bytes, with the planes' sums over slices of 256, and t = R y for a factor R of 4-bit codes: what lattice.cu reads.
#include "instructions.cuh"

#ifndef FACTOR
#define FACTOR 1
#endif
#ifndef TWOS
#define TWOS 12
#endif
#ifndef IN
#define IN 1      // 0 float32, 1 bfloat16, 2 float16; sums of several arrays if float32
#endif
#ifndef OUT
#define OUT 1
#endif
#ifndef INVERTED
#define INVERTED 0
#endif
#ifndef PLANES
#define PLANES 0
#endif
#ifndef THREADS
#define THREADS 512
#endif
#define COLUMNS (1 << TWOS)
#define SIZE (FACTOR * COLUMNS)
#define CHUNKS ((SIZE / 8 + THREADS - 1) / THREADS)
#define LAST (TWOS < 3 ? TWOS : 3)                                                     // bits of the last step, at stride 1
#define FIRST (FACTOR > 1 ? 0 : TWOS - LAST < 3 ? TWOS - LAST : 3)                     // of the one at the load
#define MIDDLE (TWOS - LAST - FIRST)
#define STEPS ((MIDDLE + 5) / 6)
#define INPUTS (IN == 0 ? 2 : 1)                                                       // planes of 16 bits
#define TILES ((FACTOR + 15) / 16)
#define PITCH (COLUMNS + 8)
#define HELD (FACTOR <= 64)
#define RAW (FACTOR > 1 ? INPUTS * TILES * 16 * PITCH * 2 : 0)
#define SLICES ((SIZE + 255) / 256)
#define WARPS (THREADS / 32)

struct Arguments {
    const void* input;             // [splits][rows][SIZE]
    const unsigned char* signs;    // [SIZE / 8]: bit set for -1
    const word* factor;        // [tiles][ceil(tiles / 4)][32]: signs of A in the order of fragments
    void* output;                  // [rows][SIZE]; planes: [rows][2][256 SLICES]
    int* totals;                   // [SLICES][rows][2]
    float* steps;                  // [rows]
    const word* right;         // [rank][32 SLICES]: nibbles of R, 16 inputs in two words
    const half_word* right_scales;      // [rank][groups]
    float* t;                      // [rows][rank], zeros from `rank` on up to `padded_rank`
    int rows, splits, rank, padded_rank, group, groups;
    float scale;                   // 1 / sqrt(SIZE)
};

// Words of padding keep columns apart in banks, and 16 bytes together.
DEVICE int place(int i) { return i + (i >> 7 << 2); }

template <int bits, int wide> DEVICE void butterflies(float (&v)[(1 << bits) * wide]) {
#pragma unroll
    for (int half = wide; half < wide << bits; half *= 2)
#pragma unroll
        for (int i = 0; i < wide << bits; i++)
            if (!(i & half)) {
                float a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
}

// The step at stride 1: of 8 neighbours, or of 4 or 2 among them.
DEVICE void last_butterflies(float* v) {
#pragma unroll
    for (int half = 1; half < 1 << LAST; half *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!(i & half)) {
                float a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
}

// 8 entries from `at` on, those of every split added, signs applied.
DEVICE void load_8(float* v, const Arguments& given, int row, int at) {
#if IN == 0
    const float4* from = (const float4*)((const float*)given.input + (long)row * SIZE + at);
    float4 a = from[0], b = from[1];
    for (int split = 1; split < given.splits; split++) {
        const float4* next = from + (long)split * given.rows * (SIZE / 4);
        float4 c = next[0], d = next[1];
        a.x += c.x, a.y += c.y, a.z += c.z, a.w += c.w, b.x += d.x, b.y += d.y, b.z += d.z, b.w += d.w;
    }
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
#else
    uint4 words = *(const uint4*)((const half_word*)given.input + (long)row * SIZE + at);
    word pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = IN == 1 ? make_float2(as_float(pairs[i] << 16), as_float(pairs[i] & 0xFFFF0000u))
                              : make_float2(lower_fp16(pairs[i]), upper_fp16(pairs[i]));
        v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
#endif
#if !INVERTED
    word signs = given.signs[at / 8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = as_float(as_word(v[i]) ^ (signs << (31 - i) & 0x80000000u));
#endif
}

DEVICE void store_8(float* to, const float* v) {
    float4* places = (float4*)to;
    int swap = threadIdx.x >> 2 & 1; // neighbours in a bank take turns
    places[swap] = swap ? make_float4(v[4], v[5], v[6], v[7]) : make_float4(v[0], v[1], v[2], v[3]);
    places[!swap] = swap ? make_float4(v[0], v[1], v[2], v[3]) : make_float4(v[4], v[5], v[6], v[7]);
}

DEVICE void read_8(float* v, const float* from) {
    const float4* places = (const float4*)from;
    int swap = threadIdx.x >> 2 & 1;
    float4 a = places[swap], b = places[!swap], first = swap ? b : a, second = swap ? a : b;
    v[0] = first.x, v[1] = first.y, v[2] = first.z, v[3] = first.w, v[4] = second.x, v[5] = second.y, v[6] = second.z, v[7] = second.w;
}

// The highest bits, 8 neighbouring columns at once: the step at the load.
DEVICE void first_step(float* values, const Arguments& given, int row) {
    const int stride = SIZE >> FIRST;
    for (int chunk = threadIdx.x; chunk < stride / 8; chunk += THREADS) {
        float v[8 << FIRST];
#pragma unroll
        for (int i = 0; i < 1 << FIRST; i++) load_8(v + 8 * i, given, row, i * stride + chunk * 8);
        butterflies<FIRST, 8>(v);
#pragma unroll
        for (int i = 0; i < 1 << FIRST; i++) store_8(values + place(i * stride + chunk * 8), v + 8 * i);
    }
    synchronize_block();
}

template <int bits, int shift> DEVICE void middle_step(float* values) {
    if (bits == 0) return;
    for (int unit = threadIdx.x; unit < SIZE >> bits; unit += THREADS) {
        int base = unit >> shift << (shift + bits) | (unit & ((1 << shift) - 1));
        float v[1 << bits];
#pragma unroll
        for (int i = 0; i < 1 << bits; i++) v[i] = values[place(base + (i << shift))];
        butterflies<bits, 1>(v);
#pragma unroll
        for (int i = 0; i < 1 << bits; i++) values[place(base + (i << shift))] = v[i];
    }
    synchronize_block();
}

#if FACTOR > 1
// The row in 16-bit numbers: one plane as it comes, or a float32 in two.
DEVICE void load_raw(half_word* raw, const Arguments& given, int row) {
    for (int chunk = threadIdx.x; chunk < TILES * 16 * COLUMNS / 8; chunk += THREADS) {
        int at = chunk * 8, to = at / COLUMNS * PITCH + at % COLUMNS;
        float v[8] = {};
        if (at < SIZE) load_8(v, given, row, at);
#pragma unroll
        for (int plane = 0; plane < INPUTS; plane++) {
            uint4 words;
            word* pairs = &words.x;
#pragma unroll
            for (int i = 0; i < 4; i++)
                pairs[i] = IN == 2 ? pack_fp16(v[2 * i], v[2 * i + 1]) : plane_bf16(v[2 * i], v[2 * i + 1], plane);
            *(uint4*)(raw + plane * TILES * 16 * PITCH + to) = words;
        }
    }
    synchronize_block();
}

DEVICE void expand(word (&a)[4], word signs, int tile) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = (signs << (15 - i - 4 * (tile & 3)) & 0x80008000u) ^ (IN == 2 ? 0x3C003C00u : 0x3F803F80u);
}

DEVICE void load_columns(word (&b)[4], const half_word* raw, int tile, int column, int lane) {
    load_transposed(b, raw + (tile * 16 + (lane & 15)) * PITCH + column + (lane >> 4) * 8);
}

DEVICE void multiply_pair(float (&d)[2][4], const word (&a)[4], const word (&b)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++)
        if (IN == 2) multiply_fp16(d[n], a, b[2 * n], b[2 * n + 1]);
        else multiply_bf16(d[n], a, b[2 * n], b[2 * n + 1]);
}

DEVICE void store_tile(float* values, const float (&d)[2][4], int tile, int column, int lane) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + (lane >> 2) + half * 8;
            if (row < FACTOR)
                *(float2*)(values + place(row * COLUMNS + column + n * 8 + (lane & 3) * 2)) = make_float2(d[n][2 * half], d[n][2 * half + 1]);
        }
}

// A applied to all columns. A small one in place: a warp first takes all its columns to registers. A large one to `values`,
// several warps to the same 16 columns.
DEVICE void dense_step(float* values, const half_word* raw, const word* factor) {
    const int units = COLUMNS / 16, words = (TILES + 3) / 4;
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#if HELD
    const int each = (units + WARPS - 1) / WARPS;
    word b[each][INPUTS][TILES][4];
#pragma unroll
    for (int i = 0; i < each; i++)
        if (warp + i * WARPS < units)
#pragma unroll
            for (int plane = 0; plane < INPUTS; plane++)
#pragma unroll
                for (int k = 0; k < TILES; k++)
                    load_columns(b[i][plane][k], raw + plane * TILES * 16 * PITCH, k, (warp + i * WARPS) * 16, lane);
    synchronize_block();
#pragma unroll
    for (int m = 0; m < TILES; m++) {
        word signs = factor[m * 32 + lane];
#pragma unroll
        for (int i = 0; i < each; i++) {
            float d[2][4] = {};
            if (warp + i * WARPS >= units) continue;
#pragma unroll
            for (int k = 0; k < TILES; k++) {
                word a[4];
                expand(a, signs, k);
#pragma unroll
                for (int plane = 0; plane < INPUTS; plane++) multiply_pair(d, a, b[i][plane][k]);
            }
            store_tile(values, d, m, (warp + i * WARPS) * 16, lane);
        }
    }
#else
    const int share = WARPS > units ? WARPS / units : 1;
    for (int unit = warp / share; unit < units; unit += WARPS / share)
        for (int m = warp % share * 2; m < TILES; m += share * 2) {
            float d[2][2][4] = {};
            for (int k = 0; k < TILES; k++) {
                word a[2][4], b[4];
                expand(a[0], factor[(m * words + k / 4) * 32 + lane], k);
                expand(a[1], factor[(min(m + 1, TILES - 1) * words + k / 4) * 32 + lane], k);
#pragma unroll
                for (int plane = 0; plane < INPUTS; plane++) {
                    load_columns(b, raw + plane * TILES * 16 * PITCH, k, unit * 16, lane);
                    multiply_pair(d[0], a[0], b);
                    multiply_pair(d[1], a[1], b);
                }
            }
            store_tile(values, d[0], m, unit * 16, lane);
            if (m + 1 < TILES) store_tile(values, d[1], m + 1, unit * 16, lane);
        }
#endif
    synchronize_block();
}
#endif

DEVICE void store_values(const Arguments& given, float* v, int row, int at) {
    long to = (long)row * SIZE + at;
    float scale = given.scale;
#if INVERTED
    word signs = given.signs[at / 8];
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] *= scale;
#if INVERTED
        v[i] = as_float(as_word(v[i]) ^ (signs << (31 - i) & 0x80000000u));
#endif
    }
#if OUT == 0
    float4* places = (float4*)((float*)given.output + to);
    places[0] = make_float4(v[0], v[1], v[2], v[3]), places[1] = make_float4(v[4], v[5], v[6], v[7]);
#else
    uint4 words;
    word* pairs = &words.x;
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = OUT == 1 ? plane_bf16(v[2 * i], v[2 * i + 1], false) : pack_fp16(v[2 * i], v[2 * i + 1]);
    *(uint4*)((half_word*)given.output + to) = words;
#endif
}

#if PLANES
// The largest of all threads' values.
DEVICE float largest(float value, float* scratch) {
    for (int apart = 16; apart; apart /= 2) value = fmaxf(value, exchange(value, apart));
    if (!(threadIdx.x & 31)) scratch[threadIdx.x / 32] = value;
    synchronize_block();
    value = 0;
    for (int i = 0; i < WARPS; i++) value = fmaxf(value, scratch[i]);
    return value;
}

// Entries as integers in two planes, in shared memory and, by the first block of a row, outside. Of every 16 entries the planes
// have 0 to 3, 8 to 11, 4 to 7, 12 to 15. Returns the step.
DEVICE float make_planes(const Arguments& given, float (&v)[CHUNKS][8], unsigned char* planes, float* scratch, int row, bool first) {
    float most = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(v[c][i]));
    most = largest(most, scratch);
    float per = most > 0 ? 32512.0f / most : 0, step = most * given.scale / 32512.0f;
    unsigned char* output = (unsigned char*)given.output + (long)row * 2 * SLICES * 256;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int chunk = c * THREADS + threadIdx.x, high_sum = 0, low_sum = 0, to = chunk / 2 * 16 + (chunk & 1) * 4;
        word high[2] = {}, low[2] = {};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int x = round_to_int(v[c][i] * per), h = (x + 128) >> 8, l = x - h * 256;
            high[i / 4] |= (word)(h & 255) << i % 4 * 8, low[i / 4] |= (word)(l & 255) << i % 4 * 8;
            high_sum += h, low_sum += l;
        }
        for (int apart = 16; apart; apart /= 2) {
            high_sum += exchange(high_sum, apart);
            low_sum += exchange(low_sum, apart);
        }
        if (chunk >= SLICES * 32) continue;
        for (int half = 0; half < 2; half++) {
            *(word*)(planes + to + half * 8) = high[half];
            *(word*)(planes + SLICES * 256 + to + half * 8) = low[half];
            if (first) {
                *(word*)(output + to + half * 8) = high[half];
                *(word*)(output + SLICES * 256 + to + half * 8) = low[half];
            }
        }
        if (first && !(threadIdx.x & 31)) ((int2*)given.totals)[chunk / 32 * given.rows + row] = make_int2(high_sum, low_sum);
    }
    if (first && threadIdx.x == 0) given.steps[row] = step;
    synchronize_block();
    return step;
}

// t = R x for every `blocks`-th rank: a warp takes one at a time.
DEVICE void project(const Arguments& given, const unsigned char* planes, float step, int row, int block, int blocks) {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    for (int rank = block + warp * blocks; rank < given.padded_rank; rank += blocks * WARPS) {
        float sum = 0;
        if (rank < given.rank) {
            const uint2* codes = (const uint2*)(given.right + (long)rank * SLICES * 32);
            const half_word* scales = given.right_scales + (long)rank * given.groups;
            for (int at = lane; at < SLICES * 16; at += 32) {
                uint2 words = codes[at];
                uint4 high = ((const uint4*)planes)[at], low = ((const uint4*)(planes + SLICES * 256))[at];
                int a[4] = {(int)(words.x << 4 & 0xF0F0F0F0u), (int)(words.y << 4 & 0xF0F0F0F0u), (int)(words.x & 0xF0F0F0F0u),
                            (int)(words.y & 0xF0F0F0F0u)};
                int h = dot_bytes(a[0], high.x, dot_bytes(a[1], high.y, dot_bytes(a[2], high.z, dot_bytes(a[3], high.w, 0))));
                int l = dot_bytes(a[0], low.x, dot_bytes(a[1], low.y, dot_bytes(a[2], low.z, dot_bytes(a[3], low.w, 0))));
                int group = min(at * 16 / given.group, given.groups - 1);
                sum += from_fp16(scales[group]) * (float)(h * 256 + l);
            }
        }
        for (int apart = 16; apart; apart /= 2) sum += exchange(sum, apart);
        if (lane == 0) given.t[row * given.padded_rank + rank] = sum * step * (1.0f / 16);
    }
}
#endif

KERNEL void __launch_bounds__(THREADS) hadamard(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
    wait_for_inputs();
    int row = blockIdx.x;
#if FACTOR > 1
    float* values = (float*)(shared + (HELD ? 0 : RAW));
    load_raw((half_word*)shared, given, row);
    dense_step(values, (half_word*)shared, given.factor);
#else
    float* values = (float*)shared;
    first_step(values, given, row);
#endif
    middle_step<(STEPS ? MIDDLE / (STEPS ? STEPS : 1) : 0), LAST>(values);
    if (STEPS > 1) middle_step<(STEPS > 1 ? MIDDLE - MIDDLE / STEPS : 0), LAST + (STEPS > 1 ? MIDDLE / STEPS : 0)>(values);
#if PLANES
    float v[CHUNKS][8] = {};
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int at = (c * THREADS + threadIdx.x) * 8;
        if (at >= SIZE) continue;
        read_8(v[c], values + place(at));
        last_butterflies(v[c]);
    }
    synchronize_block();
    unsigned char* planes = shared + 256;
    float step = make_planes(given, v, planes, (float*)shared, row, blockIdx.y == 0);
    if (given.rank) project(given, planes, step, row, blockIdx.y, gridDim.y);
#else
    for (int at = threadIdx.x * 8; at < SIZE; at += THREADS * 8) {
        float v[8];
        read_8(v, values + place(at));
        last_butterflies(v);
        store_values(given, v, row, at);
    }
#endif
}
