// The values of some rows, dense, in the activations' dtype: fp32 arithmetic, then rounded, as the plain twin does it.
//
// A warp takes one tile and one unit after the other, and asks for the next before it decodes the one it has. Fixed when compiled:
// what `tiles.cuh` names; UNIT is 256, TILES is 1.
#include "tiles.cuh"

// Both numbers of a pair times a scale, rounded once.
#if ACTIVATION == 1 - SCALE
typedef word Scale;
DEVICE Scale scale_of(const ScalePair& scales, int row) { return twice(row ? scales.both >> 16 : scales.both & 0xFFFFu); }
DEVICE word scaled_pair(word pair, Scale scale) { return multiply_add(pair, scale, 0x80008000u); }
#else
typedef float Scale;
DEVICE Scale scale_of(const ScalePair& scales, int row) { return row ? scales.lower() : scales.upper(); }
DEVICE word scaled_pair(word pair, Scale scale) {
    return pack_numbers(from_number((half_word)(pair & 0xFFFFu)) * scale, from_number((half_word)(pair >> 16)) * scale);
}
#endif

constexpr int STRIDE = UNIT * 2 + 64;  // bytes of a row in shared memory: no bank conflicts

// The eight values of either row of a chunk that a lane holds, to shared memory.
template <int CHUNK>
DEVICE void put_chunks(const Unit& unit, unsigned char* place) {
    if constexpr (CHUNK < UNIT / 32) {
        constexpr int index = CHUNK * 32 / GROUP;
        ZeroPair zero;
#if ZEROS
        zero.set(unit.zeros[0][index]);
#else
        zero.symmetric();
#endif
        word a[4], b[4];
        decode_step<2 * CHUNK>((const word*)unit.codes[0], zero, a);
        decode_step<2 * CHUNK + 1>((const word*)unit.codes[0], zero, b);
        Scale first = scale_of(unit.scales[0][index], 0), second = scale_of(unit.scales[0][index], 1);
        uint4 above = {scaled_pair(a[0], first), scaled_pair(a[2], first), scaled_pair(b[0], first), scaled_pair(b[2], first)};
        uint4 below = {scaled_pair(a[1], second), scaled_pair(a[3], second), scaled_pair(b[1], second), scaled_pair(b[3], second)};
        *(uint4*)(place + CHUNK * 64) = above;
        *(uint4*)(place + 8 * STRIDE + CHUNK * 64) = below;
        put_chunks<CHUNK + 1>(unit, place);
    }
}

// Rows `first_tile` * 16 and on to `y [rows, inputs]`, `count` tiles of them; inputs are a multiple of 8. A warp puts its values
// together in shared memory, so that it writes whole lines.
KERNEL void __launch_bounds__(THREADS)
dequantize(Weights weights, half_word* y, int rows, int inputs, int first_tile, int count) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x, work = blockIdx.x * blockDim.y + threadIdx.y, step = gridDim.x * blockDim.y, all = count * weights.units;
    Unit unit;
    Source source;
    source.find(weights, first_tile + work / weights.units, work % weights.units, lane);
    if (work < all) load_unit(unit, source);
    release_dependents();
    wait_for_inputs();
    unsigned char* mine = memory + threadIdx.y * 16 * STRIDE;
    for (; work < all; work += step) {
        put_chunks<0>(unit, mine + lane / 4 * STRIDE + lane % 4 * 16);
        int next = work + step;
        source.find(weights, first_tile + next / weights.units, next % weights.units, lane);
        if (next < all) load_unit(unit, source);
        synchronize_threads(0, 32);
        int tile = work / weights.units, input = work % weights.units * UNIT + lane * 8, left = rows - (first_tile + tile) * 16;
        if (input < inputs) {
#pragma unroll
            for (int row = 0; row < 16; row++) {
                if (row < left) *(uint4*)(y + (long)(tile * 16 + row) * inputs + input) = *(const uint4*)(mine + row * STRIDE + lane * 16);
            }
        }
        synchronize_threads(0, 32);
    }
}
EXPORT(dequantize)
