// y = x Wᵀ for up to 16 tokens, activations in registers: a warp keeps those of one unit of inputs as the matrix unit's second operand
// and walks through tiles of 16 rows, whose codes come to shared memory in the background, STAGES tiles ahead.
//
// A block has INPUT_WARPS by ROW_WARPS warps; the SPLITS blocks of a cluster share the inputs. In a round every warp takes one tile.
// Sums of a round go to shared memory, are added over the input warps while the next round is computed and sent to the block of the
// cluster that owns them, which adds them a round later; always in the same order, so that results repeat bit for bit.
//
// Fixed when compiled: what `tiles.cuh` names (TILES is 1, UNIT 256), COLUMNS (tokens in eights), INPUT_WARPS, ROW_WARPS, SPLITS, STAGES, AHEAD
// (tiles asked for before the activations), RESIDENT.
#include "kept_tokens.cuh"

constexpr int TOGETHER = 2;  // groups that are multiplied in turn, so that sums wait less for each other

template <int STEP, int END>
DEVICE void multiply_steps(float (&sums)[TOGETHER][COLUMNS][4], const word* codes, const Tokens& numbers) {
    if constexpr (STEP < END) {
        word a[TOGETHER][4];
        field_step<STEP>(codes, a[0]);
        if constexpr (TOGETHER > 1) field_step<STEP + GROUP / 16>(codes, a[TOGETHER - 1]);
#pragma unroll
        for (int group = 0; group < TOGETHER; group++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                const word(&x)[4] = numbers[column][(STEP + group * GROUP / 16) / 2];
                multiply_tile(sums[group][column], a[group], x[STEP % 2 * 2], x[STEP % 2 * 2 + 1]);
            }
        }
        multiply_steps<STEP + 1, END>(sums, codes, numbers);
    }
}

// What the zero points contribute to each group and token: the product with a tile whose every code is 1, or the middle. It comes
// as the sums of a group begin: two tokens, twice.
template <int STEP>
DEVICE void add_zeros(float (&sums)[COLUMNS][4], const Tokens& numbers, float4* zero_sums, int lane) {
    if constexpr (STEP < UNIT / 16) {
        constexpr int pair = STEP / 2 % CHUNKS * 4 + STEP % 2 * 2, group = STEP * 16 / GROUP;
        constexpr word code = ZEROS ? 1 : 1 << (BITS - 1), first = twice(code << offset_of(pair)), second = twice(code << offset_of(pair + 1));
        word a[4] = {first, first, second, second};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const word(&x)[4] = numbers[column][STEP / 2];
            multiply_tile(sums[column], a, x[STEP % 2 * 2], x[STEP % 2 * 2 + 1]);
            if ((STEP + 1) * 16 % GROUP == 0) {
                float low = ZEROS ? sums[column][0] : -sums[column][0], high = ZEROS ? sums[column][1] : -sums[column][1];
                if (lane < 4) zero_sums[group * PAIRS + column * 4 + lane] = make_float4(low, high, low, high);
                sums[column][0] = sums[column][1] = sums[column][2] = sums[column][3] = 0.0f;
            }
        }
        add_zeros<STEP + 1>(sums, numbers, zero_sums, lane);
    }
}

