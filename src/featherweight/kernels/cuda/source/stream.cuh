// y = x Wᵀ for few tokens from weights that lie in chunks: a chunk holds 16 rows of 256 inputs, all that belongs to them.
//
// A block is resident on its multiprocessor for the whole launch. It takes an equal run of all chunks, in the order of
// the tiles of 16 rows; its warps take the run's chunks in turn. A warp asks for its chunks in the background, STAGES ahead and
// across the ends of tiles, so that memory never waits for arithmetic. At the end of a tile the warps put their sums down and go
// on; other warps, the collectors, add them up in their order. A tile whose inputs are cut between blocks is added up by the last
// block to arrive, in the blocks' order: results repeat bit for bit.
//
// Fixed when compiled: COLUMNS (tokens in eights), SINGLE (one token), WARPS, COLLECTORS, STAGES, RESIDENT (blocks that registers leave room for), and
// what the storage's file asks for. A storage defines
//   CHUNK_BYTES;  struct Chunk { load(bytes, lane); template<int BLOCK> multiply(sums, x) }   64 inputs at a time;
//   HELD   whether `multiply` still reads what `load` was shown;
//   pair_place(input, pair)   where `multiply` reads the first two and the last two of four consecutive inputs of a token;
//   NORMALIZED   whether it wants activations as fp16 numbers of a bounded size;
//   GROUP_SUMS   whether Chunk::finish(sums, groups) wants the sums of every 16 activations;
//   DIAGONAL   whether column n of a product has activations in rows n and n + 1 (of all 16 n / 2 …) only, and sums belong to lanes;
//   DIGITS   whether Chunk::meet(inputs, tokens, chunk, lane) is to be called before `multiply`;
//   LOWER   what the sums of a tile's lower eight rows are multiplied by;
//   struct Extra   terms beside the chunks that the warps which multiply add at the end of a tile, or none;
//   struct Beside   those that the collectors add.
#pragma once
#include "streaming.cuh"

#ifndef SINGLE
#define SINGLE 0
#endif

constexpr int CHUNK = 256, BLOCKS = CHUNK / 64, THREADS = 32 * (WARPS + COLLECTORS), BUFFERS = COLUMNS == 2 ? 2 : 4;
constexpr int EARLY = STAGES < 2 ? STAGES : 2;  // chunks in flight before activations: these would come after all of them
constexpr int PADDING = 32;  // numbers between the activations of two tokens in shared memory: no bank conflicts

struct Work {
    const unsigned char* chunks;  // [tiles][chunks of a tile][CHUNK_BYTES]
    const int* chunk_starts;      // of chunks that differ in length, in 16s of bytes, and the end; or no table
    const half_word* x;
    half_word* y;
    const half_word* bias;
    const int* gather;            // input that stands at each place, `inputs` for none; or no table
    const int* list_starts;       // steps of `list` before those of each [tile][segment of chunks], then all
    const uint4* list;            // sparse records, [steps][4]
    float* partial;               // [tiles][slots][COLUMNS][32][4] of tiles that are cut between blocks
    int* arrivals;                // [tiles], zero between launches
    int rows, tiles, tile_chunks, split_chunks, segment_chunks, whole_tiles, inputs, tokens, x_stride, y_stride, slots;
    float factor;                 // of all sums
};

// Which part of all chunks a block has, and who shares a tile with it. A split is a range of chunks of every tile; blocks of a split
// take equal runs of its chunks, or of whole tiles.
struct Run {
    int split, first_chunk, length, first_block, blocks;  // chunks of a tile in this split; its blocks
    unsigned grains, grain;                               // runs end where a grain does: so many, of so many chunks
    DEVICE Run(const Work& work, int index) {
        split = index;
        first_chunk = index * work.split_chunks;
        int left = work.tile_chunks - first_chunk;
        length = left < work.split_chunks ? left : work.split_chunks;
        first_block = 0, blocks = gridDim.x;
        if (length < work.tile_chunks) {
            blocks = (int)(gridDim.x * (first_chunk + length) / work.tile_chunks);
            first_block = (int)(gridDim.x * first_chunk / work.tile_chunks);
            blocks -= first_block;
        }
        grain = work.whole_tiles ? length : 1;
        grains = work.whole_tiles ? work.tiles : length * work.tiles;
    }
    DEVICE long long chunk_of(const Work& work, int unit) const {
        if (length == work.tile_chunks) return unit;
        return (long long)(unit / length) * work.tile_chunks + first_chunk + unit % length;
    }
    DEVICE int start(int block) const { return (int)(grains * (unsigned)(block - first_block) / blocks * grain); }
    DEVICE int owner(int unit) const { return first_block + (int)(((unit / grain + 1) * blocks - 1) / grains); }
    DEVICE int first_owner(int tile) const { return owner(tile * length); }
    DEVICE int owners(int tile) const { return owner((tile + 1) * length - 1) - first_owner(tile) + 1; }
    DEVICE int end_of(int tile, int end) const { return (tile + 1) * length < end ? (tile + 1) * length : end; }
};

