// The values of some rows, dense, in the activations' dtype: fp32 arithmetic, then rounded, as the plain twin does it.
//
// A warp takes one tile and one unit. Fixed when compiled: what `tiles.cuh` names; TILES is 1.
#include "tiles.cuh"

DEVICE word scaled_pair(word pair, float scale) {
    return (word)to_number(from_number((half_word)(pair & 0xFFFFu)) * scale) |
           (word)to_number(from_number((half_word)(pair >> 16)) * scale) << 16;
}

// The eight values of either row of a chunk that a lane holds.
template <int CHUNK>
DEVICE void write_chunks(const Unit& unit, half_word* upper, half_word* lower, bool has_upper, bool has_lower, int left) {
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
        float first = unit.scales[0][index].upper(), second = unit.scales[0][index].lower();
        if (CHUNK * 32 < left) {
            uint4 above = {scaled_pair(a[0], first), scaled_pair(a[2], first), scaled_pair(b[0], first), scaled_pair(b[2], first)};
            uint4 below = {scaled_pair(a[1], second), scaled_pair(a[3], second), scaled_pair(b[1], second), scaled_pair(b[3], second)};
            if (has_upper) *(uint4*)(upper + CHUNK * 32) = above;
            if (has_lower) *(uint4*)(lower + CHUNK * 32) = below;
        }
        write_chunks<CHUNK + 1>(unit, upper, lower, has_upper, has_lower, left);
    }
}

// Rows `first_tile` * 16 and on to `y [rows, inputs]`, `count` tiles of them; inputs are a multiple of 8.
KERNEL void __launch_bounds__(THREADS)
dequantize(Weights weights, half_word* y, int rows, int inputs, int first_tile, int count) {
    int lane = threadIdx.x, work = blockIdx.x * blockDim.y + threadIdx.y, tile = work / weights.units, index = work % weights.units;
    Unit unit;
    Source source;
    source.find(weights, first_tile + tile, index, lane);
    if (tile < count) load_unit(unit, source);
    release_dependents();
    wait_for_inputs();
    if (tile >= count) return;
    int row = (first_tile + tile) * 16 + lane / 4, input = index * UNIT + lane % 4 * 8;
    half_word* upper = y + (long)(tile * 16 + lane / 4) * inputs + input;
    write_chunks<0>(unit, upper, upper + 8L * inputs, row < rows, row + 8 < rows, inputs - input);
}
EXPORT(dequantize)