// The groups of a tile's unit, TOGETHER at a time: exact products of the codes, less the zero points', times the scale.
template <int INDEX>
DEVICE void multiply_groups(float (&total)[COLUMNS][4], uint4 (&codes)[LOADS], const unsigned char* part, const Tokens& numbers,
                            const float4* zero_sums, int lane) {
    if constexpr (INDEX < GROUPS_OF_UNIT) {
#pragma unroll
        for (int load = loads_for(INDEX * GROUP); load < loads_for((INDEX + TOGETHER) * GROUP); load++) {
            codes[load] = ((const uint4*)part)[load * 32 + lane];
        }
        float sums[TOGETHER][COLUMNS][4];
#pragma unroll
        for (int group = 0; group < TOGETHER; group++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
                if (!ZEROS) zero = zero_sums[(INDEX + group) * PAIRS + column * 4 + lane % 4];
                float(&sum)[4] = sums[group][column];
                sum[0] = zero.x, sum[1] = zero.y, sum[2] = zero.z, sum[3] = zero.w;
            }
        }
        multiply_steps<INDEX * GROUP / 16, (INDEX + 1) * GROUP / 16>(sums, (const word*)codes, numbers);
#pragma unroll
        for (int group = 0; group < TOGETHER; group++) {
            ScalePair scales = Parts::scales_of(part, INDEX + group, lane);
            float upper = scales.upper(), lower = scales.lower();
#if ZEROS
            word zeros = Parts::zeros_of(part, INDEX + group, lane);
            float upper_zero = (float)(zeros & 0xFFu), lower_zero = (float)(zeros >> 8);
#endif
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                float(&sum)[4] = sums[group][column];
#if ZEROS
                float4 zero = zero_sums[(INDEX + group) * PAIRS + column * 4 + lane % 4];
                sum[0] -= upper_zero * zero.x, sum[1] -= upper_zero * zero.y;
                sum[2] -= lower_zero * zero.x, sum[3] -= lower_zero * zero.y;
#endif
                total[column][0] += upper * sum[0], total[column][1] += upper * sum[1];
                total[column][2] += lower * sum[2], total[column][3] += lower * sum[3];
            }
        }
        multiply_groups<INDEX + TOGETHER>(total, codes, part, numbers, zero_sums, lane);
    }
}

// Puts a warp's sums of a tile down.
DEVICE void put_sums(unsigned char* sums, const float (&total)[COLUMNS][4], const float2 (&factors)[COLUMNS], int lane) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        float2* place = (float2*)sums + (column * 4 + lane % 4) * 20 + lane / 4;
        place[0] = make_float2(total[column][0] * factors[column].x, total[column][1] * factors[column].y);
        place[8] = make_float2(total[column][2] * factors[column].x, total[column][3] * factors[column].y);
    }
}

