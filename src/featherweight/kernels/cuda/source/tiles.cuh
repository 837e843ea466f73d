// Where codes, scales and zero points of a warp lie, as `layout.py` puts them, and loading them.
//
// Fixed when compiled: BITS, ACTIVATION, SCALE, ZEROS, GROUP (inputs per scale: 128, 64, 32) and WIDE (groups of so many times
// 128, 0 for whole rows), UNIT (inputs that a warp takes at once), TILES (of 16 rows to a warp).
// GATED: 0; 1 SiLU, 2 GELU by its tanh form: outputs of the first half of the rows, activated, times those of the second; a warp
// then has two tiles, one of either half.
#pragma once
#include "integer.cuh"

#ifndef GATED
#define GATED 0
#endif

constexpr int BLOCK = 128, BLOCKS = UNIT / BLOCK;  // inputs that a row of scales covers, such blocks in a unit
constexpr int GROUPS = BLOCK / GROUP;              // scales to a block

struct Unit {
    uint4 codes[TILES][LOADS];
    ScalePair scales[TILES][BLOCKS * GROUPS];
#if ZEROS
    word zeros[TILES][BLOCKS * GROUPS];
#endif
};

struct Weights {
    const uint4* codes;
    const unsigned char* scales;
    const unsigned char* zeros;
    int tiles, units;  // of 16 rows, and of UNIT inputs, that the weight as padded comes to
    int scale_blocks;  // of a tile
};

// Asks for the codes, scales and zero points of unit `unit` of tiles `tile` and on. Past the end what is there is read again.
DEVICE void load_unit(Unit& target, const Weights& weights, int tile, int unit, int lane) {
    unit = unit < weights.units ? unit : weights.units - 1;
#pragma unroll
    for (int slot = 0; slot < TILES; slot++) {
        int here = tile + slot * (GATED ? weights.tiles / 2 : 1);
        if (here >= weights.tiles) here = weights.tiles - 1;
        const uint4* codes = weights.codes + ((unsigned)(here * weights.units + unit) * LOADS * 32 + lane);
#pragma unroll
        for (int load = 0; load < LOADS; load++) target.codes[slot][load] = load_stream(codes + load * 32);
        unsigned first = ((unsigned)(here * weights.scale_blocks + (WIDE == 1 ? unit * BLOCKS : 0)) * 8 + lane / 4) * GROUPS;
        const unsigned char* scales = weights.scales + first * ScalePair::SIZE;
#pragma unroll
        for (int index = 0; index < BLOCKS * GROUPS; index++) {
            unsigned at = index / GROUPS * 8 * GROUPS + index % GROUPS;
            if (WIDE != 1) at = WIDE == 0 ? 0 : (unsigned)(unit * BLOCKS + index) / (WIDE ? WIDE : 1) * 8;
            target.scales[slot][index].load(scales + at * ScalePair::SIZE);
#if ZEROS
            target.zeros[slot][index] = load_half_word(weights.zeros + (first + at) * 2);
#endif
        }
    }
}
