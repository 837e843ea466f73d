// The collectors of a block: they add up what its warps found of a tile, what lies beside the chunks, and what other blocks found.
#pragma once

// Where the warps of a block put their sums down for the collectors: four numbers of every lane that has tokens.
struct Exchange {
    float4* sums;
    barrier_word *filled, *emptied;
    int pairs;  // of tokens
    DEVICE float4* at(int buffer, int warp, int column, int lane) const {
        return sums + (((buffer * WARPS + warp) * COLUMNS + column) * 8 + lane / 4) * pairs + lane % 4;
    }
};

DEVICE void write_outputs(const Work& work, const float (&sums)[COLUMNS][4], int tile, int lane) {
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            int token = column * 8 + lane % 4 * 2 + part % 2, row = tile * 16 + lane / 4 + part / 2 * 8;
            if (token >= work.tokens || row >= work.rows) continue;
            float bias = work.bias ? from_number(work.bias[row]) : 0.0f;
            work.y[(long long)token * work.y_stride + row] = to_number(sums[column][part] + bias);
        }
    }
}

// One block's part of a tile that several share: put down. True, with all parts added up, for the last to arrive.
DEVICE bool share_sums(const Work& work, const Run& run, float (&sums)[COLUMNS][4], int tile, int lane) {
    int before = 0, all = 0;
    for (int split = 0; split * work.split_chunks < work.tile_chunks; split++) {
        int count = Run(work, split).owners(tile);
        before += split < run.split ? count : 0;
        all += count;
    }
    float* slots = work.partial + (long long)tile * work.slots * COLUMNS * 128 + lane * 4;
    float* own = slots + (before + blockIdx.x - run.first_owner(tile)) * COLUMNS * 128;
#pragma unroll
    for (int entry = 0; entry < 4 * COLUMNS; entry++) store_shared_sum(own + entry / 4 * 128 + entry % 4, sums[entry / 4][entry % 4]);
    synchronize_warp();
    int arrived = lane == 0 ? count_arrival(work.arrivals + tile) : 0;
    if (word_from_lane(arrived, 0) != all - 1) return false;
    synchronize_warp();
    if (lane == 0) work.arrivals[tile] = 0;
#pragma unroll
    for (int entry = 0; entry < 4 * COLUMNS; entry++) sums[entry / 4][entry % 4] = 0.0f;
    for (int slot = 0; slot < all; slot++) {
#pragma unroll
        for (int entry = 0; entry < 4 * COLUMNS; entry++)
            sums[entry / 4][entry % 4] += load_shared_sum(slots + (slot * COLUMNS + entry / 4) * 128 + entry % 4);
    }
    return true;
}

// Of all warps, for the lane's rows and tokens.
DEVICE void add_parts(float (&total)[COLUMNS][4], const Exchange& exchange, int buffer, int lane) {
    if (lane % 4 >= exchange.pairs) return;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            float4 part = *exchange.at(buffer, warp, column, lane);
            total[column][0] += part.x;
            total[column][1] += part.y;
            total[column][2] += part.z;
            total[column][3] += part.w;
        }
    }
}

DEVICE void collect(const Work& work, const Run& run, int first, int end, const Exchange& exchange, const Inputs& inputs, int collector, int lane) {
    int turn = collector;
    Beside terms(work, run, first / run.length + collector);
    for (int tile = first / run.length + collector; tile * run.length < end; tile += COLLECTORS, turn += COLLECTORS) {
        int buffer = turn % BUFFERS;
        float total[COLUMNS][4] = {}, beside[COLUMNS][4] = {};
        terms.add(beside, work, inputs, tile, tile * run.length >= first, lane);
        wait_for(exchange.filled + buffer, turn / BUFFERS & 1);
        add_parts(total, exchange, buffer, lane);
        synchronize_warp();
        if (lane == 0) arrive(exchange.emptied + buffer);
#pragma unroll
        for (int entry = 0; entry < 4 * COLUMNS; entry++) {
            float factor = NORMALIZED ? inputs.factor(entry / 4 * 8 + lane % 4 * 2 + entry % 2) : 1.0f;
            float whole = total[entry / 4][entry % 4] * (entry % 4 < 2 ? work.factor : work.factor * LOWER);
            total[entry / 4][entry % 4] = (whole + beside[entry / 4][entry % 4]) * factor;
        }
        bool whole = tile * run.length >= first && (tile + 1) * run.length <= end && run.length == work.tile_chunks;
        if (whole || share_sums(work, run, total, tile, lane)) write_outputs(work, total, tile, lane);
    }
}
