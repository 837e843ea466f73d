// y = x Wᵀ for some dozens or hundreds of tokens: 64 rows are the operand that four warps hold in registers, TOKENS tokens, in
// shared memory, its columns.
//
// A block takes 64 WARP_GROUPS rows and TOKENS tokens, a unit of inputs at a time. Each warp has what it needs of its next STAGES units
// brought to shared memory in the background; so are the activations, which all share and `batch_inputs.cu` has put in order.
// Sums are taken per group in the matrix unit, times the group's scale in fp32. Where SPLITS blocks each have a part of the inputs, the
// last to arrive adds the sums of all, in the blocks' order, so results repeat bit for bit.
//
// Fixed when compiled: what `tiles.cuh` names (TILES is 1, UNIT 256), TOKENS, WARP_GROUPS, STAGES, SPLITS, AHEAD (a group is
// decoded while the one before it is multiplied: takes registers).
#include "batch.cuh"
#include "groups.cuh"
#define SHARING 1
#include "outputs.cuh"
#include "streaming.cuh"

constexpr int WARPS = 4 * WARP_GROUPS, ROWS = 16 * WARPS, STEPS = GROUP / 16;
// Of a warp and a unit, in shared memory: codes, scales, zero points. Groups within a block lie together; wider ones are named twice.
constexpr int RUNS = WIDE == 1 ? 1 : BLOCKS, RUN = WIDE == 1 ? BLOCKS * 8 * GROUPS : 8;
constexpr int SCALES_AT = LOADS * 512, ZEROS_AT = SCALES_AT + RUNS * RUN * ScalePair::SIZE;
constexpr int PART_BYTES = ZEROS_AT + (ZEROS ? RUNS * RUN * 2 : 0), COPIES = 1 + RUNS * (1 + ZEROS);
constexpr int PARTS_AT = STAGES * IMAGE_BYTES, BARRIERS_AT = PARTS_AT + STAGES * WARPS * PART_BYTES;

// What a warp has brought to shared memory, unit by unit.
struct Part {
    unsigned char* place;  // of the first stage
    barrier_word* full;
    const unsigned char *codes, *scales, *zeros;  // of the warp's tile
    int last;                                     // block of scales

    DEVICE void ask(int unit, int stage) const {
        unsigned char* to = place + stage * WARPS * PART_BYTES;
        copy_chunk(to, codes + (long)unit * SCALES_AT, SCALES_AT, full + stage);
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            int block = WIDE == 0 ? 0 : (unit * BLOCKS + run) / (WIDE ? WIDE : 1);
            unsigned at = WIDE == 1 ? unit * RUN : (block < last ? block : last) * 8;
            copy_chunk(to + SCALES_AT + run * RUN * ScalePair::SIZE, scales + at * ScalePair::SIZE, RUN * ScalePair::SIZE, full + stage);
#if ZEROS
            copy_chunk(to + ZEROS_AT + run * RUN * 2, zeros + at * 2, RUN * 2, full + stage);
#endif
        }
    }
    // Number of the scale of group `index` for a lane.
    static DEVICE int scale_at(int index, int lane) {
        return WIDE == 1 ? (index / GROUPS * 8 + lane / 4) * GROUPS + index % GROUPS : index * 8 + lane / 4;
    }
};

template <int STEP, int COUNT>
DEVICE void decode_steps(word (&a)[STEPS][4], const word* codes) {
    if constexpr (COUNT < STEPS) {
        field_step<STEP>(codes, a[COUNT]);
        decode_steps<STEP + 1, COUNT + 1>(a, codes);
    }
}

// Operands of group INDEX of a unit. `part`: what the warp has of the unit, of which codes are held from group to group.
template <int INDEX>
DEVICE void decode_group(word (&a)[STEPS][4], const unsigned char* part, uint4 (&codes)[LOADS], int lane) {
#pragma unroll
    for (int load = loads_for(INDEX * GROUP); load < loads_for((INDEX + 1) * GROUP); load++) {
        codes[load] = ((const uint4*)part)[load * 32 + lane];
    }
    decode_steps<INDEX * STEPS, 0>(a, (const word*)codes);
}

// The groups of a unit one after the other. `now`: operands of the first, `then`: those of the next, if these are decoded while the
// first is multiplied; `beside`: what zero points contribute, from the lane's first token.
template <int INDEX>
DEVICE void multiply_groups(float (&total)[COLUMNS][4], word (&now)[STEPS][4], word (&then)[STEPS][4], const unsigned char* part,
                            uint4 (&codes)[LOADS], Matrix tokens, const float* beside, int lane) {
    constexpr bool more = INDEX + 1 < GROUPS_OF_UNIT;
    ScalePair scales;
    scales.read(part + SCALES_AT + Part::scale_at(INDEX, lane) * ScalePair::SIZE);
    float sums[COLUMNS][4];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        float2 zeros = {0.0f, 0.0f};
        if (!ZEROS) zeros = *(const float2*)(beside + INDEX * TOKENS + column * 8);
        sums[column][0] = sums[column][2] = zeros.x, sums[column][1] = sums[column][3] = zeros.y;
    }
    hold(sums);
    hold(now);
    begin_products();
#pragma unroll
    for (int step = 0; step < STEPS; step++) multiply_group(sums, now[step], moved(tokens, (INDEX * STEPS + step) * STEP_BYTES));
    commit_products();
    if constexpr (AHEAD && more) {
        decode_group<INDEX + 1>(then, part, codes, lane);
        hold(then);
    }
    finish_products();
    hold(sums);
    float upper = scales.upper(), lower = scales.lower();
#if ZEROS
    word zeros = *(const half_word*)(part + ZEROS_AT + Part::scale_at(INDEX, lane) * 2);
    float upper_zero = (float)(zeros & 0xFFu), lower_zero = (float)(zeros >> 8);
