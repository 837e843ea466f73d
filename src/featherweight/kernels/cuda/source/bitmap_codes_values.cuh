// The values of some tiles, dense: `work.y` is `[16 tiles][y_stride]`, from tile `first` on; a warp takes a chunk.
#pragma once

template <int BLOCK>
DEVICE void put_blocks(const Chunk& chunk, half_word* row, int stride, int lane) {
    if constexpr (BLOCK < BLOCKS) {
        word steps[2][4];
        chunk.template decode<BLOCK>(steps[0], steps[1], lane);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            int index = (BLOCK * 64 + step * 32) / GROUP;
            word pair = ((const word*)(chunk.bytes + SCALES_AT))[index * 8 + lane / 4], fill[2];
            chunk.fills(fill, index, lane);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float scale = from_scale((half_word)(i % 2 ? pair >> 16 : pair & 0xFFFFu)), value[4];
#pragma unroll
                for (int byte = 0; byte < 4; byte++) {
                    int code = ((int)(steps[step][i] << (24 - 8 * byte)) >> 28) - ((int)fill[i % 2] >> 28);  // q − z
                    value[byte] = (float)code * scale;
                }
                half_word* at = row + i % 2 * 8 * stride + BLOCK * 64 + step * 32 + i / 2 * 16 + lane % 4 * 4;
                *(uint2*)at = make_uint2(pack_numbers(value[0], value[1]), pack_numbers(value[2], value[3]));
            }
        }
        put_blocks<BLOCK + 1>(chunk, row, stride, lane);
    }
}

KERNEL void __launch_bounds__(128) values_stream(const Work work, int first, int tiles) {
    int lane = threadIdx.x % 32, index = blockIdx.x * 4 + threadIdx.x / 32;
    if (index >= tiles * work.tile_chunks) return;
    int tile = index / work.tile_chunks, at = index % work.tile_chunks;
    Chunk chunk;
    chunk.load(work.chunks + 16ll * work.chunk_starts[(long long)(first + tile) * work.tile_chunks + at], lane);
    wait_for_inputs();
    put_blocks<0>(chunk, work.y + (long long)(tile * 16 + lane / 4) * work.y_stride + at * CHUNK, work.y_stride, lane);
}
EXPORT(values_stream)
