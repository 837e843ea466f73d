// y = x Wᵀ for few tokens: weights are the matrix unit's 16-row operand, tokens its columns.
//
// A warp takes `TILES` tiles of 16 rows and, in each phase, a unit of UNIT inputs; before it multiplies by one unit it asks for all
// codes of its next, so that a unit of every warp is under way at any time. Warps of a block lie in `row_warps` by `input_warps`; those of the same
// inputs share the activations, which pass through shared memory in two stages. Sums over inputs are taken per group in the
// matrix unit, times the group's scale in fp32, then over the input warps in their order, so results repeat bit for bit.
//
// To add a storage, write its `decode_step`, `ZeroPair` and `ScalePair` in a file beside `integer.cuh`; to add a term, add to
// `total` before the sums are exchanged.
//
// Fixed when compiled: what `tiles.cuh` names, COLUMNS (tokens in eights), SPLITS, THREADS, RESIDENT.
#include "tiles.cuh"

constexpr int SPAN = GATED ? 1 : TILES;  // tiles of outputs to a warp
constexpr int STRIDE = UNIT + 32;  // of a token's activations in shared memory: no bank conflicts

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
DEVICE void multiply_groups(float (&total)[TILES][COLUMNS][4], const Unit& unit, const unsigned char* const (&tokens)[COLUMNS]) {
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
        }
        multiply_groups<INDEX + 1>(total, unit, tokens);
    }
}

// How the activations of a block lie in shared memory, and how they get there.
struct Activations {
    unsigned char* stages;  // of this warp's unit in each phase: [tokens][STRIDE]
    int bytes, tokens, inputs, stride, member, sharing;
    const half_word* x;

    DEVICE unsigned char* stage(int index) const { return stages + index * bytes; }

    DEVICE void copy_row(int token, int piece, int unit, int index) const {
        int input = unit * UNIT + piece * 8;
        bool inside = input < inputs;
        copy_to_shared(stage(index) + 2 * (token * STRIDE + piece * 8), x + (long)token * stride + (inside ? input : 0), inside);
    }

    DEVICE void copy(int unit, int index) const {
        constexpr int PIECES = UNIT / 8;  // of 16 bytes, of a token
        for (int piece = member; piece < tokens * PIECES; piece += sharing) copy_row(piece / PIECES, piece % PIECES, unit, index);
    }
};

// Writes a warp's sums to shared memory and starts anew.
DEVICE void put_sums(float* sums, float (&total)[TILES][COLUMNS][4], int tokens, int block_rows, int row_warp, int lane) {
#pragma unroll
    for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                int token = column * 8 + lane % 4 * 2 + part % 2, row = (row_warp * TILES + slot) * 16 + lane / 4 + part / 2 * 8;
                if (token < tokens) sums[token * block_rows + row] = total[slot][column][part];
                total[slot][column][part] = 0.0f;
            }
        }
    }
}

DEVICE float activate(float value) {
    float scale = 1.0f;
    if (GATED == 2) scale = 1.5957691216057308f * (1.0f + 0.044715f * value * value);
    return value / (1.0f + exponential(-scale * value));
}

struct Outputs {
    half_word* y;
    const half_word* bias;
    int rows, tokens, stride, row_shift;  // a block's rows are 2^row_shift

    // Adds what the input warps of all blocks of the cluster found, in a fixed order.
    DEVICE float add(const float* place, int input_warps) const {
        float sum = 0.0f;
        for (int other = 0; other < SPLITS; other++) {
#pragma unroll 8
            for (int warp = 0; warp < input_warps; warp++) sum += load_from_block(place + (warp * tokens << row_shift), other);
        }
        return sum;
    }

