// Part of hadamard_rows.cu: rows with a factor A. The matrix unit multiplies 16 columns by A and, in tf32, transforms the lowest four bits of
// the column; then the higher bits, two neighbouring columns of a row of A to a thread. The block's next row comes to shared memory
// meanwhile. A warp has some columns and all operands of A in registers, or of a large A 16 rows and all columns.
#pragma once
#include "hadamard_factor.cuh"

constexpr int PIECES = (SIZE / 8 + THREADS - 1) / THREADS;  // 16 bytes of the row each
constexpr int STRIDE = COLUMNS + 8, VALUES = FACTOR * STRIDE * 4;
constexpr int BLOCKS = COLUMNS / 16, TURNS = (FACTOR / 4 + WARPS - 1) / WARPS;
constexpr bool WIDE = FACTOR > 64;
constexpr int HEIGHT = WIDE ? 1 : TILES, WORDS = (TILES + 3) / 4;
constexpr int GROUP = WIDE ? (BLOCKS < 4 ? BLOCKS : 4) : (BLOCKS + WARPS - 1) / WARPS;  // of 16 columns that a warp takes together

struct Factor {
    const word* signs;  // of a large A
    word a[HEIGHT][WIDE ? 1 : TILES][4], columns[2][2];

    DEVICE Factor(const word* factor, int warp, int lane) {
        signs = factor + warp * WORDS * 32 + lane;
#pragma unroll
        for (int m = 0; m < HEIGHT && !WIDE; m++)
#pragma unroll
            for (int k = 0; k < TILES; k++) expand(a[m][k], load_word(factor + (m * WORDS + k / 4) * 32 + lane), k);
        int g = lane / 4, t = lane % 4, both = t & g >> 1;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            columns[i][0] = 0x3F800000u | (word)((both ^ both >> 1 ^ (i & g)) & 1) << 31;
            columns[i][1] = columns[i][0] ^ 0x80000000u;
        }
    }

    static DEVICE word rounded(float value) { return as_word(value) + 0x1000; }  // the unit drops the last 13 bits

    // 16 rows by 16 columns.
    DEVICE void finish(float* values, const float (&d)[2][4], int m, int column, int lane) const {
        float last[2][4] = {};
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const word a[4] = {rounded(d[s][0]), rounded(d[s][2]), rounded(d[s][1]), rounded(d[s][3])};
#pragma unroll
            for (int to = 0; to < 2; to++) multiply_tf32(last[to], a, columns[0][s & to], columns[1][s & to]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m * 16 + lane / 4 + half * 8;
            if (TILES * 16 > FACTOR && row >= FACTOR) continue;
#pragma unroll
            for (int n = 0; n < 2; n++)
                *(float2*)(values + row * STRIDE + column + n * 8 + lane % 4 * 2) = make_float2(last[n][2 * half], last[n][2 * half + 1]);
        }
    }

    // `taken` is called when the raw row is no longer needed.
    template <class Taken>
    DEVICE void multiply(float* values, const half_word* raw, int warp, int lane, Taken taken) const {
        if constexpr (WIDE) {
            for (int first = 0; first < BLOCKS; first += GROUP) {
                float d[GROUP][2][4] = {};
                word four = 0;
#pragma unroll
                for (int k = 0; k < TILES; k++) {
                    word operand[4];
                    if (k % 4 == 0) four = load_word(signs + k / 4 * 32);
                    expand(operand, four, k);
#pragma unroll
                    for (int i = 0; i < GROUP; i++) {
                        word b[4];
                        load_columns(b, raw, k, (first + i) * 16, lane);
                        multiply_pair(d[i], operand, b);
                    }
                }
#pragma unroll
                for (int i = 0; i < GROUP; i++) finish(values, d[i], warp, (first + i) * 16, lane);
            }
            synchronize_block();
            taken();
        } else {
#pragma unroll 2
            for (int block = warp; block < BLOCKS; block += WARPS) {
                word b[TILES][4];
#pragma unroll
                for (int k = 0; k < TILES; k++) load_columns(b[k], raw, k, block * 16, lane);
#pragma unroll
                for (int m = 0; m < HEIGHT; m++) {
                    float d[2][4] = {};
#pragma unroll
                    for (int k = 0; k < TILES; k++) multiply_pair(d, a[m][k], b[k]);
                    finish(values, d, m, block * 16, lane);
                }
            }
            synchronize_block();
            taken();
        }
    }
};

