// Parts of hadamard.cu: what a block holds, its loads, and steps of sums.
#pragma once
#include "instructions.cuh"

constexpr int STEP = 4;                                             // bits at a time: 16 values of a thread
constexpr int SIZE = FACTOR << TWOS, LOCAL_TWOS = CLUSTER > 1 ? TWOS - 3 : TWOS;
constexpr int COLUMNS = 1 << LOCAL_TWOS, LOCAL = FACTOR * COLUMNS;             // of a block
constexpr int CHUNKS = (LOCAL / 8 + THREADS - 1) / THREADS;
constexpr int LAST = LOCAL_TWOS < 3 ? LOCAL_TWOS : 3;                          // bits of the last step, at stride 1
constexpr int FIRST = FACTOR > 1 ? 0 : LOCAL_TWOS > LAST;                 // of the one at the load, of 8 neighbours
constexpr int MIDDLE = LOCAL_TWOS - LAST - FIRST;
constexpr int INPUTS = IN == 0 ? 2 : 1;                                        // planes of 16 bits
constexpr int TILES = (FACTOR + 15) / 16, PITCH = COLUMNS + 8;
constexpr bool HELD = FACTOR <= 64;
constexpr int RAW = FACTOR > 1 ? INPUTS * TILES * 16 * PITCH * 2 : 0;
constexpr int SIGNS = (SIZE / 8 + 15) / 16 * 16;
constexpr int SLICES = (SIZE + 255) / 256, WARPS = THREADS / 32;
constexpr int BATCH = IN == 0 ? 4 : 8;                                         // loads of a thread at a time

struct Arguments {
    const void* input;             // [splits][rows][SIZE]
    const unsigned char* signs;    // [SIZE / 8]: bit set for -1
    const word* factor;            // [tiles][ceil(tiles / 4)][32]: signs of A in the order of fragments
    void* output;                  // [rows][SIZE]; for a product: [rows][2][256 SLICES] bytes
    float* steps;                  // [rows]
    const word* right;             // [rank][32 SLICES]: nibbles of R, 16 inputs in two words
    const half_word* right_scales; // [rank][groups]
    float* t;                      // [rows][padded_rank], zeros from `rank` on
    int rows, splits, rank, padded_rank, group, groups;
    float scale;                   // 1 / sqrt(SIZE)
};

// Words of padding keep columns apart in banks, and 16 bytes together.
DEVICE int place(int i) { return i + (i >> 7 << 2); }

template <int bits, int wide>
DEVICE void butterflies(float (&v)[(1 << bits) * wide]) {
#pragma unroll
    for (int half = wide; half < wide << bits; half *= 2)
#pragma unroll
        for (int i = 0; i < wide << bits; i++)
            if (!(i & half)) {
                float a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
}

// The step at stride 1: of 8 neighbours, or of 4 or 2 among them.
DEVICE void last_butterflies(float* v) {
#pragma unroll
    for (int half = 1; half < 1 << LAST; half *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!(i & half)) {
                float a = v[i], b = v[i + half];
                v[i] = a + b, v[i + half] = a - b;
            }
}

DEVICE int own_block() { return blockIdx.y & (CLUSTER - 1); }

// Where entry `at` of a block stands in the row; in a cluster every block has an eighth of the columns.
DEVICE int outside(int at, int block) { return CLUSTER == 1 ? at : (at / COLUMNS * CLUSTER + block) * COLUMNS + at % COLUMNS; }

struct Entries {
    uint4 words[IN == 0 ? 2 : 1];
};

// 8 entries from `at` on, those of every split added.
DEVICE Entries load_8(const Arguments& given, int row, int at) {
    Entries loaded;
#if IN == 0
    const float4* from = (const float4*)((const float*)given.input + (long)row * SIZE + at);
    float4 a = from[0], b = from[1];
    for (int split = 1; split < given.splits; split++) {
        const float4* next = from + (long)split * given.rows * (SIZE / 4);
        float4 c = next[0], d = next[1];
        a.x += c.x, a.y += c.y, a.z += c.z, a.w += c.w, b.x += d.x, b.y += d.y, b.z += d.z, b.w += d.w;
    }
    loaded.words[0] = make_uint4(as_word(a.x), as_word(a.y), as_word(a.z), as_word(a.w));
    loaded.words[1] = make_uint4(as_word(b.x), as_word(b.y), as_word(b.z), as_word(b.w));
#else
    loaded.words[0] = *(const uint4*)((const half_word*)given.input + (long)row * SIZE + at);
#endif
    return loaded;
}

DEVICE void negate(float* v, word signs) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = as_float(as_word(v[i]) ^ (signs << (31 - i) & 0x80000000u));
}

