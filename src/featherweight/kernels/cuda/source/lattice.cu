// y = s (Q + L R) x for a weight Q in codes of the E8P lattice, 1 to 16 tokens; the input comes rotated, from hadamard.cu.
//
// A code is two bytes: which absolute vector, which signs. Two tables of 256 words, T and S, give T ^ S = eight nibbles q with
// v = (q - 7.5) / 2 (v the codeword's coordinate): signs, parity and the shift by a quarter are all in S. A nibble in the lowest
// bits of a half word is q 2^-24 in fp16, one above it q 2^-20; the input makes up for it (hadamard.cu). The zero point is where
// sums start.
//
// Every lane has its own copy of the tables, in its own bank. A block has some tiles of 16 rows; a warp has one slice of 256 inputs
// at a time, which it keeps in registers while it walks over the tiles. Sums of slices meet in shared memory as integers: in any
// order the same.
//
// Fixed when compiled: BITS (2, 3, 4), COLUMNS (tokens in eights), WARPS, DEPTH (items of a warp in flight).
#include "instructions.cuh"

constexpr int PARTS = BITS > 2 ? 2 : 1, RANKS = 8;  // codes of a vector; sixteens of the rank at a time

// Shared memory by address: sums from its start, tables of 64 KB at 64 KB and (3 bits) 128 KB, so that a byte of a code put into
// byte 1 of an address picks an entry; the rest after them.
constexpr int TABLE = 65536;

struct Item {
    uint4 words[BITS];
};

struct Arguments {
    const uint4* codes;           // [tiles][slices][BITS][32]
    const word* tables;           // [2 or 3][256]
    const float* scale;           // [1]: of the codewords
    const uint4* input;           // [tokens][256 slices] fp16
    const float4* totals;         // [tokens][slices]: sums of the input, of 64 each
    const float* steps;           // [tokens]: of the input
    const word* left;             // [tiles][rank / 16][32]
    const half_word* left_scales; // [groups][rank]
    const float* t;               // [tokens][rank]
    void* output;                 // [splits][tokens][rows]
    int tiles, slices, rows, tokens, rank, group_tiles, output_type, most_tiles, sums_at;
    float residual;               // what the second codeword is divided by
    float unit;                   // of the integer sums
};

// Eight nibbles of a code, which `bits` holds in bytes BYTE (signs) and BYTE + 1 (vector).
template <int BYTE>
DEVICE word look_up(word bits, word table) {
    word sign = load_shared<128>(pick_bytes(bits, table, 0x7604 | BYTE << 4));
    return load_shared<0>(pick_bytes(bits, table, 0x7604 | (BYTE + 1) << 4)) ^ sign;
}

// As above for a code of one byte.
template <int BYTE>
DEVICE word look_up_small(word bits, word table) {
    return load_shared<TABLE>(pick_bytes(bits, table, 0x7604 | BYTE << 4));
}

// 16 rows by 32 inputs: nibbles of one vector of either of a lane's rows.
DEVICE void multiply_vectors(float (&sums)[COLUMNS][4], word upper, word lower, word shift, const uint4 (&x)[COLUMNS]) {
    word upper_rest = multiply_high(upper, shift), lower_rest = multiply_high(lower, shift);
    word near[4] = {upper & 0x000F000Fu, lower & 0x000F000Fu, upper & 0x00F000F0u, lower & 0x00F000F0u};
    word far[4] = {upper_rest & 0x000F000Fu, lower_rest & 0x000F000Fu, upper_rest & 0x00F000F0u, lower_rest & 0x00F000F0u};
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        multiply_fp16(sums[n], near, x[n].x, x[n].y);
        multiply_fp16(sums[n], far, x[n].z, x[n].w);
    }
}

DEVICE void multiply_codes(float (&sums)[COLUMNS][4], word upper, word lower, word table, word shift, const uint4 (*x)[COLUMNS]) {
    multiply_vectors(sums, look_up<0>(upper, table), look_up<0>(lower, table), shift, x[0]);
    multiply_vectors(sums, look_up<2>(upper, table), look_up<2>(lower, table), shift, x[1]);
}

// Codes of one byte: those of the upper row in bytes 0 and 1 of `bits`, of the lower one in bytes 2 and 3.
DEVICE void multiply_small(float (&sums)[COLUMNS][4], word bits, word table, word shift, const uint4 (*x)[COLUMNS]) {
    multiply_vectors(sums, look_up_small<0>(bits, table), look_up_small<2>(bits, table), shift, x[0]);
    multiply_vectors(sums, look_up_small<1>(bits, table), look_up_small<3>(bits, table), shift, x[1]);
}