#endif
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        float(&sum)[4] = sums[column];
#if ZEROS
        float2 inputs = *(const float2*)(beside + INDEX * TOKENS + column * 8);
        sum[0] -= upper_zero * inputs.x, sum[1] -= upper_zero * inputs.y;
        sum[2] -= lower_zero * inputs.x, sum[3] -= lower_zero * inputs.y;
#endif
        total[column][0] += upper * sum[0], total[column][1] += upper * sum[1];
        total[column][2] += lower * sum[2], total[column][3] += lower * sum[3];
    }
    if constexpr (AHEAD && more) multiply_groups<INDEX + 1>(total, then, now, part, codes, tokens, beside, lane);
    if constexpr (!AHEAD && more) {
        decode_group<INDEX + 1>(now, part, codes, lane);
        multiply_groups<INDEX + 1>(total, now, then, part, codes, tokens, beside, lane);
    }
}

// Puts a block's sums down for the last of those that share its outputs; true for that one, which then has the sums of all in `sums`.
DEVICE bool share_sums(float* sums, float* partial, int* arrivals, int tokens) {
    int size = tokens * (ROWS + 4), thread = threadIdx.x;
    float* slots = partial + (long)blockIdx.x * SPLITS * TOKENS * (ROWS + 4);
    for (int at = thread; at < size; at += 32 * WARPS) store_shared_sum(slots + blockIdx.y * TOKENS * (ROWS + 4) + at, sums[at]);
    synchronize_block();
    int* arrived = (int*)(sums + size);
    if (thread == 0) *arrived = count_arrival(arrivals + blockIdx.x);
    synchronize_block();
    if (*arrived != SPLITS - 1) return false;
    for (int at = thread; at < size; at += 32 * WARPS) {
        float sum = 0.0f;
#pragma unroll
        for (int split = 0; split < SPLITS; split++) sum += load_shared_sum(slots + split * TOKENS * (ROWS + 4) + at);
        sums[at] = sum;
    }
    synchronize_block();
    return true;
}

// Blocks (x, y): x counts the blocks of tokens of each group of rows; those of equal x take a share of the units each. `arrivals` of
// each x are zero before.
KERNEL void __launch_bounds__(32 * WARPS, 1)
multiply_batch(Weights weights, const unsigned char* images, const float* factors, half_word* y, const half_word* bias, float* partial,
               int* arrivals, int rows, int tokens, int stride, int token_blocks, int share) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = blockIdx.x / token_blocks, part = blockIdx.x % token_blocks;
    int first = blockIdx.y * share, count = weights.units - first < share ? weights.units - first : share;
    // For each stage: what this warp asked for has come; activations have come; they have been used.
    barrier_word *barriers = (barrier_word*)(memory + BARRIERS_AT), *shared = barriers + WARPS * STAGES, *used = shared + STAGES;
    Source source;
    source.find(weights, group * WARPS + warp, 0, 0);
    Part mine = {memory + PARTS_AT + warp * PART_BYTES, barriers + warp * STAGES, (const unsigned char*)source.codes[0], source.scales[0],
                 source.zeros[0], weights.scale_blocks - 1};
    images += ((long)part * weights.units + first) * IMAGE_BYTES;
    if (lane == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            set_barrier(mine.full + stage, COPIES);
            if (warp == 0) set_barrier(shared + stage, 1), set_barrier(used + stage, WARPS);
        }
        publish_barriers();
        for (int stage = 0; stage < STAGES && stage < count; stage++) mine.ask(first + stage, stage);
    }
    release_dependents();
    synchronize_block();
    wait_for_inputs();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES && stage < count; stage++) {
            copy_kept(memory + stage * IMAGE_BYTES, images + (long)stage * IMAGE_BYTES, IMAGE_BYTES, shared + stage);
        }
    }
    float total[COLUMNS][4] = {};
    int stage = 0, parity = 0, before = 0;
    for (int unit = 0; unit < count; unit++) {
        int later = unit + STAGES - 1;
        if (threadIdx.x == 0 && unit > 0 && later < count) {  // into the place of the unit before, which all have used by now
            wait_for(used + before, stage == 0 ? parity ^ 1 : parity);
            copy_kept(memory + before * IMAGE_BYTES, images + (long)later * IMAGE_BYTES, IMAGE_BYTES, shared + before);
        }
        synchronize_warp();
        wait_for(mine.full + stage, parity);
        wait_for(shared + stage, parity);
        const unsigned char* image = memory + stage * IMAGE_BYTES;
        const unsigned char* there = mine.place + stage * WARPS * PART_BYTES;
        uint4 codes[LOADS];
        word operands[2][STEPS][4];
        decode_group<0>(operands[0], there, codes, lane);
        multiply_groups<0>(total, operands[0], operands[1], there, codes, matrix_at(image, HALF_BYTES),
                           (const float*)(image + NUMBER_BYTES) + lane % 4 * 2, lane);
        synchronize_warp();
        if (lane == 0) {
            arrive(used + stage);
            if (unit + STAGES < count) mine.ask(first + unit + STAGES, stage);
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
            if (token >= left) continue;
            sums[token * (ROWS + 4) + warp * 16 + lane / 4 + item / 2 * 8] = total[column][item] * factors[part * TOKENS + token];
        }
    }
    synchronize_block();
    if (SPLITS > 1 && !share_sums(sums, partial, arrivals, left)) return;
    Outputs outputs = {y + (long)part * TOKENS * stride, bias, rows, left, stride, ROWS == 256 ? 8 : ROWS == 128 ? 7 : 6};
    outputs.write(sums, group, 1, 0, threadIdx.x, 32 * WARPS);
}
EXPORT(multiply_batch)
