// The values of some tiles of a weight in chunks, dense, by whatever multiplies its chunks: times activations of which one is 1 and
// the rest 0, for 16 inputs at a time. A storage says in SPAN_BLOCKS after how many blocks of 64 inputs its sums are whole.
#pragma once

constexpr half_word ONE = ACTIVATION == 1 ? 0x3C00 : 0x3F80;

// Place in shared memory of an input of a block of 64, relative to the block.
DEVICE int place_in_block(int block, int input) {
    return pair_place(block * 64 + input - input % 4, input % 4 / 2) + input % 2 - block * 64;
}

// The activations that a lane reads of a block where token t is 1 at input 16 `step` + t of it, or nowhere.
DEVICE void put_ones(uint4 (&x)[2][2], int block, int step, bool here, int lane) {
#pragma unroll
    for (int column = 0; column < 2; column++) {
        int place = place_in_block(block, step * 16 + column * 8 + lane / 4), word_at = place % 8 / 2;
        bool mine = here && place % 32 / 8 == lane % 4;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            word one = mine && place / 32 == half ? (word)ONE << place % 2 * 16 : 0;
            x[column][half] = make_uint4(word_at == 0 ? one : 0, word_at == 1 ? one : 0, word_at == 2 ? one : 0, word_at == 3 ? one : 0);
        }
    }
}

// Blocks FIRST to END with ones in block FIRST.
template <int FIRST, int BLOCK, int END>
DEVICE void multiply_span(Sums& sums, Chunk& chunk, int step, int lane) {
    if constexpr (BLOCK < END) {
        uint4 x[2][2];
        put_ones(x, BLOCK, step, BLOCK == FIRST, lane);
        chunk.template multiply<BLOCK>(sums, x, lane);
        multiply_span<FIRST, BLOCK + 1, END>(sums, chunk, step, lane);
    }
}

template <int BLOCK>
DEVICE void put_blocks(const Chunk& chunk, half_word* row, int stride, float factor, int lane) {
    if constexpr (BLOCK < BLOCKS) {
        for (int step = 0; step < 4; step++) {
            Chunk own = chunk;
            Sums part = {};
            multiply_span<BLOCK, BLOCK, (BLOCK / SPAN_BLOCKS + 1) * SPAN_BLOCKS>(part, own, step, lane);
#pragma unroll
            for (int column = 0; column < 2; column++) {
                float value[4];
#pragma unroll
                for (int entry = 0; entry < 4; entry++) value[entry] = (part.value[column][entry] + part.odd[column][entry]) * factor;
                half_word* at = row + BLOCK * 64 + step * 16 + column * 8;
                *(word*)at = pack_numbers(value[0], value[1]);
                *(word*)(at + 8 * stride) = pack_numbers(value[2], value[3]);
            }
        }
        put_blocks<BLOCK + 1>(chunk, row, stride, factor, lane);
    }
}

// `work.y` is `[16 tiles][y_stride]`, from tile `first` on; a warp takes a chunk.
KERNEL void __launch_bounds__(128) values_stream(const Work work, int first, int tiles) {
    int lane = threadIdx.x % 32, index = blockIdx.x * 4 + threadIdx.x / 32;
    if (index >= tiles * work.tile_chunks) return;
    int tile = index / work.tile_chunks, at = index % work.tile_chunks;
    long long chunk_at = (long long)(first + tile) * work.tile_chunks + at, start = chunk_at * CHUNK_BYTES;
    if (work.chunk_starts) start = 16ll * work.chunk_starts[chunk_at];
    Chunk chunk;
    chunk.load(work.chunks + start, lane);
    wait_for_inputs();
    half_word* row = work.y + (long long)(tile * 16 + lane / 4) * work.y_stride + at * CHUNK + lane % 4 * 2;
    put_blocks<0>(chunk, row, work.y_stride, work.factor, lane);
}

EXPORT(values_stream)
