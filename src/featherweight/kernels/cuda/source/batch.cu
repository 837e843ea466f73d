// y = x Wᵀ for some dozens or hundreds of tokens: 64 rows are the operand that four warps hold in registers, TOKENS tokens, in
// shared memory, its columns.
//
// A block takes 64 WARP_GROUPS rows and TOKENS tokens, a unit of inputs at a time. Each warp has the codes of its next STAGES units
// brought to shared memory in the background; so are the activations, which all share and `batch_inputs.cu` has put in order.
// Sums are taken per group in the matrix unit, times the group's scale in fp32; where blocks form a cluster each has a part of the
// inputs, and their sums are added in their order, so results repeat bit for bit.
//
// Fixed when compiled: what `tiles.cuh` names (TILES is 1), TOKENS, WARP_GROUPS, STAGES, SPLITS.
#include "batch.cuh"
#include "groups.cuh"
#include "outputs.cuh"
#include "streaming.cuh"

constexpr int WARPS = 4 * WARP_GROUPS, ROWS = 16 * WARPS, CODE_BYTES = LOADS * 512;  // of a warp and a unit
constexpr int NUMBERS = 0, CODES = STAGES * IMAGE_BYTES, BARRIERS = CODES + STAGES * WARPS * CODE_BYTES;  // places in shared memory

// Scales and zero points of a warp's tile for one unit.
struct Grids {
    ScalePair scales[GROUPS_OF_UNIT];
#if ZEROS
    word zeros[GROUPS_OF_UNIT];
#endif

    DEVICE void load(const Source& source) {
#pragma unroll
        for (int index = 0; index < GROUPS_OF_UNIT; index++) {
            scales[index].load(source.scales[0] + source.place(index) * ScalePair::SIZE);
#if ZEROS
            zeros[index] = load_half_word(source.zeros[0] + source.place(index) * 2);
#endif
        }
    }
};

constexpr int STEPS = GROUP / 16;  // of a group

template <int STEP, int COUNT>
DEVICE void decode_steps(word (&a)[STEPS][4], const word* codes) {
    if constexpr (COUNT < STEPS) {
        field_step<STEP>(codes, a[COUNT]);
        decode_steps<STEP + 1, COUNT + 1>(a, codes);
    }
}

// The groups of a unit one after the other. `there`: the lane's codes in shared memory, which come to `codes` when their group does;
// `beside`: what zero points contribute, from the lane's first token.
template <int INDEX>
DEVICE void multiply_groups(float (&total)[COLUMNS][4], const uint4* there, uint4 (&codes)[LOADS], const Grids& grids, Matrix tokens,
                            const float* beside) {
    if constexpr (INDEX < GROUPS_OF_UNIT) {
#pragma unroll
        for (int load = loads_for(INDEX * GROUP); load < loads_for((INDEX + 1) * GROUP); load++) codes[load] = there[load * 32];
        float sums[COLUMNS][4];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            float2 zeros = {0.0f, 0.0f};
            if (!ZEROS) zeros = *(const float2*)(beside + INDEX * TOKENS + column * 8);
            sums[column][0] = sums[column][2] = zeros.x, sums[column][1] = sums[column][3] = zeros.y;
        }
        word a[STEPS][4];
        decode_steps<INDEX * STEPS, 0>(a, (const word*)codes);
        hold(sums);
        hold(a);
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; step++) multiply_group(sums, a[step], moved(tokens, (INDEX * STEPS + step) * STEP_BYTES));
        finish_products();
        hold(sums);
        float upper = grids.scales[INDEX].upper(), lower = grids.scales[INDEX].lower();
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            float(&sum)[4] = sums[column];
#if ZEROS
            float2 zeros = *(const float2*)(beside + INDEX * TOKENS + column * 8);
            float upper_zero = (float)(grids.zeros[INDEX] & 0xFFu), lower_zero = (float)(grids.zeros[INDEX] >> 8 & 0xFFu);
            sum[0] -= upper_zero * zeros.x, sum[1] -= upper_zero * zeros.y;
            sum[2] -= lower_zero * zeros.x, sum[3] -= lower_zero * zeros.y;
#endif
            total[column][0] += upper * sum[0], total[column][1] += upper * sum[1];
            total[column][2] += lower * sum[2], total[column][3] += lower * sum[3];
        }
        multiply_groups<INDEX + 1>(total, there, codes, grids, tokens, beside);
    }
}

