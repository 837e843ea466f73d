// A GPU's block, or cluster of blocks, on a CPU: every thread is a fibre that runs until it must wait for others. What
// `intrinsics.cuh` asks of the card is done here by plain arithmetic, so that tests run the kernels' own source.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

typedef uint32_t word;
typedef uint16_t half_word;
struct uint2 { word x, y; };
struct uint4 { word x, y, z, w; };
struct int2 { int x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Dimensions { int x, y, z; };

#define DEVICE inline __attribute__((visibility("hidden")))
#define KERNEL static
#define __launch_bounds__(...)
#define __grid_constant__
#define SHARED_MEMORY(name) unsigned char* name = fibre_here->shared

DEVICE uint2 make_uint2(word x, word y) { return {x, y}; }
DEVICE uint4 make_uint4(word x, word y, word z, word w) { return {x, y, z, w}; }
DEVICE int2 make_int2(int x, int y) { return {x, y}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Barrier { int waiting = 0, turn = 0; };

struct Warp {
    Barrier barrier;
    word words[32][8];
};

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    Dimensions thread, block;
    Warp* warp;
    unsigned char* shared;
    std::map<int, Barrier>* barriers;
    int threads, lane, rank, turn;
    bool done = false;
};

static Fibre* fibre_here;
static ucontext_t scheduler;
static Dimensions gridDim, blockDim;
static Barrier cluster_barrier;
static int cluster_threads;
static std::vector<std::vector<unsigned char>> cluster_memory;
#define threadIdx (fibre_here->thread)
#define blockIdx (fibre_here->block)

static int arrive_at(Barrier& barrier, int threads) {
    int turn = barrier.turn;
    if (++barrier.waiting == threads) {
        barrier.waiting = 0;
        barrier.turn++;
    }
    return turn;
}
static void wait_for_turn(Barrier& barrier, int turn) {
    while (barrier.turn == turn) swapcontext(&fibre_here->context, &scheduler);
}
static void wait_for(Barrier& barrier, int threads) { wait_for_turn(barrier, arrive_at(barrier, threads)); }

DEVICE void synchronize_warp() { wait_for(fibre_here->warp->barrier, 32); }
DEVICE void synchronize_block() { wait_for((*fibre_here->barriers)[0], fibre_here->threads); }
DEVICE void synchronize_threads(int barrier, int threads) {
    if (threads == 32) synchronize_warp();
    else wait_for((*fibre_here->barriers)[barrier], threads);
}
DEVICE void synchronize_cluster() { wait_for(cluster_barrier, cluster_threads); }
DEVICE float load_from_block(const float* place, int rank) {
    size_t offset = (const unsigned char*)place - fibre_here->shared;
    return *(const float*)(cluster_memory[rank].data() + offset);
}

DEVICE uint4 load_stream(const uint4* address) { return *address; }
DEVICE uint2 load_pair(const uint2* address) { return *address; }
DEVICE uint4 load_now(const void* address) { return *(const uint4*)address; }
DEVICE word load_word(const void* address) { return *(const word*)address; }
DEVICE word load_half_word(const void* address) { return *(const half_word*)address; }
DEVICE void copy_to_shared(void* target, const void* source, bool filled) {
    if (filled) memcpy(target, source, 16);
    else memset(target, 0, 16);
}

DEVICE void finish_copies() {}
DEVICE void wait_for_inputs() {}
DEVICE void release_dependents() {}

DEVICE float as_float(word bits) { float v; memcpy(&v, &bits, 4); return v; }
DEVICE word as_word(float value) { word v; memcpy(&v, &value, 4); return v; }
DEVICE float from_fp16(half_word bits) { _Float16 v; memcpy(&v, &bits, 2); return (float)v; }
DEVICE half_word to_fp16(double value) { _Float16 v = (_Float16)value; half_word bits; memcpy(&bits, &v, 2); return bits; }
DEVICE float of_bf16(half_word bits) { return as_float((word)bits << 16); }
DEVICE half_word to_bf16(double value) {
    word bits = as_word((float)value);
    return (half_word)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

DEVICE word warp_maximum(word value) {
    fibre_here->warp->words[fibre_here->lane][6] = value;
    synchronize_warp();
    word largest = 0;
    for (auto& words : fibre_here->warp->words) largest = words[6] > largest ? words[6] : largest;
    synchronize_warp();
    return largest;
}
DEVICE float from_lane(float value, int distance) {
    fibre_here->warp->words[fibre_here->lane][7] = as_word(value);
    synchronize_warp();
    float other = as_float(fibre_here->warp->words[fibre_here->lane ^ distance][7]);
    synchronize_warp();
    return other;
}
DEVICE float maximum(float a, float b) { return std::fmax(a, b); }
DEVICE float magnitude(float value) { return std::fabs(value); }
DEVICE word pack_fp16(float low, float high) { return to_fp16(low) | (word)to_fp16(high) << 16; }
DEVICE word pack_two_bf16(float low, float high) { return to_bf16(low) | (word)to_bf16(high) << 16; }

DEVICE float exponential(float value) { return std::exp(value); }
DEVICE float reciprocal(float value) { return 1.0f / value; }

DEVICE word select_bits(word a, word mask, word b) { return (a & mask) | b; }
DEVICE word pick_bytes(word a, word b, word selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    word result = 0;
    for (int i = 0; i < 4; i++) {
        word digit = selector >> 4 * i, byte = (word)(both >> 8 * (digit & 7) & 0xFF);
        result |= (digit & 8 ? byte & 0x80 ? 0xFFu : 0u : byte) << 8 * i;
    }
    return result;
}
DEVICE word multiply_add_bf16(word a, word b, word c) {
    word result = 0;
    for (int i = 0; i < 32; i += 16)
        result |= (word)to_bf16((double)of_bf16(a >> i) * of_bf16(b >> i) + of_bf16(c >> i)) << i;
    return result;
}
DEVICE word multiply_add_fp16(word a, word b, word c) {
    word result = 0;
    for (int i = 0; i < 32; i += 16)
        result |= (word)to_fp16((double)from_fp16(a >> i) * from_fp16(b >> i) + from_fp16(c >> i)) << i;
    return result;
}

// sums[16 x 8] += a[16 x 16] b[16 x 8]: lanes put down what they hold, then each reads the rows and columns that it needs.
template <class Convert>
DEVICE void multiply_matrices(float (&c)[4], const word (&a)[4], word b0, word b1, Convert number) {
    auto& words = fibre_here->warp->words;
    int lane = fibre_here->lane;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    words[lane][4] = b0;
    words[lane][5] = b1;
    synchronize_warp();
    for (int part = 0; part < 4; part++) {
        int row = lane / 4, half = part / 2, column = lane % 4 * 2 + part % 2;
        double sum = c[part];
        for (int k = 0; k < 16; k++) {
            word x = words[row * 4 + k % 8 / 2][half + k / 8 * 2], y = words[column * 4 + k % 8 / 2][4 + k / 8];
            sum += (double)number((half_word)(x >> k % 2 * 16)) * number((half_word)(y >> k % 2 * 16));
        }
        c[part] = (float)sum;
    }
    synchronize_warp();
}
// sums[16 x 8] += a[16 x 32] b[32 x 8] of bytes, those of `a` as `Left`.
template <class Left>
DEVICE void multiply_byte_matrices(int (&c)[4], const word (&a)[4], word b0, word b1) {
    auto& words = fibre_here->warp->words;
    int lane = fibre_here->lane;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    words[lane][4] = b0;
    words[lane][5] = b1;
    synchronize_warp();
    for (int part = 0; part < 4; part++) {
        int row = lane / 4, half = part / 2, column = lane % 4 * 2 + part % 2;
        for (int k = 0; k < 32; k++) {
            word x = words[row * 4 + k % 16 / 4][half + k / 16 * 2], y = words[column * 4 + k % 16 / 4][4 + k / 16];
            c[part] += (int)(Left)(x >> k % 4 * 8) * (int8_t)(y >> k % 4 * 8);
        }
    }
    synchronize_warp();
}
// What a lane holds, by lanes.
template <class Number>
DEVICE Number of_lane(Number value, int lane) {
    auto& words = fibre_here->warp->words;
    memcpy(words[fibre_here->lane], &value, sizeof value);
    synchronize_warp();
    memcpy(&value, words[lane], sizeof value);
    synchronize_warp();
    return value;
}
DEVICE void multiply_bf16(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_matrices(c, a, b0, b1, of_bf16); }
DEVICE void multiply_fp16(float (&c)[4], const word (&a)[4], word b0, word b1) { multiply_matrices(c, a, b0, b1, from_fp16); }

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) { kernel(*(A*)arguments[I]...); }

template <class... A>
static void emulate(void (*kernel)(A...), const int* grid, const int* block, size_t shared, int cluster, void** arguments) {
    static std::vector<Fibre> fibres;
    static void (*body)();
    static void (*held)(A...);
    static void** values;
    held = kernel, values = arguments;
    body = [] {
        call(held, values, std::index_sequence_for<A...>{});
        fibre_here->done = true;
        swapcontext(&fibre_here->context, &scheduler);
    };
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {block[0], block[1], block[2]};
    int threads = block[0] * block[1] * block[2];
    cluster_threads = threads * cluster;
    for (int z = 0; z < grid[2]; z++) for (int y = 0; y < grid[1]; y += cluster) for (int x = 0; x < grid[0]; x++) {
        fibres = std::vector<Fibre>(cluster_threads);
        std::vector<Warp> warps(cluster_threads / 32);
        std::vector<std::map<int, Barrier>> barriers(cluster);
        cluster_memory.assign(cluster, std::vector<unsigned char>(shared + 16, 0xFF));  // NaN, until somebody writes
        for (int i = 0; i < cluster_threads; i++) {
            Fibre& fibre = fibres[i];
            int rank = i / threads, thread = i % threads;
            fibre.thread = {thread % block[0], thread / block[0] % block[1], thread / (block[0] * block[1])};
            fibre.block = {x, y + rank, z};
            fibre.warp = &warps[i / 32], fibre.lane = i % 32, fibre.threads = threads, fibre.rank = rank;
            fibre.shared = cluster_memory[rank].data(), fibre.barriers = &barriers[rank];
            fibre.stack.resize(1 << 16);
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.data();
            fibre.context.uc_stack.ss_size = fibre.stack.size();
            makecontext(&fibre.context, body, 0);
        }
        for (bool running = true; running;) {
            running = false;
            for (Fibre& fibre : fibres) {
                if (fibre.done) continue;
                running = true, fibre_here = &fibre;
                swapcontext(&scheduler, &fibre.context);
            }
        }
    }
}

#define EXPORT(name)                                                                                                        \
    extern "C" void run_##name(const int* grid, const int* block, size_t shared, int cluster, void** arguments) {         \
        emulate(name, grid, block, shared, cluster, arguments);                                                             \
    }
