// y = x Wᵀ for few tokens: weights are the matrix unit's 16-row operand, tokens its columns.
//
// A warp takes `TILES` tiles of 16 rows and, in each phase, a unit of UNIT inputs; it asks for its next unit group by group as it
// goes along: into the place of what it has used up (HELD 1), or into other registers ahead of each group (HELD 2). Warps of a
// block lie in `row_warps` by `input_warps`; those of the same inputs share the activations, which lie in shared memory
// (`activations.cuh`). Sums over inputs are taken per group in the matrix unit, times the group's scale in fp32, then over the input
// warps in their order, so results repeat bit for bit.
//
// Fixed when compiled: what `tiles.cuh` names, COLUMNS (tokens in eights), ARRANGED, HELD, SPLITS, THREADS, RESIDENT.
#include "activations.cuh"
#define SHARING SPLITS
#include "outputs.cuh"

constexpr int SPAN = GATED ? 1 : TILES;  // tiles of outputs to a warp

template <int STEP, int END>
DEVICE void multiply_steps(float (&sums)[TILES][COLUMNS][4], const Unit& unit, const unsigned char* const (&tokens)[COLUMNS]) {
    if constexpr (STEP < END) {
        uint4 x[COLUMNS];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) x[column] = *(const uint4*)(tokens[column] + STEP / 2 * 64);
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            word a[4], b[4];
            field_step<STEP>((const word*)unit.codes[slot], a);
            field_step<STEP + 1>((const word*)unit.codes[slot], b);
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                multiply_fp16(sums[slot][column], a, x[column].x, x[column].y);
                multiply_fp16(sums[slot][column], b, x[column].z, x[column].w);
            }
        }
        multiply_steps<STEP + 2, END>(sums, unit, tokens);
    }
}

// The groups of a unit one after the other: exact products of the codes, then the zero point, then the scale. `beside`: what
// `Activations` has beside them, from the lane's first token; `more`: whether `source` is to be loaded to `then`.
template <int INDEX>
DEVICE void multiply_groups(float (&total)[TILES][COLUMNS][4], const Unit& unit, const unsigned char* const (&tokens)[COLUMNS],
                            const float* beside, const float2 (&factors)[COLUMNS], bool more, const Source& source, Unit& then) {
    if constexpr (INDEX < GROUPS_OF_UNIT) {
        if (HELD == 2 && more) source.load(then, INDEX);
        float sums[TILES][COLUMNS][4];
        float2 zeros[COLUMNS];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            zeros[column] = *(const float2*)(beside + INDEX * WIDTH + column * 8);
#pragma unroll
            for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
                for (int part = 0; part < 4; part++) sums[slot][column][part] = ZEROS ? 0.0f : part % 2 ? zeros[column].y : zeros[column].x;
            }
        }
        multiply_steps<INDEX * GROUP / 16, (INDEX + 1) * GROUP / 16>(sums, unit, tokens);
#pragma unroll
        for (int slot = 0; slot < TILES; slot++) {
            float upper = unit.scales[slot][INDEX].upper(), lower = unit.scales[slot][INDEX].lower();
#if ZEROS
            float upper_zero = (float)(unit.zeros[slot][INDEX] & 0xFFu), lower_zero = (float)(unit.zeros[slot][INDEX] >> 8 & 0xFFu);
#endif
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                float(&sum)[4] = sums[slot][column];
#if ZEROS
                sum[0] -= upper_zero * zeros[column].x, sum[1] -= upper_zero * zeros[column].y;
                sum[2] -= lower_zero * zeros[column].x, sum[3] -= lower_zero * zeros[column].y;
#endif
                total[slot][column][0] += upper * factors[column].x * sum[0];
                total[slot][column][1] += upper * factors[column].y * sum[1];
                total[slot][column][2] += lower * factors[column].x * sum[2];
                total[slot][column][3] += lower * factors[column].y * sum[3];
            }
        }
        if (HELD == 1 && more) source.load(then, INDEX);
        multiply_groups<INDEX + 1>(total, unit, tokens, beside, factors, more, source, then);
    }
}

// Writes a warp's sums to shared memory and starts anew.
DEVICE void put_sums(float* sums, float (&total)[TILES][COLUMNS][4], int tokens, int block_rows, int row_warp, int lane) {
#pragma unroll
    for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                int token = column * 8 + lane % 4 * 2 + part % 2, row = (row_warp * TILES + slot) * 16 + lane / 4 + part / 2 * 8;
                if (token < tokens) sums[token * (block_rows + 4) + row] = total[slot][column][part];
                total[slot][column][part] = 0.0f;
            }
        }
    }
}

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
    Unit held[HELD];
    Source source;
    source.find(weights, (block * row_warps + row_warp) * SPAN, first, lane);
    load_unit(held[0], source);
    release_dependents();
    wait_for_inputs();

    int sharing = row_warps * 32, stage_bytes = tokens * STRIDE * 2 + (GROUPS_OF_UNIT + 1) * WIDTH * 4;
    Activations activations = {memory + input_warp * stages * stage_bytes, stage_bytes, tokens, inputs, x_stride,
                               row_warp, row_warps, lane, x};
    Outputs outputs = {y, bias, rows, tokens, y_stride, row_shift};
    float* sums = (float*)(memory + input_warps * stages * stage_bytes);
    int column_at[COLUMNS];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        int token = column * 8 + lane / 4;
        column_at[column] = 2 * ((token < tokens ? token : tokens - 1) * STRIDE + lane % 4 * 8);
    }
    activations.put(first, 0);
    float total[TILES][COLUMNS][4] = {};
    int round = 0, phase = 0, turn = 0, current = first;
    // Multiplies by one unit and asks for the warp's next; at the end of a group of rows writes its sums.
    auto take = [&](const Unit& now, Unit& then) {
        bool last = phase + 1 == phases, more = !last || round + 1 < rounds;
        int next = last ? first : current + step, here = resident ? phase : turn & 1;
        source.find(weights, ((block + last) * row_warps + row_warp) * SPAN, next, lane);
        if (!resident || round == 0) {
            if (ARRANGED) finish_copies();
            synchronize_threads(1 + input_warp, sharing);
            if (resident ? !last : more) activations.put(next, resident ? phase + 1 : here ^ 1);
        }
        if (current < units) {
            const unsigned char* columns[COLUMNS];
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) columns[column] = activations.stage(here) + column_at[column];
            const float* beside = activations.sums(here) + lane % 4 * 2;
            float2 factors[COLUMNS];
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) factors[column] = *(const float2*)(beside + GROUPS_OF_UNIT * WIDTH + column * 8);
            multiply_groups<0>(total, now, columns, beside, factors, more, source, then);
        } else if (more) {
            load_unit(then, source);
        }
        turn++, phase++, current = next;
        if (last) {
            int each = tokens * ((1 << row_shift) + 4);
            float* buffer = sums + (round & 1) * input_warps * each;
            put_sums(buffer + input_warp * each, total, tokens, 1 << row_shift, row_warp, lane);
            synchronize_block();
            if (SPLITS > 1) synchronize_cluster();
            outputs.write(buffer, block, input_warps, blockIdx.y, (input_warp * row_warps + row_warp) * 32 + lane,
                          sharing * input_warps);
            round++, block++, phase = 0;
        }
        return more;
    };
    while (take(held[0], held[HELD - 1]) && (HELD == 1 || take(held[HELD - 1], held[0]))) {}
    if (SPLITS > 1) synchronize_cluster();  // a block stays until its sums were read
}
EXPORT(multiply)
