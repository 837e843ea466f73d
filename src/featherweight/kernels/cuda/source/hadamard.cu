// Signed Hadamard transforms of rows: y = H diag(signs) x, or y = diag(signs) H' x (INVERTED), H = A (x) Sylvester(2^TWOS) / sqrt(SIZE)
// with a factor A of +-1 (FACTOR its size, 1 for none), which the matrix unit applies to the input as it comes; all else is sums
// in fp32.
//
// One block takes one row, or a cluster of eight: each an eighth of the columns, whose last three bits go from block to block.
// With FOR_PRODUCT the row is given as lattice.cu reads it, and t = R y for a factor R of 4-bit codes, in which blocks share.
//
// Fixed when compiled: FACTOR, TWOS, IN and OUT (0 fp32, 1 bf16, 2 fp16), INVERTED, FOR_PRODUCT, THREADS, CLUSTER (1 or 8).
#include "hadamard_steps.cuh"
#if FACTOR > 1
#include "hadamard_factor.cuh"
#endif
#if FOR_PRODUCT
#include "hadamard_product.cuh"
#endif

// `count` (8 or 4) entries from `at` on, scaled, in the output's dtype.
template <int count>
DEVICE void store_values(const Arguments& given, float* v, const unsigned char* signs, int row, int at) {
    long to = (long)row * SIZE + at;
#pragma unroll
    for (int i = 0; i < count; i++) {
        v[i] *= given.scale;
        if (INVERTED) v[i] = as_float(as_word(v[i]) ^ ((word)signs[at / 8] << (31 - i - at % 8) & 0x80000000u));
    }
#if OUT == 0
#pragma unroll
    for (int i = 0; i < count; i += 4) *(float4*)((float*)given.output + to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
#else
    word pairs[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; i++) pairs[i] = OUT == 1 ? pack_bf16(v[2 * i], v[2 * i + 1]) : pack_fp16(v[2 * i], v[2 * i + 1]);
    half_word* place = (half_word*)given.output + to;
    if constexpr (count == 8) *(uint4*)place = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    else *(uint2*)place = make_uint2(pairs[0], pairs[1]);
#endif
}

KERNEL void __launch_bounds__(THREADS) hadamard(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
    unsigned char* signs = shared;
    for (int at = threadIdx.x * 4; at < SIZE / 8; at += THREADS * 4) *(word*)(signs + at) = load_word(given.signs + at);
#if FOR_PRODUCT
    Codes codes;
    codes.load(given, first_rank(), threadIdx.x & 31);  // R is on its way meanwhile
#endif
#if FACTOR > 1
    Operands operands;
    operands.load(given.factor, Operands::first());
#endif
    if (!INVERTED) synchronize_block();
    wait_for_inputs();
    int row = blockIdx.x;
#if FACTOR > 1
    half_word* raw = (half_word*)(shared + SIGNS);
    float* values = (float*)(shared + SIGNS + (HELD ? 0 : RAW));
    load_raw(raw, signs, given, row);
    dense_step(values, raw, given.factor, operands);
#else
    float* values = (float*)(shared + SIGNS);
    first_step(values, signs, given, row);
#endif
    middle_steps<MIDDLE, LAST>(values);
#if CLUSTER > 1
    for (int at = threadIdx.x * 8; at < LOCAL; at += THREADS * 8) {
        float v[8];
        read_8(v, values + place(at));
        last_butterflies(v);
        store_8(values + place(at), v);
    }
    meet_blocks();
#endif
#if FOR_PRODUCT
    finish_product(given, values, signs, row, codes);
#elif CLUSTER > 1
#pragma unroll
    for (int i = 0; i < GATHERS; i++) {
        int at = own_block() * SHARE + (threadIdx.x + i * THREADS) * 4;
        if ((threadIdx.x + i * THREADS) * 4 >= SHARE) continue;
        float v[CLUSTER * 4];
        gather(v, values, at);
#pragma unroll
        for (int block = 0; block < CLUSTER; block++) store_values<4>(given, v + 4 * block, signs, row, outside(at, block));
    }
    synchronize_cluster();
#else
#pragma unroll 4
    for (int at = threadIdx.x * 8; at < SIZE; at += THREADS * 8) {
        float v[8];
        read_8(v, values + place(at));
        last_butterflies(v);
        store_values<8>(given, v, signs, row, at);
    }
#endif
}

EXPORT(hadamard)
