// The card under a host compiler: lanes are fibers of one thread, blocks run one after another. An operation of a whole warp
// waits until all its lanes have come, and then computes what PTX says of it, in float32 or integers.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

typedef unsigned int word;
typedef unsigned short half_word;
struct uint2 { word x, y; };
struct alignas(16) uint4 { word x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { unsigned x, y, z; };

#define DEVICE inline
#define KERNEL extern "C"
#define __launch_bounds__(...)
#define __grid_constant__
#define SHARED_MEMORY(name) unsigned char* name = emulation::shared

namespace emulation {
alignas(16) inline unsigned char shared[1 << 18];
inline dim3 thread, block, grid;

struct Fiber {
    ucontext_t context;
    unsigned index;
    bool done;
    long passed;  // barriers of the block that this lane has reached
    std::vector<char> stack;
};
struct Warp {
    long come = 0, computed = 0;
    unsigned char given[32][64], taken[32][64];
};
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline ucontext_t scheduler;
inline unsigned running;
inline long come_to_block, block_rounds;
inline std::function<void()> body;

inline void yield() { swapcontext(&fibers[running].context, &scheduler); }

inline void enter() {
    body();
    fibers[running].done = true;
    yield();
}

inline void run(dim3 grid_size, unsigned threads, const std::function<void()>& kernel) {
    grid = grid_size, body = kernel;
    fibers.resize(threads);
    for (block.z = 0; block.z < grid.z; block.z++)
        for (block.y = 0; block.y < grid.y; block.y++)
            for (block.x = 0; block.x < grid.x; block.x++) {
                warps.assign(threads / 32, Warp());
                come_to_block = block_rounds = 0;
                std::memset(shared, 0xFF, sizeof shared);
                for (unsigned index = 0; index < threads; index++) {
                    Fiber& fiber = fibers[index];
                    fiber.stack.resize(1 << 18);
                    fiber.index = index, fiber.done = false;
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack.data();
                    fiber.context.uc_stack.ss_size = fiber.stack.size();
                    fiber.context.uc_link = &scheduler;
                    makecontext(&fiber.context, enter, 0);
                }
                for (bool busy = true; busy;) {
                    busy = false;
                    for (running = 0; running < threads; running++) {
                        if (fibers[running].done) continue;
                        busy = true;
                        thread = {running, 0, 0};
                        swapcontext(&scheduler, &fibers[running].context);
                    }
                }
            }
}

// All lanes give `value`; the last to come computes `taken` from `given` for all.
template <class In, class Out>
inline Out together(const In& value, void (*compute)(const In* const*, Out* const*)) {
    static_assert(sizeof(In) <= 64 && sizeof(Out) <= 64, "room");
    Warp& warp = warps[running / 32];
    const unsigned lane = running % 32;
    const long round = warp.computed;
    std::memcpy(warp.given[lane], &value, sizeof value);
    if (++warp.come == 32) {
        const In* in[32];
        Out* out[32];
        for (int at = 0; at < 32; at++) in[at] = (const In*)warp.given[at], out[at] = (Out*)warp.taken[at];
        compute(in, out);
        warp.come = 0, warp.computed++;
    } else {
        while (warp.computed == round) yield();
    }
    Out result;
    std::memcpy(&result, warp.taken[lane], sizeof result);
    return result;
}
}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define gridDim emulation::grid

inline uint4 load_stream(const uint4* address) { return *address; }
inline word load_word(const void* address) { word v; std::memcpy(&v, address, 4); return v; }
inline word load_half_word(const void* address) { half_word v; std::memcpy(&v, address, 2); return v; }
inline void copy_to_shared(void* target, const void* source, bool filled) {
    if (filled) std::memcpy(target, source, 16);
    else std::memset(target, 0, 16);
}
inline void finish_copies() {}
inline void wait_for_inputs() {}
inline void release_dependents() {}

inline void synchronize_block() {
    const long round = emulation::block_rounds;
    if (++emulation::come_to_block == (long)emulation::fibers.size()) {
        emulation::come_to_block = 0, emulation::block_rounds++;
    } else {
        while (emulation::block_rounds == round) emulation::yield();
    }
}

inline word select_bits(word a, word mask, word b) { return (a & mask) | b; }
inline word pick_bytes(word a, word b, word selector) {
    const uint64_t both = (uint64_t)b << 32 | a;
    word d = 0;
    for (int at = 0; at < 4; at++) {
        const word nibble = selector >> 4 * at & 15;
        word byte = both >> 8 * (nibble & 7) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        d |= byte << 8 * at;
    }
    return d;
}

inline float as_float(word bits) { float v; std::memcpy(&v, &bits, 4); return v; }
inline word as_word(float value) { word v; std::memcpy(&v, &value, 4); return v; }
inline float from_fp16(half_word bits) { _Float16 v; std::memcpy(&v, &bits, 2); return (float)v; }
inline half_word to_fp16(float value) { _Float16 v = (_Float16)value; half_word bits; std::memcpy(&bits, &v, 2); return bits; }
inline half_word to_bf16(float value) {
    word bits = as_word(value);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline float emulated_bf16(half_word bits) { return as_float((word)bits << 16); }

template <float (*FROM)(half_word), half_word (*TO)(float)>
inline word emulated_multiply_add(word a, word b, word c) {
    const half_word low = TO(FROM(a) * FROM(b) + FROM(c)), high = TO(FROM(a >> 16) * FROM(b >> 16) + FROM(c >> 16));
    return low | (word)high << 16;
}
inline word multiply_add_bf16(word a, word b, word c) { return emulated_multiply_add<emulated_bf16, to_bf16>(a, b, c); }
inline word multiply_add_fp16(word a, word b, word c) { return emulated_multiply_add<from_fp16, to_fp16>(a, b, c); }

// Operands of m16n8k16: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type"; likewise k8 and k32.
namespace emulation {
struct Operands { float c[4]; word a[4], b[2]; };
struct Sums { float c[4]; };
template <float (*FROM)(half_word), int K>
inline void multiply(const Operands* const* in, Sums* const* out) {
    float a[16][16] = {}, b[16][8] = {};
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, member = lane % 4;
        for (int at = 0; at < K / 4; at++)
            for (int half = 0; half < 2; half++)
                a[group + at % 2 * 8][at / 2 * 8 + 2 * member + half] = FROM(in[lane]->a[at] >> 16 * half);
        for (int at = 0; at < K / 8; at++)
            for (int half = 0; half < 2; half++) b[at * 8 + 2 * member + half][group] = FROM(in[lane]->b[at] >> 16 * half);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int at = 0; at < 4; at++) {
            const int row = lane / 4 + at / 2 * 8, column = lane % 4 * 2 + at % 2;
            float sum = in[lane]->c[at];
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
            out[lane]->c[at] = sum;
        }
}
struct Integers { int c[4]; word a[4], b[2]; };
struct Counts { int c[4]; };
template <bool SIGNED>
inline void multiply_bytes(const Integers* const* in, Counts* const* out) {
    int a[16][32], b[32][8];
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, member = lane % 4;
        for (int at = 0; at < 4; at++)
            for (int byte = 0; byte < 4; byte++) {
                const word bits = in[lane]->a[at] >> 8 * byte & 255;
                a[group + at % 2 * 8][at / 2 * 16 + 4 * member + byte] = SIGNED ? (int)(int8_t)bits : (int)bits;
            }
        for (int at = 0; at < 2; at++)
            for (int byte = 0; byte < 4; byte++) b[at * 16 + 4 * member + byte][group] = (int8_t)(in[lane]->b[at] >> 8 * byte);
    }
    for (int lane = 0; lane < 32; lane++)
        for (int at = 0; at < 4; at++) {
            const int row = lane / 4 + at / 2 * 8, column = lane % 4 * 2 + at % 2;
            int sum = in[lane]->c[at];
            for (int k = 0; k < 32; k++) sum += a[row][k] * b[k][column];
            out[lane]->c[at] = sum;
        }
}
template <float (*FROM)(half_word), int K>
inline void product(float (&c)[4], const word (&a)[4], word b0, word b1) {
    Operands given;
    std::memcpy(given.c, c, 16), std::memcpy(given.a, a, 16), given.b[0] = b0, given.b[1] = b1;
    Sums sums = together<Operands, Sums>(given, multiply<FROM, K>);
    std::memcpy(c, sums.c, 16);
}
template <bool SIGNED>
inline void byte_product(int (&c)[4], const word (&a)[4], word b0, word b1) {
    Integers given;
    std::memcpy(given.c, c, 16), std::memcpy(given.a, a, 16), given.b[0] = b0, given.b[1] = b1;
    Counts sums = together<Integers, Counts>(given, multiply_bytes<SIGNED>);
    std::memcpy(c, sums.c, 16);
}
}  // namespace emulation

inline void multiply_bf16(float (&c)[4], const word (&a)[4], word b0, word b1) { emulation::product<emulated_bf16, 16>(c, a, b0, b1); }
inline void multiply_fp16(float (&c)[4], const word (&a)[4], word b0, word b1) { emulation::product<from_fp16, 16>(c, a, b0, b1); }
