// y = x Wᵀ for few tokens: weights are the matrix unit's 16-row operand, tokens its columns.
//
// A warp takes `TILES` tiles of 16 rows and, in each phase, a unit of UNIT inputs: it asks for all codes of the unit at once,
// and for those of its next unit as it uses these up. Warps of a block lie in `row_warps` by `input_warps`; those of the same
// inputs share the activations, which pass through shared memory in two stages. Sums over inputs are taken per group in the
// matrix unit, times the group's scale in fp32, then over the input warps in their order, so results repeat bit for bit.
//
// To add a storage, write its `decode_step`, `ZeroPair` and `ScalePair` in a file beside `integer.cuh`; to add a term, add to
// `total` before the sums are exchanged.
//
// Fixed when compiled: BITS, ACTIVATION, SCALE, ZEROS, GROUP (inputs per scale: 128, 64, 32), UNIT, TILES, COLUMNS (tokens in
// eights), THREADS, RESIDENT.
#include "integer.cuh"

constexpr int BLOCK = 128, BLOCKS = UNIT / BLOCK;  // inputs that a row of scales covers, such blocks in a unit
constexpr int GROUPS = BLOCK / GROUP;              // scales to a block
constexpr int STRIDE = UNIT + 32;                  // of a token's activations in shared memory: no bank conflicts

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
    int loads, blocks;    // of a tile: 16-byte loads of a lane, blocks of 128 inputs
    int group_shift;      // blocks that share a scale, as a power of two
    int scale_blocks;     // blocks of scales of a tile
};

// Codes `load` of a unit for one tile; past the end those of the last load, which meet activations of zero.
DEVICE uint4 load_codes(const Weights& weights, int tile, int unit, int load, int lane) {
    int index = unit * LOADS + load;
    index = index < weights.loads ? index : weights.loads - 1;
    return load_stream(weights.codes + ((long)tile * weights.loads + index) * 32 + lane);
}

DEVICE void load_scales(Unit& unit, const Weights& weights, int slot, int tile, int first, int block, int lane) {
    int index = first + block < weights.blocks ? first + block : weights.blocks - 1;
    long at = (((long)tile * weights.scale_blocks + (index >> weights.group_shift)) * 8 + lane / 4) * GROUPS;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        unit.scales[slot][block * GROUPS + group].load(weights.scales, at + group);
#if ZEROS
        unit.zeros[slot][block * GROUPS + group] = load_half_word(weights.zeros + 2 * (at + group));
#endif
    }
}

template <int STEP, int END>
DEVICE void multiply_steps(float (&sums)[TILES][COLUMNS][4], const Unit& unit, const ZeroPair (&zero)[TILES],
                           const unsigned char* const (&tokens)[COLUMNS]) {
    if constexpr (STEP < END) {
        uint4 x[COLUMNS];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) x[column] = *(const uint4*)(tokens[column] + STEP / 2 * 64);
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            const word* words = (const word*)unit.codes[slot];
            word a[4], b[4];
            decode_step<STEP>(words, zero[slot], a);
            decode_step<STEP + 1>(words, zero[slot], b);
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                multiply_tile(sums[slot][column], a, x[column].x, x[column].y);
                multiply_tile(sums[slot][column], b, x[column].z, x[column].w);
            }
        }
        multiply_steps<STEP + 2, END>(sums, unit, zero, tokens);
    }
}

// One group of a unit: exact products of its codes, then its scale.
template <int INDEX>
DEVICE void multiply_groups(float (&total)[TILES][COLUMNS][4], Unit& unit, const unsigned char* const (&tokens)[COLUMNS],
                            const Weights& weights, int tile, int next, int lane) {
    if constexpr (INDEX < BLOCKS * GROUPS) {
        float sums[TILES][COLUMNS][4] = {};
        ZeroPair zero[TILES];
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
#if ZEROS
            zero[slot].set(unit.zeros[slot][INDEX]);
#else
            zero[slot].symmetric();
#endif
        }
        multiply_steps<INDEX * GROUP / 16, (INDEX + 1) * GROUP / 16>(sums, unit, zero, tokens);
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            float upper = unit.scales[slot][INDEX].upper(), lower = unit.scales[slot][INDEX].lower();
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                total[slot][column][0] += upper * sums[slot][column][0];
                total[slot][column][1] += upper * sums[slot][column][1];
                total[slot][column][2] += lower * sums[slot][column][2];
                total[slot][column][3] += lower * sums[slot][column][3];
            }
            if (next >= 0) {  // the codes just used up make room for those of the next unit
                constexpr int used = INDEX * LOADS / (BLOCKS * GROUPS), end = (INDEX + 1) * LOADS / (BLOCKS * GROUPS);
#pragma unroll
                for (int load = used; load < end; load++) {
                    unit.codes[slot][load] = load_codes(weights, tile + slot, next, load, lane);
                }
                if constexpr ((INDEX + 1) % GROUPS == 0) {
                    load_scales(unit, weights, slot, tile + slot, next * BLOCKS, INDEX / GROUPS, lane);
                }
            }
        }
        multiply_groups<INDEX + 1>(total, unit, tokens, weights, tile, next, lane);
    }
}

