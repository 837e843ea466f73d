// What the cache's kernels need of a warp beside `intrinsics.cuh`. Under a host compiler `warp_emulation.h` takes its place.
#pragma once
#include "intrinsics.cuh"

#ifdef EMULATED
#include "warp_emulation.h"
#else

// Copies that are waited for in groups, the oldest first.
DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
DEVICE void synchronize_warp() { __syncwarp(); }

// Keeps a number in its register, where the compiler would rather find it again each time.
DEVICE void hold(int& value) { asm volatile("" : "+r"(value)); }
DEVICE void hold(const unsigned char*& value) { asm volatile("" : "+l"(value)); }

DEVICE float exchange(float value, int lanes) { return __shfl_xor_sync(0xFFFFFFFFu, value, lanes); }
DEVICE float broadcast(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
DEVICE int broadcast(int value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
DEVICE bool any_lane(bool value) { return __any_sync(0xFFFFFFFFu, value); }
DEVICE word vote(bool value) { return __ballot_sync(0xFFFFFFFFu, value); }
DEVICE int count_bits(word bits) { return __popc(bits); }

// As IEEE has it.
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }

// Rows of an 8 x 8 matrix of 16-bit numbers become its columns.
DEVICE word transpose(word value) {
    word d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(value));
    return d;
}

// sums[16 x 8] += a[16 x 32] b[32 x 8] in integers: unsigned a, or signed, and signed b.
DEVICE void multiply_unsigned(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply_signed(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Matrices of 8 rows of 16 bytes in shared memory, of which a lane gets word lane % 4 of row lane / 4; lane 8 m + r names row r of matrix m.
DEVICE void load_rows(word (&d)[4], const unsigned char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"((word)__cvta_generic_to_shared(row)) : "memory");
}
DEVICE void load_rows(word& first, word& second, const unsigned char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(first), "=r"(second) : "r"((word)__cvta_generic_to_shared(row)) : "memory");
}

// The same of matrices of 16-bit numbers whose rows become columns.
DEVICE void load_transposed(word (&d)[4], const unsigned char* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"((word)__cvta_generic_to_shared(row)) : "memory");
}

// counts[16 x 8] += bits that rows of a[16 x 256] and columns of b[256 x 8] have in common; and for 128 bits.
DEVICE void count_common(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void count_common(int (&c)[4], word a0, word a1, word b0) {
    asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
}

// sums[16 x 8] += a[16 x 8] b[8 x 8].
DEVICE void multiply_short_bf16(float (&c)[4], word a0, word a1, word b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void multiply_short_fp16(float (&c)[4], word a0, word a1, word b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(b0));
}

// Two numbers to 16 bits each, the first in the low half.
DEVICE word pair_bf16(float low, float high) {
    word d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
DEVICE word pair_fp16(float low, float high) {
    word d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

DEVICE float power(float exponent) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(exponent));
    return d;
}

// How often it was called before.
DEVICE int take_number(word* calls) {
    int before;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(calls) : "memory");
    return before;
}
// Takes a ticket: true for the last of `count`, whose next reads see what the others, and threads that they had met, wrote before theirs.
DEVICE bool take_ticket(word* tickets, word count) {
    word before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(tickets), "r"(count - 1) : "memory");
    return before == count - 1;
}
DEVICE float4 load_fresh(const float* address) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(address) : "memory");
    return v;
}
#endif
