// The values of some tiles, dense: `work.y` is `[16 tiles][y_stride]`, from tile `first` on; a warp takes a chunk.
#pragma once

template <int STEP>
DEVICE void put_steps(const Chunk& chunk, half_word* row, int stride) {
    if constexpr (STEP < CHUNK / 16) {
        word a[4];
        chunk.template decode<STEP>(a);
        *(uint2*)(row + STEP * 16) = make_uint2(a[0], a[2]);
        *(uint2*)(row + 8 * stride + STEP * 16) = make_uint2(a[1], a[3]);
        put_steps<STEP + 1>(chunk, row, stride);
    }
}

KERNEL void __launch_bounds__(128) values_stream(const Work work, int first, int tiles) {
    int lane = threadIdx.x % 32, index = blockIdx.x * 4 + threadIdx.x / 32;
    if (index >= tiles * work.tile_chunks) return;
    int tile = index / work.tile_chunks, at = index % work.tile_chunks;
    Chunk chunk;
    chunk.load(work.chunks + 16ll * work.chunk_starts[(long long)(first + tile) * work.tile_chunks + at], lane);
    wait_for_inputs();
    put_steps<0>(chunk, work.y + (long long)(tile * 16 + lane / 4) * work.y_stride + at * CHUNK + lane % 4 * 4, work.y_stride);
}
EXPORT(values_stream)