// Blocks (x, y): x counts the blocks of tokens of each group of rows; those of equal x take a share of the units each, as a cluster.
KERNEL void __launch_bounds__(32 * WARPS, 1)
multiply_batch(Weights weights, const unsigned char* images, const float* factors, half_word* y, const half_word* bias, int rows,
               int tokens, int stride, int token_blocks, int share) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = blockIdx.x / token_blocks, part = blockIdx.x % token_blocks;
    int first = blockIdx.y * share, count = weights.units - first < share ? weights.units - first : share;
    int tile = group * WARPS + warp;
    unsigned char* mine = memory + CODES + warp * CODE_BYTES;
    barrier_word* barriers = (barrier_word*)(memory + BARRIERS);  // full, for each stage: codes of each warp, activations; then empty
    Source source;
    source.find(weights, tile, first, lane);
    const unsigned char* codes_from = (const unsigned char*)(source.codes[0] - lane);
    const unsigned char* images_from = images + ((long)part * weights.units + first) * IMAGE_BYTES;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES * (WARPS + 1); i++) set_barrier(barriers + i, 1);
        for (int i = 0; i < STAGES; i++) set_barrier(barriers + STAGES * (WARPS + 1) + i, WARPS);
        publish_barriers();
    }
    synchronize_block();
    barrier_word *full = barriers + warp * STAGES, *shared = barriers + WARPS * STAGES, *empty = shared + STAGES;
    for (int stage = 0; stage < STAGES && stage < count; stage++) {
        if (lane == 0) copy_chunk(mine + stage * WARPS * CODE_BYTES, codes_from + stage * CODE_BYTES, CODE_BYTES, full + stage);
    }
    Grids next, now;
    next.load(source);
    release_dependents();
    wait_for_inputs();
    for (int stage = 0; stage < STAGES && stage < count; stage++) {
        if (threadIdx.x == 0) copy_kept(memory + NUMBERS + stage * IMAGE_BYTES, images_from + (long)stage * IMAGE_BYTES, IMAGE_BYTES, shared + stage);
    }
    float total[COLUMNS][4] = {};
    int stage = 0, parity = 0, before = 0;
    for (int unit = 0; unit < count; unit++) {
        now = next;
        source.find(weights, tile, first + unit + 1, lane);
        next.load(source);
        int later = unit + STAGES - 1;
        if (threadIdx.x == 0 && unit > 0 && later < count) {  // into the place of the unit before, which all have used by now
            wait_for(empty + before, stage == 0 ? parity ^ 1 : parity);
            copy_kept(memory + NUMBERS + before * IMAGE_BYTES, images_from + (long)later * IMAGE_BYTES, IMAGE_BYTES, shared + before);
        }
        synchronize_warp();
        wait_for(full + stage, parity);
        wait_for(shared + stage, parity);
        const unsigned char* image = memory + NUMBERS + stage * IMAGE_BYTES;
        unsigned char* there = mine + stage * WARPS * CODE_BYTES;
        uint4 codes[LOADS];
        multiply_groups<0>(total, (const uint4*)there + lane, codes, now, matrix_at(image, HALF_BYTES),
                           (const float*)(image + NUMBER_BYTES) + lane % 4 * 2);
        synchronize_warp();
        if (lane == 0) {
            arrive(empty + stage);
            if (unit + STAGES < count) copy_chunk(there, codes_from + (long)(unit + STAGES) * CODE_BYTES, CODE_BYTES, full + stage);
        }
        before = stage;
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    synchronize_block();
    int left = tokens - part * TOKENS < TOKENS ? tokens - part * TOKENS : TOKENS;
    float* sums = (float*)memory;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int item = 0; item < 4; item++) {
            int token = column * 8 + lane % 4 * 2 + item % 2;
            if (token < left) sums[token * (ROWS + 4) + warp * 16 + lane / 4 + item / 2 * 8] = total[column][item] * factors[part * TOKENS + token];
        }
    }
    synchronize_block();
    if (SPLITS > 1) synchronize_cluster();
    Outputs outputs = {y + (long)part * TOKENS * stride, bias, rows, left, stride, ROWS == 256 ? 8 : ROWS == 128 ? 7 : 6};
    outputs.write(sums, group, 1, blockIdx.y, threadIdx.x, 32 * WARPS);
    if (SPLITS > 1) synchronize_cluster();
}
EXPORT(multiply_batch)