// As numbers, with their signs applied where these come first.
DEVICE void unpack_8(float* v, const Entries& loaded, const unsigned char* signs, int at) {
    const word* words = (const word*)loaded.words;
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = IN == 0 ? as_float(words[i]) : IN == 1 ? as_float(i & 1 ? words[i / 2] & 0xFFFF0000u : words[i / 2] << 16)
             : i & 1 ? upper_fp16(words[i / 2]) : lower_fp16(words[i / 2]);
    if (!INVERTED) negate(v, signs[at / 8]);
}

DEVICE void store_8(float* to, const float* v) {
    float4* places = (float4*)to;
    int swap = threadIdx.x >> 2 & 1; // neighbours in a bank take turns
    places[swap] = swap ? make_float4(v[4], v[5], v[6], v[7]) : make_float4(v[0], v[1], v[2], v[3]);
    places[!swap] = swap ? make_float4(v[0], v[1], v[2], v[3]) : make_float4(v[4], v[5], v[6], v[7]);
}

DEVICE void read_8(float* v, const float* from) {
    const float4* places = (const float4*)from;
    int swap = threadIdx.x >> 2 & 1;
    float4 a = places[swap], b = places[!swap], first = swap ? b : a, second = swap ? a : b;
    v[0] = first.x, v[1] = first.y, v[2] = first.z, v[3] = first.w, v[4] = second.x, v[5] = second.y, v[6] = second.z, v[7] = second.w;
}

// The highest bits, 8 neighbouring columns at once: the step at the load.
DEVICE void first_step(float* values, const unsigned char* signs, const Arguments& given, int row) {
    constexpr int stride = LOCAL >> FIRST;
    for (int chunk = threadIdx.x; chunk < stride / 8; chunk += THREADS) {
        Entries loaded[1 << FIRST];
        float v[8 << FIRST];
#pragma unroll
        for (int i = 0; i < 1 << FIRST; i++) loaded[i] = load_8(given, row, outside(i * stride + chunk * 8, own_block()));
#pragma unroll
        for (int i = 0; i < 1 << FIRST; i++) unpack_8(v + 8 * i, loaded[i], signs, outside(i * stride + chunk * 8, own_block()));
        butterflies<FIRST, 8>(v);
#pragma unroll
        for (int i = 0; i < 1 << FIRST; i++) store_8(values + place(i * stride + chunk * 8), v + 8 * i);
    }
    synchronize_block();
}

// `bits` bits from `shift` on, at most STEP at a time.
template <int bits, int shift>
DEVICE void middle_steps(float* values) {
    if constexpr (bits > 0) {
        constexpr int steps = (bits + STEP - 1) / STEP, now = bits / steps;
        for (int unit = threadIdx.x; unit < LOCAL >> now; unit += THREADS) {
            int base = unit >> shift << (shift + now) | (unit & ((1 << shift) - 1));
            float v[1 << now];
#pragma unroll
            for (int i = 0; i < 1 << now; i++) v[i] = values[place(base + (i << shift))];
            butterflies<now, 1>(v);
#pragma unroll
            for (int i = 0; i < 1 << now; i++) values[place(base + (i << shift))] = v[i];
        }
        synchronize_block();
        middle_steps<bits - now, shift + now>(values);
    }
}

#if CLUSTER > 1
constexpr int SHARE = LOCAL / CLUSTER;  // entries of every block that one of them finishes
constexpr int GATHERS = (SHARE / 4 + THREADS - 1) / THREADS;

// The three bits that are left: four neighbours of each block, from `at` on, as they stand in the row.
DEVICE void gather(float (&v)[CLUSTER * 4], const float* values, int at) {
#pragma unroll
    for (int block = 0; block < CLUSTER; block++) {
        float4 four = load_four_from_cluster(values + place(at), block);
        v[4 * block] = four.x, v[4 * block + 1] = four.y, v[4 * block + 2] = four.z, v[4 * block + 3] = four.w;
    }
    butterflies<3, 4>(v);
}
#endif