DEVICE float4 add_four(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Where an entry's outputs lie: two rows, of a token and the next.
struct Outputs {
    half_word* y;
    const half_word* bias;
    int row, rows, tokens, stride, paired;  // tokens from this entry's on; paired: both rows make a whole word

    DEVICE void find(int entry) {
        int token = entry / 8 % PAIRS * 2;
        row += entry / TILE_ENTRIES * 16 + entry % 8 * 2, tokens -= token;
        y += (long)token * stride;
    }
    DEVICE void write_token(int token, int row, float upper, float lower) const {
        half_word* place = y + (long)token * stride + row;
        if (token >= tokens || row >= rows) return;
        if (bias) upper += from_number(bias[row]);
        if (bias && row + 1 < rows) lower += from_number(bias[row + 1]);
        if (paired) {
            *(word*)place = pack_numbers(upper, lower);
        } else {
            place[0] = to_number(upper);
            if (row + 1 < rows) place[1] = to_number(lower);
        }
    }
    DEVICE void write(int round, float4 sum) const {
        write_token(0, row + round * ROW_WARPS * 16, sum.x, sum.z);
        write_token(1, row + round * ROW_WARPS * 16, sum.y, sum.w);
    }
};

// Blocks (x, y): those of equal x are a cluster. Rounds are dealt out to the x: `share` to each, one more to the first `spare`.
KERNEL void __launch_bounds__(WARPS * 32, RESIDENT)
multiply_kept(Weights weights, const half_word* x, half_word* y, const half_word* bias, int rows, int inputs, int tokens, int x_stride,
              int y_stride, int paired, int share, int spare) {
    SHARED_MEMORY(memory);
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, index = blockIdx.x;
    int rounds = share + (index < spare), first = (index * share + (index < spare ? index : spare)) * ROW_WARPS;
    int unit = blockIdx.y * INPUT_WARPS + warp % INPUT_WARPS;
    int tiles = weights.tiles - first - warp / INPUT_WARPS;  // a round's tile is there if round * ROW_WARPS < tiles
    unsigned char* mine = memory + warp * PART_BYTES;
    Parts parts;
    parts.find(weights, first + warp / INPUT_WARPS, ROW_WARPS, unit < weights.units ? unit : weights.units - 1, lane);
    auto ask_first = [&](int from, int end) {
#pragma unroll
        for (int round = from; round < end; round++) {
            if (round < rounds && round * ROW_WARPS < tiles) parts.ask(mine + round * WARPS * PART_BYTES, lane);
            close_copies();
        }
    };
    ask_first(0, AHEAD);
    barrier_word *put = (barrier_word*)(memory + BARRIERS_AT), *sent = put + 2;  // sums of two rounds are there; of SLOTS rounds were sent
    if (thread == 0) {
        set_barrier(put, WARPS), set_barrier(put + 1, WARPS);
        for (int slot = 0; slot < SLOTS; slot++) set_barrier(sent + slot, 1);
        publish_barriers();
        for (int slot = 0; slot < SLOTS; slot++) expect_bytes(sent + slot, ENTRIES * 16);
    }
    synchronize_block();
    if (SPLITS > 1) synchronize_cluster();
    release_dependents();
    wait_for_inputs();
    Tokens numbers;
    float2 factors[COLUMNS];
    load_tokens(numbers, x, unit, inputs, tokens, x_stride, lane);
    ask_first(AHEAD, STAGES);
    scale_tokens(numbers, factors, lane);
    float4* zero_sums = (float4*)(memory + ZERO_SUMS_AT) + warp * GROUPS_OF_UNIT * PAIRS;
    float nothing[COLUMNS][4] = {};
    add_zeros<0>(nothing, numbers, zero_sums, lane);
    synchronize_warp();

    // Warps take turns in adding over input warps, and in adding over blocks.
    int entry = thread % ENTRIES, owned = thread % OWNED, sender = thread / ENTRIES, writer = thread / OWNED;
    const float4* added = (const float4*)(memory + SUMS_AT + entry / TILE_ENTRIES * INPUT_WARPS * TILE_BYTES) + entry / 8 % PAIRS * 10 + entry % 8;
    word there = 0, counter = 0;
    if (SPLITS > 1) {
        there = address_in_block(memory + SENT_AT + (blockIdx.y * OWNED + entry % OWNED) * 16, entry / OWNED);
        counter = address_in_block(sent, entry / OWNED);
    }
    Outputs outputs = {y, bias, first * 16, rows, tokens, y_stride, paired};
    outputs.find(SPLITS > 1 ? blockIdx.y * OWNED + owned : entry);
    auto send_round = [&](unsigned round) {
        wait_for(put + round % 2, round / 2 % 2);
        if (round % SENDERS != sender) return;
        const float4* place = added + round % 2 * (WARPS * TILE_BYTES / 16);
        float4 sum = place[0];
#pragma unroll
        for (int other = 1; other < INPUT_WARPS; other++) sum = add_four(sum, place[other * (TILE_BYTES / 16)]);
        if (SPLITS == 1) outputs.write(round, sum);
        else send(there + round % 4 * (ENTRIES * 16), sum, counter + round % 4 * 8);
    };
    auto write_round = [&](unsigned round) {
        if (SPLITS == 1 || round % WRITERS != writer) return;
        wait_for(sent + round % 4, round / 4 % 2);
        const float4* place = (const float4*)(memory + SENT_AT) + round % 4 * ENTRIES + owned;
        float4 sum = place[0];
#pragma unroll
        for (int block = 1; block < SPLITS; block++) sum = add_four(sum, place[block * OWNED]);
        if (owned == 0) expect_bytes(sent + round % 4, ENTRIES * 16);
        outputs.write(round, sum);
    };
    int stage = 0;
    for (int round = 0; round < rounds; round++) {
        unsigned char* part = mine + stage * (WARPS * PART_BYTES);
        float total[COLUMNS][4] = {};
        wait_for_copies<STAGES - 1>();
        if (round * ROW_WARPS < tiles) {
            uint4 codes[LOADS];
            multiply_groups<0>(total, codes, part, numbers, zero_sums, lane);
        }
        if (round + STAGES < rounds && (round + STAGES) * ROW_WARPS < tiles) parts.ask(part, lane);
        close_copies();
        if (round > 1) write_round(round - 2);
        if (round > 0) send_round(round - 1);
        put_sums(memory + SUMS_AT + (round % 2 * WARPS + warp) * TILE_BYTES, total, factors, lane);
        synchronize_warp();
        if (lane == 0) arrive(put + round % 2);
        if (++stage == STAGES) stage = 0;
    }
    send_round(rounds - 1);
    if (rounds > 1) write_round(rounds - 2);
    write_round(rounds - 1);
}
EXPORT(multiply_kept)
