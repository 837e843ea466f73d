// y = s (Q + L R) x for a weight Q in codes of the E8P lattice, 1 to 16 tokens; the input comes rotated, from hadamard.cu.
//
// A code is two bytes: which absolute vector, which signs. Two tables of 256 words, T and S, give T ^ S = eight nibbles q with
// v = (q - 7.5) / 2 (v the codeword's coordinate): signs, parity and the shift by a quarter are all in S. Nibbles go to the integer
// matrix unit as they are, the low ones as q, the high ones as 16 q. The input is an integer of 16 bits, x = step X, in two planes
// of bytes, X = 256 H + L, which stand in neighbouring columns of the product. All sums are integers: exact, in any order.
//
// Every lane has its own copy of the tables, in its own bank. A block has some tiles of 16 rows; a warp has one slice of 256 inputs
// at a time, whose planes it keeps in registers while it walks over the tiles. Sums of slices meet in shared memory.
//
// Fixed when compiled: BITS (2, 3, 4), COLUMNS (tokens in fours: 1, 2, 4), RANK (in loads), WARPS, DEPTH (items of a warp in flight).
#include "lattice.cuh"

struct Item {
    uint4 words[BITS];
};

// 16 rows by 256 inputs, added to `target [plane][tile of columns][row][4]`.
DEVICE void multiply_item(const Item& item, const uint4 (&x)[4][COLUMNS], const int2 (&zero)[COLUMNS], int* target, int rows, int row,
                          int lane, int tokens) {
    Sums sums[COLUMNS];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        bool small = BITS == 3 && part;
        const uint4* words = item.words + 2 * part;
        start(sums, zero, small ? 16 : 15);
        if (small) {
            multiply_small(sums, words[0].x, lane, x[0]);
            multiply_small(sums, words[0].y, lane, x[1]);
            multiply_small(sums, words[0].z, lane, x[2]);
            multiply_small(sums, words[0].w, lane, x[3]);
        } else {
            multiply_codes(sums, words[0].x, words[0].y, lane, x[0]);
            multiply_codes(sums, words[0].z, words[0].w, lane, x[1]);
            multiply_codes(sums, words[1].x, words[1].y, lane, x[2]);
            multiply_codes(sums, words[1].z, words[1].w, lane, x[3]);
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
            if (4 * n + (lane & 3) < tokens)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    add_shared(target + (part * 2 + (i & 1)) * COLUMNS * 4 * rows + place_of(n, rows, row + (lane >> 2) + (i >> 1) * 8, lane),
                               sums[n].low[i] * 16 + sums[n].high[i]);
    }
}

// The planes of one slice, and minus 8 times their sums, for half the zero points in sixteenths.
DEVICE void load_slice(uint4 (&x)[4][COLUMNS], int2 (&zero)[COLUMNS], const Arguments& given, int slice, int lane) {
    int column = lane >> 2, pair = lane & 3;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        int token = n * 4 + column / 2;
        const uint4* from = given.planes + ((token * 2 + (column & 1)) * given.slices + slice) * 16 + pair;
#pragma unroll
        for (int k = 0; k < 4; k++) x[k][n] = token < given.tokens ? from[k * 4] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        int total = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            total = dot_bytes(x[k][n].x, 0xF8F8F8F8u, dot_bytes(x[k][n].y, 0xF8F8F8F8u, total));  // times -8
            total = dot_bytes(x[k][n].z, 0xF8F8F8F8u, dot_bytes(x[k][n].w, 0xF8F8F8F8u, total));
        }
        total += exchange(total, 1);
        total += exchange(total, 2);
        zero[n] = make_int2(from_lane(total, 8 * pair), from_lane(total, 8 * pair + 4));
    }
}