    DEVICE void write(const float* sums, int block, int input_warps, int split, int thread, int threads) const {
        constexpr int HALVES = GATED ? 1 : 0;
        int shift = row_shift - HALVES;  // of the outputs of a block
        for (int entry = split * threads + thread; entry < tokens << shift; entry += SPLITS * threads) {
            int token = entry >> shift, at = entry & ((1 << shift) - 1), row = (block << shift) + at;
            if (row >= rows) continue;
            const float* place = sums + (token << row_shift) + (GATED ? at / 16 * 32 + at % 16 : at);
            float sum = add(place, input_warps);
            if (bias) sum += from_number(bias[row]);
#if GATED
            float other = add(place + 16, input_warps);
            if (bias) other += from_number(bias[rows + row]);
            sum = activate(sum) * other;
#endif
            y[(long)token * stride + row] = to_number(sum);
        }
    }
};

// Blocks (x, y): the SPLITS blocks of equal x take the units in turn and form a cluster. Groups of rows are dealt out to the x:
// `share` to each, one more to the first `spare`. `phases` is how often a warp takes a unit of the same rows. `resident`: all
// activations stay in shared memory, else they pass through two stages.
KERNEL void __launch_bounds__(THREADS, RESIDENT)
multiply(Weights weights, const half_word* x, half_word* y, const half_word* bias, int rows, int inputs, int tokens, int x_stride,
         int y_stride, int row_shift, int share, int spare, int phases, int resident) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x, row_warp = threadIdx.y, input_warp = threadIdx.z, row_warps = blockDim.y, input_warps = blockDim.z;
    int step = SPLITS * input_warps, first = blockIdx.y * input_warps + input_warp, units = weights.units;
    int stages = resident ? phases : 2, index = blockIdx.x;
    int rounds = share + (index < spare), block = index * share + (index < spare ? index : spare);
    Unit units_held[2];
    load_unit(units_held[0], weights, (block * row_warps + row_warp) * SPAN, first, lane);
    release_dependents();
    wait_for_inputs();

    int sharing = row_warps * 32, stage_bytes = tokens * STRIDE * 2;
    Activations activations = {memory + input_warp * stages * stage_bytes, stage_bytes, tokens, inputs, x_stride,
                               row_warp * 32 + lane, sharing, x};
    Outputs outputs = {y, bias, rows, tokens, y_stride, row_shift};
    float* sums = (float*)(memory + input_warps * stages * stage_bytes);
    int column_at[COLUMNS];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        int token = column * 8 + lane / 4;
        column_at[column] = 2 * ((token < tokens ? token : tokens - 1) * STRIDE + lane % 4 * 8);
    }
    activations.copy(first, 0);
    float total[TILES][COLUMNS][4] = {};
    int round = 0, phase = 0, turn = 0, current = first;
    // Asks for the warp's next unit, then multiplies by the one that is there; at the end of a group of rows writes its sums.
    auto take = [&](const Unit& now, Unit& then) {
        bool last = phase + 1 == phases, more = !last || round + 1 < rounds;
        int next = last ? first : current + step, here = resident ? phase : turn & 1;
        if (more) load_unit(then, weights, ((block + last) * row_warps + row_warp) * SPAN, next, lane);
        if (!resident || round == 0) {
            finish_copies();
            synchronize_threads(1 + input_warp, sharing);
            if (resident ? !last : more) activations.copy(next, resident ? phase + 1 : here ^ 1);
        }
        if (current < units) {
            const unsigned char* columns[COLUMNS];
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) columns[column] = activations.stage(here) + column_at[column];
            multiply_groups<0>(total, now, columns);
        }
        turn++, phase++, current = next;
        if (last) {
            float* buffer = sums + (round & 1) * (input_warps * tokens << row_shift);
            put_sums(buffer + (input_warp * tokens << row_shift), total, tokens, 1 << row_shift, row_warp, lane);
            synchronize_block();
            if (SPLITS > 1) synchronize_cluster();
            outputs.write(buffer, block, input_warps, blockIdx.y, (input_warp * row_warps + row_warp) * 32 + lane,
                          sharing * input_warps);
            round++, block++, phase = 0;
        }
        return more;
    };
    while (take(units_held[0], units_held[1]) && take(units_held[1], units_held[0])) {}
    if (SPLITS > 1) synchronize_cluster();  // a block stays until its sums were read
}
EXPORT(multiply)
