// y = x Wᵀ for some dozens or hundreds of tokens: 64 rows are the operand that four warps hold in registers, TOKENS tokens, in
// shared memory, its columns.
//
// A block takes 64 WARP_GROUPS rows and TOKENS tokens, a unit of inputs at a time. Each warp has the codes of its next STAGES units
// brought to shared memory in the background; so are the activations, which all share and `batch_inputs.cu` has put in order. While
// the matrix unit multiplies a group, the codes of the next are decoded. Sums are kept in units of the scale of the group at hand, and
// brought to that of the next between the two, so that they need one set of registers. Where blocks form a cluster each has a part
// of the inputs, and their sums are added in their order, so results repeat bit for bit.
//
// Fixed when compiled: what `tiles.cuh` names (TILES is 1, UNIT 256), TOKENS, WARP_GROUPS, STAGES, SPLITS.
#include "batch.cuh"
#include "groups.cuh"
#include "outputs.cuh"
#include "streaming.cuh"

constexpr int WARPS = 4 * WARP_GROUPS, ROWS = 16 * WARPS, CODE_BYTES = LOADS * 512;  // of a warp and a unit
constexpr int CODES_AT = STAGES * IMAGE_BYTES, BARRIERS_AT = CODES_AT + STAGES * WARPS * CODE_BYTES;
constexpr int STEPS = GROUP / 16;  // of a group

typedef word Operands[STEPS][4];

// Scales and zero points of a lane's two rows for one unit.
struct Grids {
    ScalePair scales[GROUPS_OF_UNIT];
#if ZEROS
    word zeros[GROUPS_OF_UNIT];
#endif

    DEVICE void load(const Source& source, int unit) {
#pragma unroll
        for (int index = 0; index < GROUPS_OF_UNIT; index++) {
            unsigned at = WIDE == 1 ? unit * BLOCKS * 8 * GROUPS + index / GROUPS * 8 * GROUPS + index % GROUPS
                        : WIDE == 0 ? 0 : (unsigned)(unit * BLOCKS + index) / (WIDE ? WIDE : 1) * 8;
            scales[index].load(source.scales[0] + at * ScalePair::SIZE);
#if ZEROS
            zeros[index] = load_half_word(source.zeros[0] + at * 2);
#endif
        }
    }
};

// What a row's sums are counted in: the scale of the group at hand. A scale that vanishes beside it leaves it as it is.
struct Measure {
    float unit = 0.0f;

    // Goes on to the next group's; what sums so far are to be multiplied by, and which bits of the group's codes are kept: all or none.
    DEVICE float next(float scale, word& kept) {
        bool adds = magnitude(scale) > maximum(magnitude(unit) * 5.4e-20f, 1e-37f);
        float ratio = adds ? unit * reciprocal(scale) : 1.0f;
        unit = adds ? scale : unit;
        kept = adds ? 0xFFFFFFFFu : 0;
        return ratio;
    }
};

template <int STEP, int COUNT>
DEVICE void decode_steps(Operands& a, const word* codes, word upper_kept, word lower_kept) {
    if constexpr (COUNT < STEPS) {
        field_step<STEP>(codes, a[COUNT]);
        a[COUNT][0] &= upper_kept, a[COUNT][1] &= lower_kept, a[COUNT][2] &= upper_kept, a[COUNT][3] &= lower_kept;
        decode_steps<STEP + 1, COUNT + 1>(a, codes, upper_kept, lower_kept);
    }
}

// A warp on its way through its units.
struct Walk {
    float sums[COLUMNS][4];
    Operands operands[2];  // of the group that is multiplied, and of the one after
    uint4 codes[LOADS];
    Measure upper, lower;
    float up, low, upper_zero, lower_zero;  // for the group after: what sums are multiplied by; minus its zero points, or 1

    // Makes ready for group INDEX of a unit; `there`: the lane's codes in shared memory.
    template <int INDEX>
    DEVICE void decode(const uint4* there, const Grids& grids) {
        word upper_kept, lower_kept;
        up = upper.next(grids.scales[INDEX].upper(), upper_kept), low = lower.next(grids.scales[INDEX].lower(), lower_kept);
        upper_zero = lower_zero = 1.0f;
#if ZEROS
        upper_zero = -(float)(grids.zeros[INDEX] & 0xFFu), lower_zero = -(float)(grids.zeros[INDEX] >> 8 & 0xFFu);
#endif
        upper_zero = upper_kept ? upper_zero : 0.0f, lower_zero = lower_kept ? lower_zero : 0.0f;
#pragma unroll
        for (int load = loads_for(INDEX * GROUP); load < loads_for((INDEX + 1) * GROUP); load++) codes[load] = there[load * 32];
        decode_steps<INDEX * STEPS, 0>(operands[INDEX % 2], (const word*)codes, upper_kept, lower_kept);
    }

