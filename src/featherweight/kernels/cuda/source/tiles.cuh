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

// Where the codes, scales and zero points of one unit of a warp's tiles lie. Past the end what is there is read again.
struct Source {
    const uint4* codes[TILES];
    const unsigned char* scales[TILES];
    const unsigned char* zeros[TILES];
    int unit;

    DEVICE void find(const Weights& weights, int tile, int wanted, int lane) {
        unit = wanted < weights.units ? wanted : weights.units - 1;
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            int here = tile + slot * (GATED ? weights.tiles / 2 : 1);
            if (here >= weights.tiles) here = weights.tiles - 1;
            codes[slot] = weights.codes + ((unsigned)(here * weights.units + unit) * LOADS * 32 + lane);
            unsigned first = ((unsigned)(here * weights.scale_blocks + (WIDE == 1 ? unit * BLOCKS : 0)) * 8 + lane / 4) * GROUPS;
            scales[slot] = weights.scales + first * ScalePair::SIZE;
            zeros[slot] = ZEROS ? weights.zeros + first * 2 : nullptr;
        }
    }

    // Where the scales of group `index` of the unit lie, from the first.
    DEVICE unsigned place(int index) const {
        if (WIDE != 1) return WIDE == 0 ? 0 : (unsigned)(unit * BLOCKS + index) / (WIDE ? WIDE : 1) * 8;
        return index / GROUPS * 8 * GROUPS + index % GROUPS;
    }

    // Asks for what group `index` of the unit needs and no group before it does.
    DEVICE void load(Unit& target, int index) const {
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
            for (int load = loads_before(index * GROUP); load < loads_before((index + 1) * GROUP); load++) {
                target.codes[slot][load] = load_stream(codes[slot] + load * 32);
            }
            target.scales[slot][index].load(scales[slot] + place(index) * ScalePair::SIZE);
#if ZEROS
            target.zeros[slot][index] = load_half_word(zeros[slot] + place(index) * 2);
#endif
        }
    }
};

DEVICE void load_unit(Unit& target, const Source& source) {
#pragma unroll
    for (int index = 0; index < BLOCKS * GROUPS; index++) source.load(target, index);
}
