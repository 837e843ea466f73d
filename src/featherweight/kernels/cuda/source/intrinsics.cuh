// What the kernels need of the card, one small function each. Under a host compiler `emulation.h` takes their place, so that
// the same kernels run in tests without a GPU. No CUDA header is included: NVRTC compiles this as it stands.
#pragma once

#ifdef EMULATED
#include "emulation.h"
#else

typedef unsigned int word;
typedef unsigned short half_word;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define EXPORT(name)
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

// Four words that are read once: past the first-level cache.
DEVICE uint4 load_stream(const uint4* address) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}

DEVICE uint2 load_pair(const uint2* address) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

// Four words that the kernel before may have written.
DEVICE uint4 load_now(const void* address) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address) : "memory");
    return v;
}

DEVICE word load_word(const void* address) {
    word v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

DEVICE word load_half_word(const void* address) {
    half_word v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(address));
    return v;
}

// 16 bytes to shared memory, in the background; zeros where `filled` is false.
DEVICE void copy_to_shared(void* target, const void* source, bool filled) {
    word address = (word)__cvta_generic_to_shared(target);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(filled ? 16 : 0) : "memory");
}

DEVICE void finish_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Programmatic dependent launch: what follows reads the results of the kernel before; the kernel after may start.
DEVICE void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void release_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

DEVICE void synchronize_block() { __syncthreads(); }
DEVICE void synchronize_threads(int barrier, int threads) {
    if (threads == 32) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Blocks of a cluster: all wait for all. What a block wrote to its shared memory before its own barrier is then seen by the
// others; of device memory nothing is promised, which would cost a microsecond.
DEVICE void synchronize_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// A number in the shared memory of a block of the cluster, by its rank; in one's own if there are no others.
DEVICE float load_from_block(const float* place, int rank) {
    word address = (word)__cvta_generic_to_shared(place);
    float v;
#if SPLITS > 1
    asm volatile("{.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];}"
                 : "=f"(v) : "r"(address), "r"(rank) : "memory");
#else
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
#endif
    return v;
}

DEVICE float exponential(float value) { return __expf(value); }
DEVICE float reciprocal(float value) {
    float v;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(value));
    return v;
}

// (a & mask) | b in one instruction.
DEVICE word select_bits(word a, word mask, word b) {
    word d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(mask), "r"(b));
    return d;
}

DEVICE word pick_bytes(word a, word b, word selector) {
    word d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

// Two 16-bit numbers at a time: a * b + c.
DEVICE word multiply_add_bf16(word a, word b, word c) {
    word d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE word multiply_add_fp16(word a, word b, word c) {
    word d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// sums[16 x 8] += a[16 x 16] b[16 x 8], fp32 sums.
DEVICE void multiply_bf16(float (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply_fp16(float (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of all lanes the largest; of the lane so far away, by exclusive or.
DEVICE word warp_maximum(word value) {
    word v;
    asm volatile("redux.sync.max.u32 %0, %1, 0xFFFFFFFF;" : "=r"(v) : "r"(value));
    return v;
}
DEVICE float from_lane(float value, int distance) { return __shfl_xor_sync(0xFFFFFFFFu, value, distance); }

DEVICE float maximum(float a, float b) { return fmaxf(a, b); }
DEVICE float magnitude(float value) { return fabsf(value); }

DEVICE word pack_fp16(float low, float high) {
    word v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DEVICE word pack_two_bf16(float low, float high) {
    word v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DEVICE float as_float(word bits) { return __uint_as_float(bits); }
DEVICE word as_word(float value) { return __float_as_uint(value); }

DEVICE float from_fp16(half_word bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
DEVICE half_word to_fp16(float value) {
    half_word v;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v) : "f"(value));
    return v;
}
DEVICE half_word to_bf16(float value) {
    half_word v;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v) : "f"(value));
    return v;
}
#endif

DEVICE float from_bf16(half_word bits) { return as_float((word)bits << 16); }
