// Instructions that the lattice's and the Hadamard kernels need beside those of `intrinsics.cuh`.
#pragma once
#include "intrinsics.cuh"

#ifdef EMULATED
#include "emulated_instructions.h"
#else

// The address of something in shared memory, and the word at an address, OFFSET bytes on.
DEVICE word shared_address(const void* pointer) { return (word)__cvta_generic_to_shared(pointer); }
template <int OFFSET>
DEVICE word load_shared(word address) {
    word v;
    asm volatile("ld.shared.u32 %0, [%1 + %2];" : "=r"(v) : "r"(address), "n"(OFFSET));
    return v;
}

// `bytes` (a multiple of 16) on their way to the second-level cache.
DEVICE void prefetch(const void* address, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}

// All blocks of a cluster have written what others read in their shared memory.
DEVICE void meet_blocks() {
    synchronize_block();
    synchronize_cluster();
}

// The same in two halves, for shared memory alone.
DEVICE void arrive_in_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
DEVICE void wait_for_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// A barrier in shared memory on which so many bytes are to arrive from blocks of the cluster, once; a number sent to the same place of
// another block, and its barrier; the wait for all of them.
DEVICE void expect_bytes(unsigned long long* barrier, int bytes) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void send_to_block(float* place, unsigned long long* barrier, int rank, float value) {
    asm volatile(
        "{.reg .u32 there, counter;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 counter, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %3, [counter];}" ::"r"(shared_address(place)),
        "r"(shared_address(barrier)), "r"(rank), "r"(as_word(value)) : "memory");
}
DEVICE void wait_for_bytes(unsigned long long* barrier) {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again:\n mbarrier.try_wait.parity.shared.b64 done, [%0], 0;\n"
        " @done bra over;\n bra again;\nover:\n}" ::"r"(shared_address(barrier)) : "memory");
}

// One number, or four, in the shared memory of a block of the cluster.
DEVICE float load_one_from_cluster(const float* place, int rank) {
    float v;
    asm volatile("{.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];}"
                 : "=f"(v) : "r"(shared_address(place)), "r"(rank) : "memory");
    return v;
}
DEVICE float4 load_four_from_cluster(const float* place, int rank) {
    float4 v;
    asm volatile("{.reg .u32 there;\nmapa.shared::cluster.u32 there, %4, %5;\nld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [there];}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(shared_address(place)), "r"(rank) : "memory");
    return v;
}

DEVICE void add_shared(int* sum, int value) { atomicAdd(sum, value); }

// (a ^ b) & mask in one instruction.
DEVICE word differing_bits(word a, word b, word mask) {
    word d;
    asm("lop3.b32 %0, %1, %2, %3, 0x28;" : "=r"(d) : "r"(a), "r"(b), "r"(mask));
    return d;
}

// sums[16 x 8] += a[16 x 32] b[32 x 8]: bytes without sign times bytes with sign.
DEVICE void multiply_bytes(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of bytes with sign.
DEVICE void multiply_signed_bytes(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sums[16 x 8] += a[16 x 8] b[8 x 8]: fp32 numbers of which the last 13 bits are not looked at.
DEVICE void multiply_tf32(float (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE word load_byte(const unsigned char* address) {
    word v;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

// A number that the kernel before may have written.
DEVICE float load_float_now(const float* address) {
    float v;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
    return v;
}

// sum + the product of four bytes with sign and four others.
DEVICE int dot_bytes(word a, word b, int sum) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
    return d;
}

// Four tiles of 8 x 8 numbers of 16 bits, transposed; each lane names a row of 16 bytes in shared memory.
DEVICE void load_transposed(word (&d)[4], const half_word* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(shared_address(row)) : "memory");
}

// Two numbers to 16 bits each, the first in the lower half.
DEVICE word pack_bf16(float first, float second) {
    word d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(second), "f"(first));
    return d;
}

DEVICE int round_to_int(float value) {
    int v;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(v) : "f"(value));
    return v;
}

DEVICE float exchange(float value, int lanes_apart) { return __shfl_xor_sync(0xFFFFFFFFu, value, lanes_apart); }
DEVICE int from_lane(int value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
DEVICE int exchange(int value, int lanes_apart) { return __shfl_xor_sync(0xFFFFFFFFu, value, lanes_apart); }
#endif

DEVICE float lower_fp16(word pair) { return from_fp16((half_word)(pair & 0xFFFFu)); }
DEVICE float upper_fp16(word pair) { return from_fp16((half_word)(pair >> 16)); }

// Two numbers as bf16, or what that leaves of them.
DEVICE word plane_bf16(float first, float second, bool rest) {
    word pair = pack_bf16(first, second);
    return rest ? pack_bf16(first - as_float(pair << 16), second - as_float(pair & 0xFFFF0000u)) : pair;
}

// `value` at `index` of an array of fp32 (0), bf16 (1) or fp16 (2).
DEVICE void store_as(void* array, long index, float value, int type) {
    if (type == 0) ((float*)array)[index] = value;
    else ((half_word*)array)[index] = type == 1 ? to_bf16(value) : to_fp16(value);
}