KERNEL void __launch_bounds__(THREADS, RESIDENT)
multiply(Weights weights, const half_word* x, half_word* y, const half_word* bias, int rows, int tiles, int inputs, int tokens,
         int x_stride, int y_stride, int row_shift) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x, row_warp = threadIdx.y, input_warp = threadIdx.z, row_warps = blockDim.y, input_warps = blockDim.z;
    int units = (weights.blocks + BLOCKS - 1) / BLOCKS;
    int tile = (blockIdx.x * row_warps + row_warp) * TILES;
    tile = tile + TILES <= tiles ? tile : tiles - TILES;  // rows past the end repeat the last ones, and are not written
    Unit unit;
    if (input_warp < units) {
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
            for (int load = 0; load < LOADS; load++) unit.codes[slot][load] = load_codes(weights, tile + slot, input_warp, load, lane);
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) load_scales(unit, weights, slot, tile + slot, input_warp * BLOCKS, block, lane);
        }
    }
    release_dependents();
    wait_for_inputs();
    int stage_bytes = tokens * STRIDE * 2;
    unsigned char* stages = memory + 2 * input_warp * stage_bytes;
    int sharing = row_warps * 32, member = row_warp * 32 + lane;
    float total[TILES][COLUMNS][4] = {};
    for (int current = input_warp, phase = 0; phase * input_warps < units; current += input_warps, phase++) {
        auto stage_activations = [&](int unit_index, unsigned char* stage) {
            for (int piece = member; piece < tokens * (UNIT / 8); piece += sharing) {
                int token = piece / (UNIT / 8), column = piece % (UNIT / 8) * 8, input = unit_index * UNIT + column;
                bool inside = input < inputs;
                copy_to_shared(stage + 2 * (token * STRIDE + column), x + (long)token * x_stride + (inside ? input : 0), inside);
            }
        };
        if (phase == 0) stage_activations(current, stages);
        finish_copies();
        synchronize_threads(1 + input_warp, sharing);
        int next = current + input_warps < units ? current + input_warps : -1;
        if (next >= 0) stage_activations(next, stages + (phase + 1) % 2 * stage_bytes);
        if (current < units) {
            const unsigned char* columns[COLUMNS];
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                int token = column * 8 + lane / 4;
                token = token < tokens ? token : tokens - 1;
                columns[column] = stages + phase % 2 * stage_bytes + 2 * (token * STRIDE + lane % 4 * 8);
            }
            multiply_groups<0>(total, unit, columns, weights, tile, next, lane);
        }
    }
    // Sums over the input warps, in their order.
    float* exchange = (float*)(memory + 2 * input_warps * stage_bytes);
    int block_rows = 1 << row_shift;
#pragma unroll
    for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                int token = column * 8 + lane % 4 * 2 + part % 2, row = (row_warp * TILES + slot) * 16 + lane / 4 + part / 2 * 8;
                if (token < tokens) exchange[(input_warp * tokens + token) * block_rows + row] = total[slot][column][part];
            }
        }
    }
    synchronize_block();
    int thread = (input_warp * row_warps + row_warp) * 32 + lane;
    for (int entry = thread; entry < tokens << row_shift; entry += row_warps * input_warps * 32) {
        int token = entry >> row_shift, row = entry & (block_rows - 1), wanted = (blockIdx.x << row_shift) + row;
        if (wanted >= rows) continue;
        float sum = bias ? from_number(bias[wanted]) : 0.0f;
        for (int other = 0; other < input_warps; other++) sum += exchange[(other * tokens + token) * block_rows + row];
        y[(long)token * y_stride + wanted] = to_number(sum);
    }
}