// Of 16 rows and the tokens; even and odd steps apart, so that the matrix unit need not wait for itself.
struct Sums {
    float value[COLUMNS][4], odd[COLUMNS][4];
};

#include STORAGE

// A warp's chunks in background copies.
struct Ring {
    unsigned char* stages;
    barrier_word* barriers;
    int slot, parity;
    int start, stop;  // in 16s of bytes, of the chunk that is asked for next, where chunks differ in length

    // Long before it is needed: this waits for memory.
    DEVICE void find(const Work& work, const Run& run, int unit, int end) {
        if (!HELD || unit >= end) return;
        const int* found = work.chunk_starts + run.chunk_of(work, unit);
        start = found[0], stop = found[1];
    }
    DEVICE void ask(const Work& work, const Run& run, int unit, int stage) {
        long long from = HELD ? 16ll * start : run.chunk_of(work, unit) * CHUNK_BYTES;
        copy_chunk(stages + stage * CHUNK_BYTES, work.chunks + from, HELD ? 16 * (stop - start) : CHUNK_BYTES, barriers + stage);
    }
    DEVICE void ask(const Work& work, const Run& run, int unit, int end, int from, int to) {
        for (int stage = from; stage < to; stage++) {
            find(work, run, unit + stage * WARPS, end);
            if (unit + stage * WARPS < end) ask(work, run, unit + stage * WARPS, stage);
        }
        if (to == STAGES) find(work, run, unit + STAGES * WARPS, end);
    }
    DEVICE const unsigned char* wait() {
        wait_for(barriers + slot, parity);
        return stages + slot * CHUNK_BYTES;
    }
    DEVICE void refill(const Work& work, const Run& run, int unit, int end, int lane) {
        synchronize_warp();
        if (lane == 0 && unit + STAGES * WARPS < end) {
            ask(work, run, unit + STAGES * WARPS, slot);
            find(work, run, unit + (STAGES + 1) * WARPS, end);
        }
        slot++;
        if (slot == STAGES) slot = 0, parity ^= 1;
    }
};

#include "collect.cuh"

template <int BLOCK>
DEVICE void multiply_blocks(Sums& sums, Chunk& chunk, const unsigned char* const (&tokens)[COLUMNS][2], int lane) {
    if constexpr (BLOCK < BLOCKS) {
        uint4 x[COLUMNS][2];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            x[column][0] = *(const uint4*)(tokens[column][0] + BLOCK * 128);
            x[column][1] = *(const uint4*)(tokens[column][1] + BLOCK * 128);
        }
        chunk.template multiply<BLOCK>(sums, x, lane);
        multiply_blocks<BLOCK + 1>(sums, chunk, tokens, lane);
    }
}

// Where a lane reads the activations of a chunk: the first and the last half of every 64, and how far the next chunk is.
struct Reader {
    const unsigned char* places[COLUMNS][2];
    int advance[2];
    DEVICE Reader(const Work& work, const Inputs& inputs, int lane) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            int token = Inputs::token_of(column, lane, work.tokens);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                bool there = !DIAGONAL || lane / 4 == lane % 4 * 2 + half;  // zeros lie where a second token would
                int place = inputs.row(there ? token : 1) + (lane % 4 * 8 ^ Inputs::swizzle(token)) + 32 * half;
                places[column][half] = (const unsigned char*)(inputs.numbers + place);
                advance[half] = there ? CHUNK * 2 : 0;
            }
        }
    }
    DEVICE void find(const unsigned char* (&found)[COLUMNS][2], int chunk) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) found[column][half] = places[column][half] + chunk * advance[half];
        }
    }
};

// A chunk's products, added to those of a tile.
DEVICE void multiply_chunk(Sums& sums, Chunk& chunk, const unsigned char* const (&here)[COLUMNS][2], const Work& work,
                           const Inputs& inputs, int at, int lane) {
#if DIAGONAL
    Sums groups = {};
    multiply_blocks<0>(groups, chunk, here, lane);
    chunk.finish(sums, groups, ((const float4*)inputs.groups)[at * 4 + lane % 4]);
#else
#if DIGITS
    chunk.meet(inputs, work.tokens, at, lane);
#endif
    multiply_blocks<0>(sums, chunk, here, lane);
#if GROUP_SUMS
    uint2 groups[COLUMNS];
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
        int token = Inputs::token_of(column, lane, work.tokens);
        groups[column] = *(const uint2*)(inputs.groups + (at * work.tokens + token) * 16 + lane % 4 * 4);
    }
    chunk.finish(sums, groups);
