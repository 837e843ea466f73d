// Copies of a few bytes, numbers sent to the shared memory of a block of the cluster, and barriers there that wait for so many bytes.
#pragma once
#include "streaming.cuh"

#ifdef EMULATED
#include "sending_emulation.h"
#else

// 4, 8 or 16 bytes to shared memory, in the background.
template <int COUNT>
DEVICE void copy_few(void* target, const void* source) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(target)), "l"(source), "n"(COUNT) : "memory");
}
DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
DEVICE void wait_for_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Arrives, and lets the barrier wait for `bytes` as well.
DEVICE void expect_bytes(barrier_word* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Where `place` is in block `rank` of the cluster.
DEVICE word address_in_block(const void* place, int rank) {
    word address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(place)), "r"(rank));
    return address;
}

// Four numbers to a place in a block of the cluster, counted by a barrier there.
DEVICE void send(word place, float4 value, word barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
                 ::"r"(place), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier) : "memory");
}

// Of each half the larger of `most` and the magnitude of `value`.
DEVICE word larger_magnitudes(word most, word value) {
    word d;
#if ACTIVATION == 0
    asm("{.reg .b32 m;\nabs.bf16x2 m, %2;\nmax.bf16x2 %0, %1, m;}" : "=r"(d) : "r"(most), "r"(value));
#else
    asm("{.reg .b32 m;\nabs.f16x2 m, %2;\nmax.f16x2 %0, %1, m;}" : "=r"(d) : "r"(most), "r"(value));
#endif
    return d;
}
#endif

template <int COUNT>
DEVICE void copy_bytes(unsigned char* target, const unsigned char* source) {
    constexpr int each = COUNT < 16 ? COUNT : 16;
#pragma unroll
    for (int at = 0; at < COUNT; at += each) copy_few<each>(target + at, source + at);
}
