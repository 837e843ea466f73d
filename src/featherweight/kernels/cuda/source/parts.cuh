// What a lane needs of one unit of a tile, brought to shared memory in the background: codes, scales, zero points. No other lane reads
// it, so that each waits for its own copies alone.
//
// Fixed when compiled: what `tiles.cuh` names (TILES is 1).
#pragma once
#include "tiles.cuh"
#include "sending.cuh"

constexpr int SCALE_BYTES = GROUPS * ScalePair::SIZE, ZERO_BYTES = GROUPS == 1 ? 4 : GROUPS * 2;  // of a lane and a block
constexpr int SCALES_AT = LOADS * 512, ZEROS_AT = SCALES_AT + BLOCKS * 32 * SCALE_BYTES;
constexpr int PART_BYTES = ZEROS_AT + (ZEROS ? BLOCKS * 32 * ZERO_BYTES : 0);

struct Parts {
    const unsigned char *codes, *scales, *zeros;  // of the lane in the tile that is asked for next
    unsigned codes_step, scales_step;             // bytes from there to the warp's next tile
    int blocks[BLOCKS];                           // of scales, that those of the unit lie in, from `scales` on

    DEVICE void find(const Weights& weights, int tile, int step, int unit, int lane) {
        codes = (const unsigned char*)(weights.codes + (long)(tile * weights.units + unit) * LOADS * 32 + lane);
        long first = ((long)tile * weights.scale_blocks + (WIDE == 1 ? unit * BLOCKS : 0)) * 8 + lane / 4;
        scales = weights.scales + first * SCALE_BYTES, zeros = weights.zeros + first * GROUPS * 2;
        codes_step = step * weights.units * LOADS * 512, scales_step = step * weights.scale_blocks * 8 * SCALE_BYTES;
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            int wanted = WIDE == 0 ? 0 : (unit * BLOCKS + block) / (WIDE ? WIDE : 1);
            blocks[block] = WIDE == 1 ? block : wanted < weights.scale_blocks ? wanted : weights.scale_blocks - 1;
        }
    }

    // Asks for the next tile; `to`: of the warp.
    DEVICE void ask(unsigned char* to, int lane) {
#pragma unroll
        for (int load = 0; load < LOADS; load++) copy_to_shared(to + load * 512 + lane * 16, codes + load * 512, true);
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            int there = (WIDE == 1 ? block : blocks[block]) * 8;
            copy_bytes<SCALE_BYTES>(to + SCALES_AT + (block * 32 + lane) * SCALE_BYTES, scales + there * SCALE_BYTES);
#if ZEROS
            const unsigned char* from = zeros + there * 2 * GROUPS - (GROUPS == 1 ? lane / 4 % 2 * 2 : 0);
            copy_bytes<ZERO_BYTES>(to + ZEROS_AT + (block * 32 + lane) * ZERO_BYTES, from);
#endif
        }
        codes += codes_step, scales += scales_step, zeros += scales_step / ScalePair::SIZE * 2;
    }

    static DEVICE ScalePair scales_of(const unsigned char* part, int group, int lane) {
        ScalePair pair;
        pair.read(part + SCALES_AT + (group / GROUPS * 32 + lane) * SCALE_BYTES + group % GROUPS * ScalePair::SIZE);
        return pair;
    }
    static DEVICE word zeros_of(const unsigned char* part, int group, int lane) {
        const unsigned char* place = part + ZEROS_AT + (group / GROUPS * 32 + lane) * ZERO_BYTES;
        return *(const half_word*)(place + (GROUPS == 1 ? lane / 4 % 2 : group % GROUPS) * 2);
    }
};
