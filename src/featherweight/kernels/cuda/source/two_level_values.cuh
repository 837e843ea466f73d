// The values of some tiles of a two-level weight, dense, with the list's weights added.
#pragma once

template <int GROUP, int PAIR>
DEVICE word value_pair(const Chunk& chunk, float step, float zero) {
    word codes = code_pair<PAIR>(chunk.codes + GROUP * BITS);
    return pack_numbers((from_fp16((half_word)codes) - zero) * step, (from_fp16((half_word)(codes >> 16)) - zero) * step);
}

DEVICE uint4 choose(bool first, const uint4& a, const uint4& b) { return make_uint4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w); }

// A lane's 16 inputs of one group and row. Neighbours exchange halves, so that what is stored at once is whole sectors.
template <int GROUP, int LOW>
DEVICE void put_row(const Chunk& chunk, half_word* to, float factor, int lane) {
    constexpr int at = LOW ? 16 : 0, first = LOW ? 8 : 0;
    float step = from_fp16((half_word)(chunk.scale[GROUP] >> at)) * factor, zero = from_fp16((half_word)(chunk.zero[GROUP] >> at));
    zero *= GROUP_FACTOR * (LOW ? 1.0f / LOWER : 1.0f), step *= LOW ? LOWER : 1.0f;
    uint4 left = make_uint4(value_pair<GROUP, first>(chunk, step, zero), value_pair<GROUP, first + 1>(chunk, step, zero),
                            value_pair<GROUP, first + 2>(chunk, step, zero), value_pair<GROUP, first + 3>(chunk, step, zero));
    uint4 right = make_uint4(value_pair<GROUP, first + 4>(chunk, step, zero), value_pair<GROUP, first + 5>(chunk, step, zero),
                             value_pair<GROUP, first + 6>(chunk, step, zero), value_pair<GROUP, first + 7>(chunk, step, zero));
    uint4 given = choose(lane % 2, left, right);
    uint4 got = make_uint4(word_from_lane(given.x, lane ^ 1), word_from_lane(given.y, lane ^ 1), word_from_lane(given.z, lane ^ 1), word_from_lane(given.w, lane ^ 1));
    ((uint4*)to)[0] = choose(lane % 2, got, left);
    ((uint4*)to)[2] = choose(lane % 2, right, got);
}

template <int GROUP>
DEVICE void put_groups(const Chunk& chunk, half_word* row, int stride, float factor, int lane) {
    if constexpr (GROUP < 4) {
        put_row<GROUP, 0>(chunk, row + GROUP * 64, factor, lane);
        put_row<GROUP, 1>(chunk, row + GROUP * 64 + 8ll * stride, factor, lane);
        put_groups<GROUP + 1>(chunk, row, stride, factor, lane);
    }
}

#if LISTED
// Input of a chunk whose activation lies at a place: the inverse of `pair_place`.
DEVICE int input_at(int place) {
    return place / 128 * 128 + place / 32 % 2 * 64 + place / 8 % 4 * 16 + place / 64 % 2 * 8 + place % 8;
}

// Adds a tile's list to its values: a block to a tile.
KERNEL void __launch_bounds__(128) values_list(const Work work, int first, int) {
    wait_for_inputs();
    int segments = (work.tile_chunks + work.segment_chunks - 1) / work.segment_chunks, thread = threadIdx.x % 16, t = thread / 4;
    const int* starts = work.list_starts + (first + blockIdx.x) * segments;
    half_word* row = work.y + (long long)(blockIdx.x * 16 + thread / 2 % 2 * 8 + 2 * t + thread % 2) * work.y_stride;
    for (int step = starts[0] + threadIdx.x / 16; step < starts[segments]; step += 8) {
        const half_word* record = (const half_word*)(work.list + step * 4ll + t) + thread / 2 % 2 * 4 + thread % 2;
        if (record[0] == 0x8000u) continue;
        half_word* value = row + record[2] / 512 * CHUNK + input_at(record[2] / 2 % CHUNK);
        *value = to_number(from_number(*value) + from_fp16(record[0]));
    }
}
EXPORT(values_list)
#endif

// `work.y` is `[16 tiles][y_stride]`, from tile `first` on; a warp takes a chunk.
KERNEL void __launch_bounds__(128) values_stream(const Work work, int first, int tiles) {
    int lane = threadIdx.x % 32, index = blockIdx.x * 4 + threadIdx.x / 32;
    if (index >= tiles * work.tile_chunks) return;
    int tile = index / work.tile_chunks, at = index % work.tile_chunks;
    long long chunk_at = (long long)(first + tile) * work.tile_chunks + at;
    Chunk chunk;
    chunk.load(work.chunks + chunk_at * CHUNK_BYTES, lane);
    wait_for_inputs();
    half_word* row = work.y + (long long)(tile * 16 + lane / 4) * work.y_stride + at * CHUNK + lane % 4 / 2 * 32 + lane % 2 * 8;
    put_groups<0>(chunk, row, work.y_stride, work.factor, lane);
}
EXPORT(values_stream)