    // Brings the sums to the scale of the group that was made ready, adds what its zero points contribute (`beside`, from the lane's
    // first token), and starts its products.
    template <int INDEX>
    DEVICE void start(Matrix tokens, const float* beside) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            float2 zeros = *(const float2*)(beside + INDEX * TOKENS + column * 8);
            sums[column][0] = sums[column][0] * up + upper_zero * zeros.x;
            sums[column][1] = sums[column][1] * up + upper_zero * zeros.y;
            sums[column][2] = sums[column][2] * low + lower_zero * zeros.x;
            sums[column][3] = sums[column][3] * low + lower_zero * zeros.y;
        }
        hold(sums);
        hold(operands[INDEX % 2]);
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            multiply_group(sums, operands[INDEX % 2][step], moved(tokens, (INDEX * STEPS + step) * STEP_BYTES));
        }
        commit_products();
    }

    template <int INDEX>
    DEVICE void finish() {
        hold(operands[(INDEX + 1) % 2]);
        finish_products();
        hold(sums);
    }

    // Groups INDEX and on of a unit but the last, each with the one after decoded meanwhile.
    template <int INDEX>
    DEVICE void multiply(const uint4* there, const Grids& grids, Matrix tokens, const float* beside) {
        if constexpr (INDEX + 1 < GROUPS_OF_UNIT) {
            start<INDEX>(tokens, beside);
            decode<INDEX + 1>(there, grids);
            finish<INDEX>();
            multiply<INDEX + 1>(there, grids, tokens, beside);
        }
    }
};

// Blocks (x, y): x counts the blocks of tokens of each group of rows; those of equal x take a share of the units each, as a cluster.
KERNEL void __launch_bounds__(32 * WARPS, 1)
multiply_batch(Weights weights, const unsigned char* images, const float* factors, half_word* y, const half_word* bias, int rows,
               int tokens, int stride, int token_blocks, int share) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = blockIdx.x / token_blocks, part = blockIdx.x % token_blocks;
    int first = blockIdx.y * share, count = weights.units - first < share ? weights.units - first : share;
    unsigned char* mine = memory + CODES_AT + warp * CODE_BYTES;
    // For each stage: codes of this warp have come; activations have come; they have been used.
    barrier_word *barriers = (barrier_word*)(memory + BARRIERS_AT), *full = barriers + warp * STAGES, *shared = barriers + WARPS * STAGES;
    barrier_word* used = shared + STAGES;
    Source source;
    source.find(weights, group * WARPS + warp, 0, lane);
    const unsigned char* codes_from = (const unsigned char*)(source.codes[0] - lane) + (long)first * CODE_BYTES;
    const unsigned char* images_from = images + ((long)part * weights.units + first) * IMAGE_BYTES;
    auto ask_codes = [&](int unit, int stage) {
        copy_chunk(mine + stage * WARPS * CODE_BYTES, codes_from + (long)unit * CODE_BYTES, CODE_BYTES, full + stage);
    };
    auto ask_images = [&](int unit, int stage) {
        copy_kept(memory + stage * IMAGE_BYTES, images_from + (long)unit * IMAGE_BYTES, IMAGE_BYTES, shared + stage);
    };
    if (lane == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            set_barrier(full + stage, 1);
            if (warp == 0) set_barrier(shared + stage, 1), set_barrier(used + stage, WARPS);
        }
        publish_barriers();
        for (int stage = 0; stage < STAGES && stage < count; stage++) ask_codes(stage, stage);
    }
    Grids now, next;
    next.load(source, first);
    release_dependents();
    synchronize_block();
    wait_for_inputs();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES && stage < count; stage++) ask_images(stage, stage);
    }
    Walk walk = {};
    wait_for(full, 0);
    walk.decode<0>((const uint4*)mine + lane, next);
    int stage = 0, parity = 0;
    for (int unit = 0; unit < count; unit++) {
        bool more = unit + 1 < count;
        const unsigned char* image = memory + stage * IMAGE_BYTES;
        const float* beside = (const float*)(image + NUMBER_BYTES) + lane % 4 * 2;
        Matrix numbers = matrix_at(image, HALF_BYTES);
        now = next;
        next.load(source, first + (more ? unit + 1 : unit));
        wait_for(shared + stage, parity);
        walk.multiply<0>((const uint4*)(mine + stage * WARPS * CODE_BYTES) + lane, now, numbers, beside);
        walk.start<GROUPS_OF_UNIT - 1>(numbers, beside);
        synchronize_warp();
        if (lane == 0 && unit + STAGES < count) ask_codes(unit + STAGES, stage);
        int last = stage, last_parity = parity;
        if (++stage == STAGES) stage = 0, parity ^= 1;
        if (more) {
            wait_for(full + stage, parity);
            walk.decode<0>((const uint4*)(mine + stage * WARPS * CODE_BYTES) + lane, next);
        }
        walk.finish<GROUPS_OF_UNIT - 1>();
        synchronize_warp();
        if (lane == 0) arrive(used + last);
        if (threadIdx.x == 0 && unit + STAGES < count) {
            wait_for(used + last, last_parity);
            ask_images(unit + STAGES, last);
        }
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
            float scale = (item < 2 ? walk.upper.unit : walk.lower.unit) * factors[part * TOKENS + token];
            sums[token * (ROWS + 4) + warp * 16 + lane / 4 + item / 2 * 8] = walk.sums[column][item] * scale;
        }
    }
    synchronize_block();
    if (SPLITS > 1) synchronize_cluster_after_writes();
    Outputs outputs = {y + (long)part * TOKENS * stride, bias, rows, left, stride, ROWS == 256 ? 8 : ROWS == 128 ? 7 : 6};
    outputs.write(sums, group, 1, blockIdx.y, threadIdx.x, 32 * WARPS);
    if (SPLITS > 1) synchronize_cluster();  // a block stays until its sums were read
}
EXPORT(multiply_batch)
