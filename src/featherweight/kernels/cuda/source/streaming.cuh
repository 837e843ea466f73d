// Background copies of whole chunks to shared memory, and barriers that count bytes and warps.
#pragma once
#include "intrinsics.cuh"

#ifdef EMULATED
#include "streaming_emulation.h"
#else
typedef unsigned long long barrier_word;

DEVICE word shared_address(const void* pointer) { return (word)__cvta_generic_to_shared(pointer); }

DEVICE void set_barrier(barrier_word* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void arrive(barrier_word* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

DEVICE void wait_for(barrier_word* barrier, int parity) {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again:\n mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        " @done bra over;\n bra again;\nover:\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// `bytes` (a multiple of 16) from the weights to shared memory; `barrier` completes when they are there. They are read once.
DEVICE void copy_chunk(void* target, const void* source, int bytes, barrier_word* barrier) {
    unsigned long long policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                     "r"(shared_address(target)), "l"(source), "r"(bytes), "r"(shared_address(barrier)), "l"(policy) : "memory");
}

// The same of what others read as well.
DEVICE void copy_kept(void* target, const void* source, int bytes, barrier_word* barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
                     "r"(shared_address(target)), "l"(source), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

DEVICE void synchronize_warp() { __syncwarp(); }
DEVICE word word_from_lane(word value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
// Plus that of the lane so far before, where there is one.
DEVICE word add_lane_before(word value, int apart) {
    asm volatile("{\n .reg .pred there;\n .reg .b32 other;\n shfl.sync.up.b32 other|there, %0, %1, 0, 0xFFFFFFFF;\n @there add.u32 %0, %0, other;\n}"
                 : "+r"(value) : "r"(apart));
    return value;
}
// 32 bits of a pair of words from bit `bits` % 32 on.
DEVICE word shift_pair(word low, word high, word bits) { return __funnelshift_r(low, high, bits); }
DEVICE float from_lane_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }

// The larger of a word in shared memory and `value`, put in its place.
DEVICE void raise_shared(word* place, word value) { atomicMax(place, value); }

// Adds one to a counter that other blocks add to; all that this block wrote before is seen by whoever sees it, and the reverse.
DEVICE int count_arrival(int* counter) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}
DEVICE void store_shared_sum(float* address, float value) { asm volatile("st.global.cg.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory"); }
DEVICE float load_shared_sum(const float* address) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
    return v;
}

DEVICE word largest_in_warp(word value) { return __reduce_max_sync(0xFFFFFFFFu, value); }

// sums[16 x 8] += a[16 x 32] b[32 x 8] where of every four of a row two are stored; HALF: which lanes' places are used.
template <int HALF>
DEVICE void multiply_sparse(float (&c)[4], const word (&a)[4], const uint4& b, word places) {
#if ACTIVATION == 0
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, "
        "{%0,%1,%2,%3}, %12, %13;"
#else
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, "
        "{%0,%1,%2,%3}, %12, %13;"
#endif
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(places), "n"(HALF));
}

// Two fp16 numbers at a time.
DEVICE word add_fp16(word a, word b) {
    word d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE word multiply_two_fp16(word a, word b) {
    word d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
// Both numbers of `a` times, or plus, the lower (HALF 0) or upper (1) number of `pair`.
template <int HALF>
DEVICE word multiply_by_half(word a, word pair) {
    word d;
    if constexpr (HALF == 0)
        asm("{\n .reg .b16 x, y;\n .reg .b32 xx;\n mov.b32 {x, y}, %2;\n mov.b32 xx, {x, x};\n mul.rn.f16x2 %0, %1, xx;\n}" : "=r"(d) : "r"(a), "r"(pair));
    else
        asm("{\n .reg .b16 x, y;\n .reg .b32 yy;\n mov.b32 {x, y}, %2;\n mov.b32 yy, {y, y};\n mul.rn.f16x2 %0, %1, yy;\n}" : "=r"(d) : "r"(a), "r"(pair));
    return d;
}
DEVICE word add_upper_half(word a, word pair) {
    word d;
    asm("{\n .reg .b16 x, y;\n .reg .b32 yy;\n mov.b32 {x, y}, %2;\n mov.b32 yy, {y, y};\n add.rn.f16x2 %0, %1, yy;\n}" : "=r"(d) : "r"(a), "r"(pair));
    return d;
}
#endif

// Largest magnitude of two 16-bit numbers and of `most`, as bits.
DEVICE word max_magnitude(word most, word pair) {
    word low = pair & 0x7FFFu, high = pair >> 16 & 0x7FFFu;
    word larger = low > high ? low : high;
    return larger > most ? larger : most;
}