// Where a lane's sums stand: `[column odd][tile of columns][row][4]`.
DEVICE int place_of(int odd, int n, int rows, int row, int pair) { return ((odd * COLUMNS + n) * rows + row) * 4 + pair; }

// 16 rows by 256 inputs, added to `target`.
DEVICE void multiply_item(const Item& item, const uint4 (&x)[8][COLUMNS], const float2 (&zero)[COLUMNS], int* target, int rows,
                          int row, int lane, const Arguments& given, float per_unit, word shift) {
    word table = TABLE + lane * 4;
    int pair = lane & 3;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        bool small = BITS == 3 && part;
        float sums[COLUMNS][4];
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] = (i & 1 ? zero[n].y : zero[n].x) * (small ? 8.0f : 7.5f);
        const uint4* words = item.words + 2 * part;
        if (small) {
            multiply_small(sums, words[0].x, table, shift, x);
            multiply_small(sums, words[0].y, table, shift, x + 2);
            multiply_small(sums, words[0].z, table, shift, x + 4);
            multiply_small(sums, words[0].w, table, shift, x + 6);
        } else {
            multiply_codes(sums, words[0].x, words[0].y, table, shift, x);
            multiply_codes(sums, words[0].z, words[0].w, table, shift, x + 2);
            multiply_codes(sums, words[1].x, words[1].y, table, shift, x + 4);
            multiply_codes(sums, words[1].z, words[1].w, table, shift, x + 6);
        }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (8 * n + 2 * pair + (i & 1) < given.tokens)
                    add_shared(target + part * 8 * COLUMNS * rows + place_of(i & 1, n, rows, row + (lane >> 2) + (i >> 1) * 8, pair),
                               round_to_int(sums[n][i] * per_unit));
    }
}

// The tables, one copy a lane: entry e stands at 256 e, T in its first 128 bytes, S in the others; the small codebook's 64 KB on.
DEVICE void spread_tables(unsigned char* place, const word* tables) {
    for (int i = threadIdx.x; i < 256 * (BITS == 3 ? 3 : 2); i += blockDim.x) {
        word bits = tables[i];
        unsigned char* entry = place + (i & 255) * 256 + (i >> 8 & 1) * 128 + (i >> 9) * TABLE;
        for (int part = 0; part < 8; part++) *(uint4*)(entry + ((part + i) & 7) * 16) = make_uint4(bits, bits, bits, bits);
    }
}

DEVICE float minus_total(const Arguments& given, int token, int slice) {
    float4 total = given.totals[token * given.slices + slice];
    return ((total.x + total.y) + (total.z + total.w)) * (-1.0f / 16777216);
}

// A slice of the input, for two products of 16 inputs to a load, and minus the zero point's unit times its sums.
DEVICE void load_slice(uint4 (&x)[8][COLUMNS], float2 (&zero)[COLUMNS], const Arguments& given, int slice, int lane) {
    int column = lane >> 2, pair = lane & 3;
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        int token = n * 8 + column, of = n * 8 + 2 * pair;
        const uint4* from = given.input + (token * given.slices + slice) * 32 + 2 * pair;
#pragma unroll
        for (int k = 0; k < 8; k++) x[k][n] = token < given.tokens ? from[k / 2 * 8 + k % 2] : make_uint4(0, 0, 0, 0);
        zero[n] = make_float2(of < given.tokens ? minus_total(given, of, slice) : 0.0f,
                              of + 1 < given.tokens ? minus_total(given, of + 1, slice) : 0.0f);
    }
}

// A part of L for 16 rows.
struct Left {
    word codes[RANKS], near[RANKS], far[RANKS];

    DEVICE void load(const Arguments& given, int tile, int from, int lane) {
        const half_word* scales = given.left_scales + tile / given.group_tiles * given.rank + 2 * (lane & 3);
#pragma unroll
        for (int i = 0; i < RANKS; i++) {
            bool there = (from + i) * 16 < given.rank;
            codes[i] = there ? load_word(given.left + (tile * (given.rank / 16) + from + i) * 32 + lane) : 0;
            near[i] = there ? load_word(scales + (from + i) * 16) : 0;
            far[i] = there ? load_word(scales + (from + i) * 16 + 8) : 0;
        }
    }
};