#endif
#endif
}

DEVICE void multiply_run(const Work& work, const Run& run, int first, int end, Ring& ring, const Exchange& exchange,
                         const Inputs& inputs, int warp, int lane) {
    Reader reader(work, inputs, lane);
    int unit = first + warp, turn = 0;
    Extra extra(work, run, first / run.length);
    for (int tile = first / run.length; tile * run.length < end; tile++, turn++) {
        int start = tile * run.length, stop = run.end_of(tile, end), buffer = turn % BUFFERS;
        Sums sums = {};
        extra.begin(work, tile, start >= first, warp, lane);
        for (; unit < stop; unit += WARPS) {
            Chunk chunk;
            chunk.load(ring.wait(), lane);
            if (!HELD) ring.refill(work, run, unit, end, lane);
            const unsigned char* here[COLUMNS][2];
            reader.find(here, unit - start);
            multiply_chunk(sums, chunk, here, work, inputs, unit - start, lane);
            if (HELD) ring.refill(work, run, unit, end, lane);
        }
        extra.add(sums, work, inputs, lane);
        if (turn >= BUFFERS) wait_for(exchange.emptied + buffer, (turn / BUFFERS - 1) & 1);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            float4 sum = {sums.value[column][0] + sums.odd[column][0], sums.value[column][1] + sums.odd[column][1],
                          sums.value[column][2] + sums.odd[column][2], sums.value[column][3] + sums.odd[column][3]};
            if (DIAGONAL) {
                sum.x += from_lane_xor(sum.x, 1), sum.z += from_lane_xor(sum.z, 1);
                sum.x += from_lane_xor(sum.x, 2), sum.z += from_lane_xor(sum.z, 2);
            }
            if (lane % 4 < exchange.pairs) *exchange.at(buffer, warp, column, lane) = sum;
        }
        synchronize_warp();
        if (lane == 0) arrive(exchange.filled + buffer);
    }
}

KERNEL void __launch_bounds__(THREADS, RESIDENT) multiply_stream(const Work work) {
    SHARED_MEMORY(memory);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, split = 0;
    while (Run(work, split).first_block + Run(work, split).blocks <= (int)blockIdx.x) split++;
    Run run(work, split);
    int first = run.start(blockIdx.x), end = run.start(blockIdx.x + 1);
    barrier_word *barriers = (barrier_word*)(memory + WARPS * STAGES * CHUNK_BYTES), *filled = barriers + WARPS * STAGES;
    Exchange exchange = {(float4*)(filled + 2 * BUFFERS), filled, filled + BUFFERS, COLUMNS == 2 ? 4 : (work.tokens + 1) / 2};
    float* factors = (float*)exchange.at(BUFFERS, 0, 0, 0);
    Inputs inputs = {factors, (half_word*)(factors + Inputs::kept_factors(work.split_chunks)), work.split_chunks * CHUNK + PADDING, nullptr, nullptr};
    inputs.groups = inputs.numbers + work.tokens * inputs.stride + (DIAGONAL ? CHUNK : 0);
    inputs.plain = inputs.numbers;
    if (DIAGONAL && work.list_starts) inputs.plain = inputs.groups, inputs.groups += work.split_chunks * CHUNK;
    Ring ring = {memory + warp * STAGES * CHUNK_BYTES, barriers + warp * STAGES, 0, 0, 0, 0};
    if (lane == 0) {
        if (warp < WARPS) {
            for (int stage = 0; stage < STAGES; stage++) set_barrier(ring.barriers + stage, 1);
        } else if (warp == WARPS) {
            for (int buffer = 0; buffer < BUFFERS; buffer++) set_barrier(filled + buffer, WARPS), set_barrier(filled + BUFFERS + buffer, 1);
        }
        publish_barriers();
        if (warp < WARPS) ring.ask(work, run, first + warp, end, 0, EARLY);
    }
    inputs.clear();
    release_dependents();
    synchronize_block();
    wait_for_inputs();
    inputs.stage(work, run.first_chunk, run.length, warp, lane);
    if (DIAGONAL && warp == 0) *(uint4*)(inputs.numbers + inputs.stride + lane * 8) = make_uint4(0, 0, 0, 0);
    if (warp < WARPS && lane == 0) ring.ask(work, run, first + warp, end, EARLY, STAGES);
    synchronize_block();
    if (warp < WARPS) multiply_run(work, run, first, end, ring, exchange, inputs, warp, lane);
    else collect(work, run, first, end, exchange, inputs, warp - WARPS, lane);
}
