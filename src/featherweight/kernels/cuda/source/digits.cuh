// What kernels that multiply bytes need of the card beside `streaming.cuh`.
#pragma once
#include "streaming.cuh"

#ifdef EMULATED
#include "digits_emulation.h"
#else
// sums[16 x 8] += a[16 x 32] b[32 x 8]: bytes with sign.
DEVICE void multiply_signed(int (&c)[4], const word (&a)[4], word b0, word b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE word count_bits(word bits) { return (word)__popc((int)bits); }
DEVICE int round_to_int(float value) {
    int v;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(v) : "f"(value));
    return v;
}

// A byte more below `bytes`.
DEVICE word append_byte(word bytes, word value) {
    word d;
    asm("mad.lo.u32 %0, %1, 256, %2;" : "=r"(d) : "r"(bytes), "r"(value));
    return d;
}

// Byte BYTE of `bytes` plus `value`; half HALF of `pair`: by the unit that multiplies, which has time.
template <int BYTE>
DEVICE word add_byte(word bytes, word value) {
    word d;
    asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(bytes), "r"(1u << 8 * BYTE), "r"(value));
    return d;
}
template <int HALF>
DEVICE word take_half(word pair) {
    word d;
    asm("dp2a.lo.u32.u32 %0, %1, %2, 0;" : "=r"(d) : "r"(pair), "r"(HALF ? 0x0100u : 1u));
    return d;
}

// The upper 16 bits, in both halves, likewise: of a word that is no pair of fp16 infinities.
DEVICE word take_upper(word pair) {
    word d;
    asm("{\n .reg .b16 x, y;\n .reg .b32 yy;\n mov.b32 {x, y}, %1;\n mov.b32 yy, {y, y};\n mul.rn.f16x2 %0, yy, %2;\n}"
        : "=r"(d) : "r"(pair), "r"(0x3C003C00u));
    return d;
}

// Plus that of the lane so far before among the same eight, where there is one.
DEVICE word add_before_in_eight(word value, int apart) {
    asm volatile("{\n .reg .pred there;\n .reg .b32 other;\n shfl.sync.up.b32 other|there, %0, %1, 0x1800, 0xFFFFFFFF;\n @there add.u32 %0, %0, other;\n}"
                 : "+r"(value) : "r"(apart));
    return value;
}

// Of a pair of words the lower one after a shift down, the upper one after a shift up, by at most 32 bits.
DEVICE word shift_down(word low, word high, word bits) { return __funnelshift_rc(low, high, bits); }
DEVICE word shift_up(word low, word high, word bits) { return __funnelshift_lc(low, high, bits); }
#endif