// Nibbles q at bits 0 and 16 as q - 8 in bf16: 0x4300 | q is 128 + q.
DEVICE word nibbles_bf16(word bits) {
    return multiply_add_bf16(select_bits(bits, 0x000F000Fu, 0x43004300u), 0x3F803F80u, 0xC308C308u);
}

DEVICE void multiply_left(float (&sums)[COLUMNS][4], const Left& left, const Arguments& given, int from, int lane) {
#pragma unroll
    for (int i = 0; i < RANKS; i++) {
        if ((from + i) * 16 >= given.rank) break;
        word bits = left.codes[i];
        word a[4] = {nibbles_bf16(bits), nibbles_bf16(bits >> 4), nibbles_bf16(bits >> 8), nibbles_bf16(bits >> 12)};
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            int token = 8 * n + (lane >> 2);
            float t[4] = {};
            if (token < given.tokens) {
                const float* of = given.t + token * given.rank + (from + i) * 16 + 2 * (lane & 3);
                t[0] = of[0] * lower_fp16(left.near[i]), t[1] = of[1] * upper_fp16(left.near[i]);
                t[2] = of[8] * lower_fp16(left.far[i]), t[3] = of[9] * upper_fp16(left.far[i]);
            }
            multiply_bf16(sums[n], a, plane_bf16(t[0], t[1], false), plane_bf16(t[2], t[3], false));
            multiply_bf16(sums[n], a, plane_bf16(t[0], t[1], true), plane_bf16(t[2], t[3], true));
        }
    }
}

// What the low-rank term adds to 16 rows; `left` holds the beginning of the rank.
DEVICE void multiply_low_rank(float* target, int rows, int row, int tile, int lane, Left& left, const Arguments& given) {
    float sums[COLUMNS][4] = {};
    for (int from = 0; from * 16 < given.rank; from += RANKS) {
        if (from) left.load(given, tile, from, lane);
        multiply_left(sums, left, given, from, lane);
    }
#pragma unroll
    for (int n = 0; n < COLUMNS; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) target[place_of(i & 1, n, rows, row + (lane >> 2) + (i >> 1) * 8, lane & 3)] = sums[n][i];
}

// The sums in shared memory as outputs.
DEVICE void store(const Arguments& given, const int* sums, const float* low_rank, int first_row, int count) {
    int rows = given.most_tiles * 16, part = 8 * COLUMNS * rows;
    float scale = *given.scale * given.unit * 0.5f;
    for (int i = threadIdx.x; i < count * given.tokens; i += blockDim.x) {
        int token = i / count, row = i % count, place = place_of(token & 1, token >> 3, rows, row, token >> 1 & 3);
        float value = (float)sums[place];
        if (BITS > 2) value += (float)sums[part + place] / given.residual;
        value *= scale * given.steps[token];
        if (given.rank && blockIdx.y == 0) value += low_rank[place];
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
    int* sums = (int*)(shared + given.sums_at);
    float* low_rank = (float*)(sums + PARTS * 8 * COLUMNS * rows);
    word* shift = (word*)(low_rank + 8 * COLUMNS * rows);
    if (threadIdx.x == 0) *shift = 1 << 24; // from memory: a constant would become a shift, for which the unit has no time

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
    Left first_left;
    bool has_low_rank = given.rank && blockIdx.y == 0;
    if (has_low_rank && warp < tiles) first_left.load(given, first_tile + warp, 0, lane);
    spread_tables(shared + (TABLE - shared_address(shared)), given.tables);
    for (int i = threadIdx.x; i < PARTS * 8 * COLUMNS * rows; i += blockDim.x) sums[i] = 0;
    wait_for_inputs();
    synchronize_block();

    uint4 x[8][COLUMNS];
    float2 zero[COLUMNS];
    if (has_low_rank)
        for (int of = warp; of < tiles; of += WARPS) {
            if (of != warp) first_left.load(given, first_tile + of, 0, lane);
            multiply_low_rank(low_rank, rows, of * 16, first_tile + of, lane, first_left, given);
        }
    if (left > 0) load_slice(x, zero, given, first_slice + slice, lane);
    float per_unit = 16777216.0f / given.unit;
    word multiplier = *shift;
    while (left > 0) {
#pragma unroll
        for (int turn = 0; turn < DEPTH; turn++) {
            if (left <= 0) break;
            Item item = ring[turn];
            if (left > DEPTH) fetch(ring[turn]);
            multiply_item(item, x, zero, sums, rows, tile * 16, lane, given, per_unit, multiplier);
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
