// A sketch of keys: SKETCH signs of Sᵀ k and a norm; with OUTLIERS channels of every STAGE tokens sketched apart by OUTLIER_SKETCH.
//
// STAGE tokens by HEAD_DIM threads, in float32.
#pragma once
#include "cache.cuh"

constexpr int KEY_ROW = STAGE + 4, ROOM_KEYS = 0, ROOM_SIZES = ROOM_KEYS + KEY_ROW * HEAD_DIM * 4, ROOM_CHOSEN = ROOM_SIZES + HEAD_DIM * 4;
constexpr int ROOM_APART = ROOM_CHOSEN + HEAD_DIM, SKETCH_ROOM = ROOM_APART + 16;  // bytes of shared memory

// Which channels are among the OUTLIERS largest of `sizes`: flags, and their numbers, ascending.
DEVICE void choose_outliers(const float* sizes, unsigned char* chosen, unsigned char* apart, int thread) {
    const float mine = sizes[thread];
    int rank = 0;
#pragma unroll 8
    for (int other = 0; other < HEAD_DIM; other++) rank += sizes[other] > mine || (sizes[other] == mine && other < thread);
    chosen[thread] = rank < OUTLIERS;
    synchronize_block();
    if (chosen[thread]) {
        int place = 0;
        for (int other = 0; other < thread; other++) place += chosen[other];
        apart[place] = (unsigned char)thread;
    }
    synchronize_block();
}

// Signs of one column of S for all tokens, of `count` channels by `channel_of` but those `skipped`; the warp's lanes have neighbouring columns.
template <class ChannelOf, class Skipped>
DEVICE void sketch_column(const float* keys, const float* projection, int column, int count, const ChannelOf& channel_of,
                          const Skipped& skipped, unsigned char* signs, int bytes, int lane) {
    constexpr int AHEAD = 8;  // entries of S on their way
    float sums[STAGE] = {};
    for (int first = 0; first < count; first += AHEAD) {
        float entries[AHEAD];
#pragma unroll
        for (int at = 0; at < AHEAD; at++) entries[at] = projection[channel_of(first + at) * SKETCH + column];
#pragma unroll
        for (int at = 0; at < AHEAD; at++) {
            const float4* of = (const float4*)(keys + channel_of(first + at) * KEY_ROW);
            const float entry = skipped(first + at) ? 0.0f : entries[at];
#pragma unroll
            for (int four = 0; four < STAGE / 4; four++) {
                const float4 key = of[four];
                sums[4 * four] += entry * key.x, sums[4 * four + 1] += entry * key.y;
                sums[4 * four + 2] += entry * key.z, sums[4 * four + 3] += entry * key.w;
            }
        }
    }
    word mine = 0;
#pragma unroll
    for (int token = 0; token < STAGE; token++) {
        const word all = vote(sums[token] > 0);
        mine = lane == token ? all : mine;
    }
    *(word*)(signs + lane * bytes + column / 32 * 4) = mine;
}

// `row_of(token)` tells where a key lies; targets are those of the group: signs, norms, and likewise of outliers, their channels.
template <class RowOf>
DEVICE void encode_sketch(const RowOf& row_of, unsigned char* const (&targets)[5], const float* projection, unsigned char* room, int thread) {
    float *keys = (float*)(room + ROOM_KEYS), *sizes = (float*)(room + ROOM_SIZES);  // keys [HEAD_DIM][KEY_ROW]
    unsigned char *chosen = room + ROOM_CHOSEN, *apart = room + ROOM_APART;
    const int lane = thread % 32, warp = thread / 32;
    float size = 0;
#pragma unroll 8
    for (int token = 0; token < STAGE; token++) {
        const float value = from_number(((const half_word*)row_of(token))[thread]);
        size += value * value;
        keys[thread * KEY_ROW + token] = value;
    }
    sizes[thread] = size, chosen[thread] = 0;
    synchronize_block();
    if constexpr (OUTLIERS > 0) choose_outliers(sizes, chosen, apart, thread);
    for (int token = warp; token < STAGE; token += HEAD_DIM / 32) {
        float within = 0, without = 0;
#pragma unroll
        for (int channel = lane; channel < HEAD_DIM; channel += 32) {
            const float value = keys[channel * KEY_ROW + token];
            if (chosen[channel]) without += value * value;
            else within += value * value;
        }
        for (int lanes = 1; lanes < 32; lanes *= 2) within += exchange(within, lanes), without += exchange(without, lanes);
        if (lane == 0) {
            ((half_word*)targets[1])[token] = to_number(fminf(sqrtf(within), MOST));
            if constexpr (OUTLIERS > 0) ((half_word*)targets[3])[token] = to_number(fminf(sqrtf(without), MOST));
        }
    }
    if (thread < OUTLIERS) targets[4][thread] = apart[thread];
    for (int column = thread; column < SKETCH; column += HEAD_DIM) {
        sketch_column(keys, projection, column, HEAD_DIM, [](int at) { return at; }, [&](int at) { return chosen[at] != 0; }, targets[0], SKETCH / 8, lane);
        if constexpr (OUTLIERS > 0) {
            if (column < OUTLIER_SKETCH) {
                sketch_column(keys, projection, column, OUTLIERS, [&](int at) { return (int)apart[at]; }, [](int) { return false; }, targets[2], OUTLIER_SKETCH / 8, lane);
            }
        }
    }
    synchronize_block();
}