// The sums in shared memory as outputs.
DEVICE void store(const Arguments& given, const int* sums, const float* low_rank, int first_row, int count) {
    int rows = given.most_tiles * 16, plane = COLUMNS * 4 * rows;
    float scale = *given.scale / 32;  // half a nibble's step, and 16 in every sum
    for (int i = threadIdx.x; i < count * given.tokens; i += blockDim.x) {
        int token = i / count, row = i % count, place = place_of(token >> 2, rows, row, token);
        float value = fmaf((float)sums[place], 256.0f, (float)sums[plane + place]);
        if (BITS > 2) value += fmaf((float)sums[2 * plane + place], 256.0f, (float)sums[3 * plane + place]) / given.residual;
        value *= scale * given.steps[token];
        if (RANK && blockIdx.y == 0) value += low_rank[place];
        if (first_row + row < given.rows)
            store_as(given.output, ((long)blockIdx.y * given.tokens + token) * given.rows + first_row + row, value, given.output_type);
    }
}

KERNEL void __launch_bounds__(WARPS * 32, 1) lattice_multiply(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int first_tile = given.tiles * blockIdx.x / gridDim.x, tiles = given.tiles * (blockIdx.x + 1) / gridDim.x - first_tile;
    int first_slice = given.slices * blockIdx.y / gridDim.y, slices = given.slices * (blockIdx.y + 1) / gridDim.y - first_slice;
    int begin = slices * tiles * warp / WARPS, left = slices * tiles * (warp + 1) / WARPS - begin;
    int rows = given.most_tiles * 16;
    bool has_low_rank = RANK && blockIdx.y == 0;
    int* sums = (int*)(shared + given.sums_at);
    float* low_rank = (float*)(sums + PARTS * 8 * COLUMNS * rows);

    // the first items are on their way while tables are spread and while the input is still being made
    int tile = tiles ? begin % tiles : 0, slice = tiles ? begin / tiles : 0, ahead_tile = tile, stride = given.slices * (BITS * 32);
    const uint4* codes = given.codes + ((long)(first_tile + tile) * given.slices + first_slice + slice) * (BITS * 32) + lane;
    Item ring[DEPTH];
    auto fetch = [&](Item& item) {
#pragma unroll
        for (int part = 0; part < BITS; part++) item.words[part] = load_stream(codes + part * 32);
        codes += stride;
        if (++ahead_tile == tiles) ahead_tile = 0, codes += BITS * 32 - (long)tiles * stride;
    };
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
        if (i < left) fetch(ring[i]);
    uint4 factor[2] = {};
    if (has_low_rank && warp < tiles) load_left(factor, given, first_tile + warp, 0, lane);
    spread_tables(shared + (TABLE - shared_address(shared)), given.tables);
    for (int i = threadIdx.x; i < PARTS * 8 * COLUMNS * rows; i += blockDim.x) sums[i] = 0;
    wait_for_inputs();

    uint4 x[4][COLUMNS];
    int2 zero[COLUMNS];
    if (left > 0) load_slice(x, zero, given, first_slice + slice, lane);
    Projected projected(low_rank + 4 * COLUMNS * rows, given);
    if (has_low_rank) projected.make(given, first_tile, tiles, warp, lane);
    synchronize_block();
    if (has_low_rank)
        for (int of = warp; of < tiles; of += WARPS) {
            if (of != warp) load_left(factor, given, first_tile + of, 0, lane);
            multiply_low_rank(low_rank, rows, of * 16, first_tile, first_tile + of, lane, factor, projected, given);
        }
    while (left > 0) {
#pragma unroll
        for (int turn = 0; turn < DEPTH; turn++) {
            if (left <= 0) break;
#if COLUMNS < 4
            Item item = ring[turn];
            if (left > DEPTH) fetch(ring[turn]);
            multiply_item(item, x, zero, sums, rows, tile * 16, lane, given.tokens);
#else
            multiply_item(ring[turn], x, zero, sums, rows, tile * 16, lane, given.tokens);
            if (left > DEPTH) fetch(ring[turn]);
#endif
            if (++tile == tiles) {
                tile = 0;
                if (left > 1) load_slice(x, zero, given, first_slice + ++slice, lane);
            }
            left--;
        }
    }
    synchronize_block();
    store(given, sums, low_rank, first_tile * 16, tiles * 16);
}

EXPORT(lattice_multiply)
