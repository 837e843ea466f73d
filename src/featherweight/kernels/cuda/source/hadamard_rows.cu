// Signed Hadamard transforms of many rows in 16 bits, as hadamard.cu writes them down; bits of the index by the matrix unit, in tf32
// where numbers have more than 16 bits. A block takes a row, then another. A thread has the same entries of all its rows, and their
// signs in registers.
//
// Fixed when compiled: FACTOR, TWOS, IN and OUT (1 bf16, 2 fp16), INVERTED, THREADS, RESIDENT (blocks on a multiprocessor).
#define CLUSTER 1
#include "hadamard_steps.cuh"

// Signs of 16-byte pieces: of pair k of piece i the bits 4 (i % 4) + k and 16 more of word i / 4; or of pairs one by one.
template <int count>
struct Signs {
    word words[(count + 3) / 4] = {};

    DEVICE void take_pair(int pair, word bits) { words[pair / 16] |= ((bits & 1) | (bits >> 1 & 1) << 16) << pair % 16; }
    DEVICE word applied(word value, int pair) const { return value ^ (words[pair / 16] << (15 - pair % 16) & 0x80008000u); }
    DEVICE void take(int piece, word bits) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) take_pair(4 * piece + pair, bits >> 2 * pair);
    }
    DEVICE void apply(word (&pairs)[4], int piece) const {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) pairs[pair] = applied(pairs[pair], 4 * piece + pair);
    }
};

#if FACTOR > 1
#include "hadamard_columns.cuh"
#else
#include "hadamard_powers.cuh"
#endif

KERNEL void __launch_bounds__(THREADS, RESIDENT) hadamard_rows(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
    transform_rows(given, shared, threadIdx.x / 32, threadIdx.x & 31);
}

EXPORT(hadamard_rows)
