// Where codes, scales and zero points of a warp lie, as `layout.py` puts them, and loading them.
//
// Fixed when compiled: BITS, ACTIVATION, SCALE, ZEROS, GROUP (inputs per scale: 128, 64, 32) and WIDE (groups of so many times
// 128, 0 for whole rows), UNIT (inputs that a warp takes at once), TILES (of 16 rows to a warp).
#pragma once
#include "integer.cuh"

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

// Where a warp's next unit lies, for each of its tiles.
struct Place {
    const uint4* codes[TILES];
    const unsigned char* scales[TILES];
#if ZEROS
    const unsigned char* zeros[TILES];
#endif

    DEVICE void find(const Weights& weights, int tile, int unit, int lane) {
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            int here = tile + slot < weights.tiles ? tile + slot : weights.tiles - 1;  // past the end: read, and never written
            codes[slot] = weights.codes + ((unsigned)(here * weights.units + unit) * LOADS * 32 + lane);
            unsigned at = ((unsigned)(here * weights.scale_blocks + (WIDE == 1 ? unit * BLOCKS : 0)) * 8 + lane / 4) * GROUPS;
            scales[slot] = weights.scales + at * ScalePair::SIZE;
#if ZEROS
            zeros[slot] = weights.zeros + at * 2;
#endif
        }
    }

    DEVICE void load_scales(Unit& target, int slot, int unit, int index) const {
        unsigned at = index / GROUPS * 8 * GROUPS + index % GROUPS;
        if (WIDE != 1) at = WIDE == 0 ? 0 : (unsigned)(unit * BLOCKS + index) / (WIDE ? WIDE : 1) * 8;
        target.scales[slot][index].load(scales[slot] + at * ScalePair::SIZE);
#if ZEROS
        target.zeros[slot][index] = load_half_word(zeros[slot] + at * 2);
#endif
    }

    DEVICE void load(Unit& target, int unit) const {
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
            for (int load = 0; load < LOADS; load++) target.codes[slot][load] = load_stream(codes[slot] + load * 32);
#pragma unroll
            for (int index = 0; index < BLOCKS * GROUPS; index++) load_scales(target, slot, unit, index);
        }
    }
};
