// Products by four warps at once, 64 rows, each from its own registers, times tokens that lie in shared memory (`wgmma`, sm_90a).
#pragma once
#include "intrinsics.cuh"

#ifdef EMULATED
#include "groups_emulation.h"
#else
typedef unsigned long long Matrix;

// Tokens in shared memory: pieces of eight tokens, 16 bytes each, one after the other; the second eight of 16 inputs lie `apart` on.
DEVICE Matrix matrix_at(const void* place, int apart) {
    unsigned long long address = ((word)__cvta_generic_to_shared(place) & 0x3FFFFu) >> 4;  // without the block's rank in its cluster
    return address | (unsigned long long)(apart >> 4) << 16 | 8ull << 32;
}
DEVICE Matrix moved(Matrix matrix, int bytes) { return matrix + (bytes >> 4); }

// Around what runs in the background: before `begin_products` sums and operands are made, after `finish_products` sums are read;
// `hold` keeps the compiler from moving that across.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void finish_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
template <int COUNT>
DEVICE void hold(float (&sums)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");
}
template <int COUNT>
DEVICE void hold(word (&operands)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) asm volatile("" : "+r"(operands[i / 4][i % 4])::"memory");
}

#define SUMS(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)

// sums[64 x 8 COUNT] += a[64 x 16] b[16 x 8 COUNT]; a warp holds its 16 rows as `multiply_fp16` has them.
DEVICE void multiply_group(float (&c)[1][4], const word (&a)[4], Matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;" : SUMS(0) : OPERANDS);
}
DEVICE void multiply_group(float (&c)[2][4], const word (&a)[4], Matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
                 : SUMS(0), SUMS(1) : OPERANDS);
}
DEVICE void multiply_group(float (&c)[4][4], const word (&a)[4], Matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
                 "{%16,%17,%18,%19}, %20, 1, 1, 1, 0;" : SUMS(0), SUMS(1), SUMS(2), SUMS(3) : OPERANDS);
}
DEVICE void multiply_group(float (&c)[8][4], const word (&a)[4], Matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                 : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7) : OPERANDS);
}
DEVICE void multiply_group(float (&c)[16][4], const word (&a)[4], Matrix b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,"
                 "%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
                 : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9), SUMS(10),
                   SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15) : OPERANDS);
}
#endif
