// Part of hadamard_rows.cu: rows of 2^11 to 2^14. Tiles of 256 consecutive entries by the matrix unit, from 16-bit numbers as they
// come to fp32 and then in tf32; then the higher bits, two columns to a thread.
//
// Of a tile's index four bits (0 1 3 4) are rows k of a 16 x 16 matrix, four (2 5 6 7) are columns n. A lane, g = lane / 4 and
// t = lane % 4, holds before: 0 1 2 in its 16 bytes, 3 4 = t, 5 6 7 = g; after: 0 2 5 in registers, 1 4 3 = g, 6 7 = t.
#pragma once
constexpr int ROW_TILES = SIZE / 256, TURNS = ROW_TILES / WARPS, TILE = 4 * 68;

DEVICE int parity(int bits) { return (bits ^ bits >> 1 ^ bits >> 2 ^ bits >> 3) & 1; }

struct Tile {
    word rows[4], columns[2][2];  // operands: of the 16-bit step; of the tf32 step, by bit 2, and their negatives

    DEVICE Tile(int lane) {
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = (i & 1) | (g & 1) << 1 | (g >> 2) << 2 | (g >> 1 & 1) << 3, k = (i >> 1) << 1 | t << 2;  // bits 0 1 3 4
            word one = IN == 2 ? 0x3C00u : 0x3F80u;
            rows[i] = (one ^ (word)parity(row & k) << 15) | (one ^ (word)parity(row & (k | 1)) << 15) << 16;
        }
        word scale = 0x3F800000u - ((word)(TWOS / 2) << 23);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            columns[s][0] = scale ^ (word)(parity(t & g >> 1) ^ (s & g & 1)) << 31;
            columns[s][1] = columns[s][0] ^ 0x80000000u;
        }
    }

    static DEVICE word rounded(float value) { return as_word(value) + 0x1000; }  // the unit drops the last 13 bits

    // To `values`, whose rows of 64 entries are 68 apart.
    DEVICE void transform(const word (&x)[4], float* values, int lane) const {
        float middle[2][4] = {}, last[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (IN == 2) multiply_fp16(middle[n], rows, x[2 * n], x[2 * n + 1]);
            else multiply_bf16(middle[n], rows, x[2 * n], x[2 * n + 1]);
        }
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const word a[4] = {rounded(middle[s][0]), rounded(middle[s][2]), rounded(middle[s][1]), rounded(middle[s][3])};
#pragma unroll
            for (int to = 0; to < 2; to++) multiply_tf32(last[to], a, columns[s][0], columns[s][to]);
        }
        int g = lane / 4;
        float* place = values + (g & 1) * 2 + (g >> 1 & 1) * 16 + (g >> 2) * 8 + lane % 4 * 68;
#pragma unroll
        for (int to = 0; to < 2; to++)
#pragma unroll
            for (int i = 0; i < 2; i++) *(float2*)(place + 4 * i + 32 * to) = make_float2(last[to][i], last[to][2 + i]);
    }
};

// The bits above a tile's: a thread adds up two neighbouring columns of all tiles.
DEVICE void add_tiles(const Arguments& given, const float* values, int row, const Signs<ROW_TILES / 4>& signs) {
    float v[ROW_TILES][2];
    const float* from = values + threadIdx.x * 2 + threadIdx.x / 32 * 4;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
        float2 two = *(const float2*)(from + i * TILE);
        v[i][0] = two.x, v[i][1] = two.y;
    }
#pragma unroll
    for (int half = 1; half < ROW_TILES; half *= 2)
#pragma unroll
        for (int i = 0; i < ROW_TILES; i++)
            if (!(i & half))
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float a = v[i][c], b = v[i + half][c];
                    v[i][c] = a + b, v[i + half][c] = a - b;
                }
    word* to = (word*)((half_word*)given.output + (long)row * SIZE) + threadIdx.x;
    constexpr float left = TWOS % 2 ? 0.70710678118654752f : 1.0f;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
        word pair = OUT == 1 ? pack_bf16(v[i][0] * left, v[i][1] * left) : pack_fp16(v[i][0] * left, v[i][1] * left);
        if (INVERTED) pair = signs.applied(pair, i);
        to[i * 128] = pair;
    }
}

DEVICE void transform_rows(const Arguments& given, unsigned char* shared, int warp, int lane) {
    float* values = (float*)shared;
    int from = lane % 4 * 8 + lane / 4 * 32;
    Signs<TURNS> before;
    Signs<ROW_TILES / 4> after;
#pragma unroll
    for (int i = 0; i < TURNS && !INVERTED; i++) before.take(i, load_byte(given.signs + ((warp + i * WARPS) * 256 + from) / 8));
#pragma unroll
    for (int i = 0; i < ROW_TILES && INVERTED; i++) after.take_pair(i, load_byte(given.signs + i * 32 + threadIdx.x / 4) >> threadIdx.x % 4 * 2);
    Tile tile(lane);
    wait_for_inputs();
    for (int row = blockIdx.x; row < given.rows; row += gridDim.x) {
        uint4 loaded[TURNS];
        const half_word* x = (const half_word*)given.input + (long)row * SIZE + from;
#pragma unroll
        for (int i = 0; i < TURNS; i++) loaded[i] = load_now(x + (warp + i * WARPS) * 256);
        if (row != blockIdx.x) synchronize_block();
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            word pairs[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
            if (!INVERTED) before.apply(pairs, i);
            tile.transform(pairs, values + (warp + i * WARPS) * TILE, lane);
        }
        synchronize_block();
        add_tiles(given, values, row, after);
    }
}