// What a lane adds up: of row 4 (warp + turn WARPS) + row_of the columns 16 i + column_of and the next.
DEVICE int row_of(int lane) { return lane / 4 % 4; }
DEVICE int column_of(int lane) { return lane % 4 * 2 + lane / 16 * 8; }

DEVICE void add_blocks(const Arguments& given, const float* values, int row, int warp, int lane, const Signs<TURNS * BLOCKS / 4 + 1>& signs) {
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        int of = (warp + turn * WARPS) * 4 + row_of(lane);
        if (FACTOR / 4 % WARPS && of >= FACTOR) break;
        float v[BLOCKS][2];
        const float* from = values + of * STRIDE + column_of(lane);
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            float2 two = *(const float2*)(from + i * 16);
            v[i][0] = two.x, v[i][1] = two.y;
        }
#pragma unroll
        for (int half = 1; half < BLOCKS; half *= 2)
#pragma unroll
            for (int i = 0; i < BLOCKS; i++)
                if (!(i & half))
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float a = v[i][c], b = v[i + half][c];
                        v[i][c] = a + b, v[i + half][c] = a - b;
                    }
        half_word* to = (half_word*)given.output + (long)row * SIZE + of * COLUMNS + column_of(lane);
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            float a = v[i][0] * given.scale, b = v[i][1] * given.scale;
            word pair = OUT == 1 ? pack_bf16(a, b) : pack_fp16(a, b);
            if (INVERTED) pair = signs.applied(pair, turn * BLOCKS + i);
            *(word*)(to + i * 16) = pair;
        }
    }
}

// Where a thread's piece stands in the row, and where it waits for its turn.
DEVICE int piece_at(int i) { return (i * THREADS + threadIdx.x) * 8; }
DEVICE half_word* waiting(half_word* raw, int at) { return raw + at / COLUMNS * PITCH + at % COLUMNS; }

DEVICE void fetch(half_word* raw, const Arguments& given, int row) {
    if (row < given.rows)
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (piece_at(i) < SIZE) copy_to_shared(waiting(raw, piece_at(i)), (const half_word*)given.input + (long)row * SIZE + piece_at(i), true);
}

DEVICE void transform_rows(const Arguments& given, unsigned char* shared, int warp, int lane) {
    float* values = (float*)shared;
    half_word* raw = (half_word*)(shared + VALUES);
    Signs<PIECES> before;
    Signs<TURNS * BLOCKS / 4 + 1> after;
#pragma unroll
    for (int i = 0; i < PIECES && !INVERTED; i++)
        if (piece_at(i) < SIZE) before.take(i, load_byte(given.signs + piece_at(i) / 8));
#pragma unroll
    for (int i = 0; i < TURNS * BLOCKS && INVERTED; i++) {
        int of = (warp + i / BLOCKS * WARPS) * 4 + row_of(lane), at = of * COLUMNS + i % BLOCKS * 16 + column_of(lane);
        if (of < FACTOR) after.take_pair(i, load_byte(given.signs + at / 8) >> at % 8);
    }
    Factor factor(given.factor, warp, lane);
    for (int at = SIZE + threadIdx.x * 8; at < TILES * 16 * COLUMNS; at += THREADS * 8) *(uint4*)waiting(raw, at) = make_uint4(0, 0, 0, 0);
    wait_for_inputs();
    fetch(raw, given, blockIdx.x);
    for (int row = blockIdx.x; row < given.rows; row += gridDim.x) {
        finish_copies();
#pragma unroll
        for (int i = 0; i < PIECES && !INVERTED; i++) {
            if (piece_at(i) >= SIZE) continue;
            uint4* own = (uint4*)waiting(raw, piece_at(i));
            word pairs[4] = {own->x, own->y, own->z, own->w};
            before.apply(pairs, i);
            *own = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
        synchronize_block();
        factor.multiply(values, raw, warp, lane, [&] { fetch(raw, given, row + gridDim.x); });
        add_blocks(given, values, row, warp, lane, after);
    }
}
