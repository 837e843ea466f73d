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
// Other warps make the low-rank term meanwhile. Where blocks form clusters they also multiply the input by R, each some ranks, and
// hand one another the sums. A block's outputs may be those among which part of the output's rotation takes place: it is done here.
//
// Fixed when compiled: BITS (2, 3, 4), COLUMNS (tokens in fours: 1, 2, 4), RANK (in loads), WARPS, DEPTH (items of a warp in flight),
// HELPERS (warps for the low-rank term, 0 without), UNIT (rows in order that share its scales), CLUSTER (8 or 1), FACTOR and TWOS
// (of the block's part of the rotation; 0 for none), INPUT and IN (of one token's input that comes unrotated: the size's exponent, 0
// where it does not, and 1 for bf16, 2 for fp16).
#include "lattice_around.cuh"
#if INPUT
#include "lattice_input.cuh"
#endif

constexpr int AHEAD = 64;  // items of a warp

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

// Minus 8 times the sums of a slice's planes, for half the zero points in sixteenths.
DEVICE void add_planes(int2 (&zero)[COLUMNS], const uint4 (&x)[4][COLUMNS], int lane) {
    int pair = lane & 3;
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

// Where the block's parts of shared memory lie.
struct Places {
    int* sums;
    float *low_rank, *steps, *t;
    unsigned long long* barrier;
    word* factor;

    DEVICE Places(unsigned char* shared, const Arguments& given) {
        int rows = given.most_tiles * 16;
        sums = (int*)(shared + given.sums_at);
        low_rank = (float*)(sums + PARTS * 8 * COLUMNS * rows);
        steps = low_rank + (RANK ? 4 * COLUMNS * rows : 0);
        barrier = (unsigned long long*)(steps + 16);
        factor = (word*)(barrier + 2);
        t = (float*)(factor + (FACTOR * ((FACTOR + 31) / 32) + 3) / 4 * 4);
    }
};

// An output, from sums in shared memory.
DEVICE float value_of(const Arguments& given, const Places& places, float scale, int token, int row, bool has_low_rank) {
    int rows = given.most_tiles * 16, plane = COLUMNS * 4 * rows, place = place_of(token >> 2, rows, row, token);
    const int* sums = places.sums + place;
    float value = fmaf((float)sums[0], 256.0f, (float)sums[plane]);
    if (BITS > 2) value += fmaf((float)sums[2 * plane], 256.0f, (float)sums[3 * plane]) / given.residual;
    value *= scale * places.steps[token];
    return has_low_rank ? value + places.low_rank[place] : value;
}

#if RANK
// What the low-rank term adds to the rows of the block, by HELPERS warps.
DEVICE void add_low_rank(const Arguments& given, const Places& places, int block, int first_tile, int tiles, int warp, int lane) {
    const float* t = given.t;
    unsigned char* free = (unsigned char*)places.t;
#if CLUSTER > 1
    Projection projection(places.t, given);
    if (warp == 0) projection.share(places.steps, places.barrier, lane);
    wait_for_bytes(places.barrier);
    t = projection.t;
    free += given.tokens * (RANK + RANK_TILES * WARPS * 16) * 4;
#endif
    LowRankTerm(given, t, free + warp * LowRankTerm::size(given.tokens), lane).add(places.low_rank, first_tile, tiles, warp, [&](int at) {
#if FACTOR
        return (at >> given.near << given.twos) + (block << given.near) + (at & ((1 << given.near) - 1));
#else
        return first_tile * 16 + at;
#endif
    });
}
#endif

KERNEL void __launch_bounds__((WARPS + HELPERS) * 32, 1) lattice_multiply(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
#if CLUSTER > 1
    int block = blockIdx.x * CLUSTER + blockIdx.y, blocks = gridDim.x * CLUSTER, split = 0, splits = 1;
#else
    int block = blockIdx.x, blocks = gridDim.x, split = blockIdx.y, splits = gridDim.y;
#endif
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int first_tile = given.tiles * block / blocks, tiles = given.tiles * (block + 1) / blocks - first_tile;
    int first_slice = given.slices * split / splits, slices = given.slices * (split + 1) / splits - first_slice;
    int begin = slices * tiles * warp / WARPS, left = warp < WARPS ? slices * tiles * (warp + 1) / WARPS - begin : 0;
    int rows = given.most_tiles * 16;
    bool has_low_rank = RANK && split == 0;
    float scale = *given.scale / 32;  // half a nibble's step, and 16 in every sum
    Places places(shared, given);
#if CLUSTER > 1
    if (threadIdx.x == 0) expect_bytes(places.barrier, given.tokens * RANK * 4);
    arrive_in_cluster();
#endif

    // the first items are on their way while tables are spread and while the input is still being made, others to the second-level cache
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
    for (int i = begin + DEPTH + lane; i < begin + min(left, AHEAD); i += 32)
        prefetch(given.codes + ((long)(first_tile + i % tiles) * given.slices + first_slice + i / tiles) * (BITS * 32), BITS * 512);
#if INPUT
    Input input;
    if (warp < WARPS) input.load_signs(given);
#endif
#if CLUSTER > 1
    Right right;
    if (warp < WARPS) right.load(given, blockIdx.y, warp, lane);
#endif
    spread_tables(shared + (TABLE - shared_address(shared)), given.tables);
    for (int i = threadIdx.x; i < PARTS * 8 * COLUMNS * rows; i += blockDim.x) places.sums[i] = 0;
    if (FACTOR > 1)
        for (int i = threadIdx.x; i < FACTOR * ((FACTOR + 31) / 32); i += blockDim.x) places.factor[i] = given.factor[i];
    wait_for_inputs();

#if INPUT
    float* values = (float*)(shared + TABLE - 1024 - 6 * SIZE);  // below the tables, wherever these are
    given.planes = (const uint4*)(values + SIZE);
    if (warp < WARPS) input.turn(given, values, (unsigned char*)(values + SIZE), places.t, places.steps, warp, lane);
#else
    if (threadIdx.x < given.tokens) places.steps[threadIdx.x] = given.steps[threadIdx.x];
#endif
    uint4 x[4][COLUMNS];
    int2 zero[COLUMNS];
#if CLUSTER > 1
    if (warp < given.slices && warp < WARPS) load_planes(x, given, warp, lane);
    if (warp < WARPS) Projection(places.t, given).multiply(given, right, x, warp, lane);
    if (left > 0 && !(slice == warp && warp + WARPS >= given.slices)) load_planes(x, given, first_slice + slice, lane);
#else
    if (left > 0) load_planes(x, given, first_slice + slice, lane);
#endif
    if (left > 0) add_planes(zero, x, lane);
    synchronize_block();
#if CLUSTER > 1
    wait_for_cluster();
#endif
    #if RANK
    if (has_low_rank && warp >= WARPS) add_low_rank(given, places, block, first_tile, tiles, warp - WARPS, lane);
#endif
    while (left > 0) {
#pragma unroll
        for (int turn = 0; turn < DEPTH; turn++) {
            if (left <= 0) break;
#if COLUMNS < 4
            Item item = ring[turn];
            if (left > DEPTH) fetch(ring[turn]);
            multiply_item(item, x, zero, places.sums, rows, tile * 16, lane, given.tokens);
#else
            multiply_item(ring[turn], x, zero, places.sums, rows, tile * 16, lane, given.tokens);
            if (left > DEPTH) fetch(ring[turn]);
#endif
            if (++tile == tiles) {
                tile = 0;
                if (left > 1) {
                    load_planes(x, given, first_slice + ++slice, lane);
                    add_planes(zero, x, lane);
                }
            }
            left--;
        }
    }
    synchronize_block();
    auto value = [&](int token, int row) { return value_of(given, places, scale, token, row, has_low_rank); };
#if FACTOR
    store_turned(given, places.factor, (float*)(shared + (TABLE - shared_address(shared))), block, value);
#else
    for (int i = threadIdx.x; i < tiles * 16 * given.tokens; i += blockDim.x) {
        int token = i / (tiles * 16), row = i % (tiles * 16);
        if (first_tile * 16 + row < given.rows)
            store_as(given.output, ((long)split * given.tokens + token) * given.rows + first_tile * 16 + row, value(token, row), given.output_type);
    }
#endif
}

EXPORT(lattice_multiply)
