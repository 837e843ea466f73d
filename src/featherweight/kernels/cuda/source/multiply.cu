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
// `around.cuh` says what else a product of one token can do.
//
// Fixed when compiled: what `tiles.cuh` names, COLUMNS (tokens in eights), THREADS, RESIDENT.
#include "around.cuh"
#include "tiles.cuh"

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
DEVICE void multiply_groups(float (&total)[TILES][COLUMNS][4], Unit& unit, const unsigned char* const (&tokens)[COLUMNS],
                            const Place& place, int next) {
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
                constexpr int used = loads_before(INDEX * GROUP), end = loads_before((INDEX + 1) * GROUP);
#pragma unroll
                for (int load = used; load < end; load++) unit.codes[slot][load] = load_stream(place.codes[slot] + load * 32);
                place.load_scales(unit, slot, next, INDEX);
            }
        }
        multiply_groups<INDEX + 1>(total, unit, tokens, place, next);
    }
}

// How the activations of a block lie in shared memory, and how they get there.
struct Activations {
    unsigned char* stages;  // of this warp's unit in each phase: [tokens][STRIDE]
    int bytes, tokens, inputs, stride, member, sharing;
    const half_word* x;

    DEVICE unsigned char* stage(int index) const { return stages + index * bytes; }

    DEVICE void copy(int unit, int index) const {
        constexpr int PIECES = UNIT / 8;  // of 16 bytes, of a token; threads are a power of two
        int per_token = sharing < PIECES ? sharing : PIECES, tokens_at_once = sharing / per_token;
        for (int token = member / PIECES; token < tokens; token += tokens_at_once) {
            const half_word* source = x + (long)token * stride;
            for (int piece = member % PIECES; piece < PIECES; piece += per_token) {
                int input = unit * UNIT + piece * 8;
                bool inside = input < inputs;
                copy_to_shared(stage(index) + 2 * (token * STRIDE + piece * 8), source + (inside ? input : 0), inside);
            }
        }
    }
};

DEVICE void put_sums(float* sums, const float (&total)[TILES][COLUMNS][4], int tokens, int block_rows, int row_warp, int lane) {
#pragma unroll
    for (int slot = 0; slot < TILES; slot++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) {
                int token = column * 8 + lane % 4 * 2 + part % 2, row = (row_warp * TILES + slot) * 16 + lane / 4 + part / 2 * 8;
                if (token < tokens) sums[token * block_rows + row] = total[slot][column][part];
            }
        }
    }
}

struct Outputs {
    half_word* y;
    const half_word* bias;
    int rows, tokens, stride, row_shift;  // a block's rows are 2^row_shift

    Around around;
    float factor;  // of all sums

    // Adds what the input warps of all blocks of the cluster found, in a fixed order, and writes; returns the sum of the squares
    // written where `around` wants it.
    DEVICE float write(const float* sums, int block, int input_warps, int splits, int split, int thread, int threads) const {
        float squares = 0.0f;
        for (int entry = split * threads + thread; entry < tokens << row_shift; entry += splits * threads) {
            int token = entry >> row_shift, row = (block << row_shift) + (entry & ((1 << row_shift) - 1));
            if (row >= rows) continue;
            float sum = 0.0f;
            const float* place = sums + entry;
            if (splits == 1) {
#pragma unroll 8
                for (int warp = 0; warp < input_warps; warp++) sum += place[warp * tokens << row_shift];
            } else {
                for (int other = 0; other < splits; other++) {
#pragma unroll 8
                    for (int warp = 0; warp < input_warps; warp++) sum += load_from_cluster(place + (warp * tokens << row_shift), other);
                }
            }
            sum *= factor;
            if (bias) sum += from_number(bias[row]);
            squares += around.finish(y + (long)token * stride, row, sum);
        }
        return squares;
    }
};

// Blocks (x, y): y of `splits` blocks that take the units in turn and form a cluster; the groups of rows are dealt out to the x, at
// most one more to one than to another. `resident`: all activations stay in shared memory, else they pass through two stages.
KERNEL void __launch_bounds__(THREADS, RESIDENT)
multiply(Weights weights, const half_word* x, half_word* y, const half_word* bias, int rows, int inputs, int tokens, int x_stride,
         int y_stride, int row_shift, int resident, Around around) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x, row_warp = threadIdx.y, input_warp = threadIdx.z, row_warps = blockDim.y, input_warps = blockDim.z;
    int splits = gridDim.y, step = splits * input_warps, first = blockIdx.y * input_warps + input_warp;
    int units = weights.units, phases = (units + step - 1) / step, stages = resident ? phases : phases < 2 ? phases : 2;
    int groups = ((rows - 1) >> row_shift) + 1, share = groups / gridDim.x, spare = groups - share * gridDim.x, x_index = blockIdx.x;
    int rounds = share + (x_index < spare), block = x_index * share + (x_index < spare ? x_index : spare);
    Unit unit;
    Place place;
    place.find(weights, (block * row_warps + row_warp) * TILES, first, lane);
    if (first < units) place.load(unit, first);
    release_dependents();
    wait_for_inputs();

    int sharing = row_warps * 32, stage_bytes = tokens * STRIDE * 2;
    Activations activations = {memory + input_warp * stages * stage_bytes, stage_bytes, tokens, inputs, x_stride,
                               row_warp * 32 + lane, sharing, x};
    float* sums = (float*)(memory + input_warps * stages * stage_bytes);
    int column_at[COLUMNS];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        int token = column * 8 + lane / 4;
        column_at[column] = 2 * ((token < tokens ? token : tokens - 1) * STRIDE + lane % 4 * 8);
    }
    activations.copy(first, 0);
    Outputs outputs = {y, bias, rows, tokens, y_stride, row_shift, around, around.factor(lane)};
    float squares = 0.0f;
    for (int round = 0, turn = 0; round < rounds; round++, block++) {
        float total[TILES][COLUMNS][4] = {};
        for (int phase = 0, current = first; phase < phases; phase++, turn++, current += step) {
            bool last = phase + 1 == phases, more = !last || round + 1 < rounds;
            int next = last ? first : current + step, here = resident ? phase : turn & 1, there = resident ? phase + 1 : here ^ 1;
            if (!resident || round == 0) {
                finish_copies();
                synchronize_threads(1 + input_warp, sharing);
                if (resident ? !last : more && phases > 1) activations.copy(next, there);
            }
            place.find(weights, ((block + last) * row_warps + row_warp) * TILES, next, lane);
            more = more && next < units;
            if (current < units) {
                const unsigned char* columns[COLUMNS];
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) columns[column] = activations.stage(here) + column_at[column];
                multiply_groups<0>(total, unit, columns, place, more ? next : -1);
            } else if (more) {
                place.load(unit, next);
            }
        }
        float* buffer = sums + (round & 1) * (input_warps * tokens << row_shift);
        put_sums(buffer + (input_warp * tokens << row_shift), total, tokens, 1 << row_shift, row_warp, lane);
        if (splits == 1) synchronize_block();
        else synchronize_cluster();
        squares += outputs.write(buffer, block, input_warps, splits, blockIdx.y, (input_warp * row_warps + row_warp) * 32 + lane,
                                 sharing * input_warps);
    }
    if (splits > 1) synchronize_cluster();  // a block stays until its sums were read
    if (around.gain) {
        float part = sum_over_block(squares, sums, lane, input_warp * row_warps + row_warp, row_warps * input_warps);
        if (lane == 0 && row_warp == 0 && input_warp == 0) around.squares_out[blockIdx.x * splits + blockIdx.y] = part;
    }
}
EXPORT(multiply)
