// Signed Hadamard transforms of many rows in 16 bits, as hadamard.cu writes them down, with eight bits of the index at a time by the
// matrix unit in tf32: rows of 2^11 and 2^12 stay in the registers of a warp; of others a block first takes the highest three bits, or
// the factor A, and puts them down in shared memory.
//
// Fixed when compiled: FACTOR, TWOS, IN and OUT (1 bf16, 2 fp16), INVERTED, THREADS, RESIDENT (blocks on a multiprocessor).
#define CLUSTER 1
#define MANY_ROWS 1
#include "hadamard_steps.cuh"
#if FACTOR > 1
#include "hadamard_factor.cuh"
#endif
#include "hadamard_tile.cuh"

constexpr bool DIRECT = FACTOR == 1 && TWOS <= 12;
constexpr int UNIT = FACTOR > 1 || DIRECT ? TWOS : TWOS - FIRST;      // bits of what a warp takes at a time,
constexpr int BEYOND = UNIT > 8 ? UNIT - 8 : 0;                       // those beyond a tile's, and
constexpr int UNITS = SIZE >> (8 + BEYOND);                           // how many there are

// Eight entries from `at` on, scaled, as they go out.
DEVICE void store_16(const Arguments& given, float (&v)[8], int row, int at) {
    if (INVERTED) negate(v, load_byte(given.signs + at / 8));
    word pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float a = v[2 * i] * given.scale, b = v[2 * i + 1] * given.scale;
        pairs[i] = OUT == 1 ? pack_bf16(a, b) : pack_fp16(a, b);
    }
    *(uint4*)((half_word*)given.output + (long)row * SIZE + at) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

#if FACTOR == 1 && TWOS <= 12
// A warp's row: 16 bytes of every 512 of its bytes to a lane. Bits of an index: 0 - 2 of the 16 bytes, 3 4 = t, 5 6 7 = the upper two and the
// lowest bit of g, from 8 on of the load; the tile takes 3 4 8 9 as rows, 7 5 6 10 as columns.
DEVICE void transform_row(const Arguments& given, int row, int lane) {
    constexpr int loads = SIZE / 256;
    int g = lane / 4, t = lane % 4, from = t * 8 + g / 2 * 32 + g % 2 * 128;
    uint4 loaded[loads];
    float v[loads][8];
#pragma unroll
    for (int i = 0; i < loads; i++) loaded[i] = load_now((const half_word*)given.input + (long)row * SIZE + i * 256 + from);
#pragma unroll
    for (int i = 0; i < loads; i++) {
        Entries entries;
        entries.words[0] = loaded[i];
        unpack_signed(v[i], entries, INVERTED ? 0 : load_byte(given.signs + (i * 256 + from) / 8));
        butterflies<3, 1>(v[i]);
    }
    if constexpr (loads == 16) {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float a = v[i][e], b = v[i + loads / 2][e];
                v[i][e] = a + b, v[i + loads / 2][e] = a - b;
            }
    }
    Tile<15, 15> tile(lane);
#pragma unroll
    for (int first = 0; first < loads; first += 8)
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float x[8];
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = v[first + i][e];
            tile.transform(x);
#pragma unroll
            for (int i = 0; i < 8; i++) v[first + i][e] = x[i];
        }
#pragma unroll
    for (int i = 0; i < loads; i++)
        store_16(given, v[i], row, i / 2 * 512 + i % 2 * 128 + g % 4 * 8 + g / 4 * 256 + t * 32);
}
#else
// Units of the row in shared memory. Bits of an index: 0 1 of 16 bytes, 2 6 7 = g, 3 4 = t, 5 of the load; 0 6 7 and 2 are columns.
DEVICE void transform_units(const Arguments& given, const float* values, int row, int warp, int lane) {
    constexpr auto active = [](int bit) { return bit < TWOS; };
    constexpr int rows = active(3) | active(4) << 1 | active(5) << 2 | active(1) << 3;
    constexpr int columns = active(2) | active(6) << 1 | active(7) << 2 | active(0) << 3;
    int g = lane / 4, t = lane % 4, from = g % 2 * 4 + t * 8 + g / 2 * 64;
    Tile<rows, columns> tile(lane);
    for (int unit = warp; unit < UNITS; unit += WARPS) {
        float v[1 << BEYOND][8];
#pragma unroll
        for (int i = 0; i < 1 << BEYOND; i++) {
            const float* at = values + place(((unit << BEYOND) + i) * 256 + from);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float4 four = *(const float4*)(at + 32 * half);
                v[i][half] = four.x, v[i][4 + half] = four.y, v[i][2 + half] = four.z, v[i][6 + half] = four.w;
            }
        }
        add_registers<BEYOND>(v);
#pragma unroll
        for (int i = 0; i < 1 << BEYOND; i++) {
            tile.transform(v[i]);
            float out[8] = {v[i][0], v[i][4], v[i][2], v[i][6], v[i][1], v[i][5], v[i][3], v[i][7]};
            store_16(given, out, row, ((unit << BEYOND) + i) * 256 + g * 8 + t * 64);
        }
    }
}
#endif

KERNEL void __launch_bounds__(THREADS, RESIDENT) hadamard_rows(Arguments given) {
    SHARED_MEMORY(shared);
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    release_dependents();
#if FACTOR == 1 && TWOS <= 12
    wait_for_inputs();
    int row = blockIdx.x * WARPS + warp;
    if (row < given.rows) transform_row(given, row, lane);
#else
    unsigned char* signs = shared;
    for (int at = threadIdx.x * 4; at < SIZE / 8 && !INVERTED; at += THREADS * 4) *(word*)(signs + at) = load_word(given.signs + at);
    if (!INVERTED) synchronize_block();
    wait_for_inputs();
#if FACTOR > 1
    half_word* raw = (half_word*)(shared + SIGNS);
    float* values = (float*)(shared + SIGNS + (HELD ? 0 : RAW));
    load_raw(raw, signs, given, blockIdx.x);
    dense_step(values, raw, given.factor);
#else
    float* values = (float*)(shared + SIGNS);
    first_step(values, signs, given, blockIdx.x);
#endif
    transform_units(given, values, blockIdx.x, warp, lane);
#endif
}

EXPORT(hadamard_rows)
