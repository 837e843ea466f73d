// Signed Hadamard transforms of rows: y = H diag(signs) x, or y = diag(signs) H' x (INVERTED), H = A (x) Sylvester(2^TWOS) / sqrt(SIZE)
// with a factor A of +-1 (FACTOR its size, 1 for none), which the matrix unit applies to the input as it comes; all else is sums
// in fp32.
//
// One block takes one row, or a cluster of eight: each an eighth of the columns, whose last three bits go from block to block.
// With FOR_PRODUCT the row is given as lattice.cu reads it, and t = R y for a factor R of 4-bit codes, in which blocks share.
//
// Fixed when compiled: FACTOR, TWOS, IN and OUT (0 fp32, 1 bf16, 2 fp16), INVERTED, FOR_PRODUCT, THREADS, CLUSTER (1 or 8), STEP (bits at a time).
#include "instructions.cuh"

constexpr int SIZE = FACTOR << TWOS, LOCAL_TWOS = CLUSTER > 1 ? TWOS - 3 : TWOS;
constexpr int COLUMNS = 1 << LOCAL_TWOS, LOCAL = FACTOR * COLUMNS;             // of a block
constexpr int CHUNKS = (LOCAL / 8 + THREADS - 1) / THREADS;
constexpr int LAST = LOCAL_TWOS < 3 ? LOCAL_TWOS : 3;                          // bits of the last step, at stride 1
constexpr int FIRST = FACTOR > 1 ? 0 : LOCAL_TWOS - LAST < STEP - 3 ? LOCAL_TWOS - LAST : STEP - 3;  // of the one at the load
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

#if FACTOR > 1
// The row in 16-bit numbers: one plane as it comes, or a float32 in two. Rows that fill up a tile are zeros.
DEVICE void load_raw(half_word* raw, const unsigned char* signs, const Arguments& given, int row) {
    for (int first = threadIdx.x * 8; first < TILES * 16 * COLUMNS; first += THREADS * 8 * BATCH) {
        Entries loaded[BATCH] = {};
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + i * THREADS * 8 < LOCAL) loaded[i] = load_8(given, row, outside(first + i * THREADS * 8, own_block()));
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int at = first + i * THREADS * 8;
            if (at >= TILES * 16 * COLUMNS) break;
#pragma unroll
            for (int plane = 0; plane < INPUTS; plane++) {
                word pairs[4];
#if IN == 0
                float v[8] = {};
                if (at < LOCAL) unpack_8(v, loaded[i], signs, outside(at, own_block()));
#pragma unroll
                for (int k = 0; k < 4; k++) pairs[k] = plane_bf16(v[2 * k], v[2 * k + 1], plane);
#else
                word negative = !INVERTED && at < LOCAL ? signs[outside(at, own_block()) / 8] : 0;
#pragma unroll
                for (int k = 0; k < 4; k++)
                    pairs[k] = ((const word*)loaded[i].words)[k] ^ ((negative << (15 - 2 * k) & 0x8000u) | (negative << (30 - 2 * k) & 0x80000000u));
#endif
                *(uint4*)(raw + plane * TILES * 16 * PITCH + at / COLUMNS * PITCH + at % COLUMNS) =
                    make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            }
        }
    }
    synchronize_block();
}

DEVICE void expand(word (&a)[4], word signs, int tile) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = (signs << (15 - i - 4 * (tile & 3)) & 0x80008000u) ^ (IN == 2 ? 0x3C003C00u : 0x3F803F80u);
}

DEVICE void load_columns(word (&b)[4], const half_word* raw, int tile, int column, int lane) {
    load_transposed(b, raw + (tile * 16 + (lane & 15)) * PITCH + column + (lane >> 4) * 8);
}

DEVICE void multiply_pair(float (&d)[2][4], const word (&a)[4], const word (&b)[4]) {
#pragma unroll
    for (int n = 0; n < 2; n++)
        if (IN == 2) multiply_fp16(d[n], a, b[2 * n], b[2 * n + 1]);
        else multiply_bf16(d[n], a, b[2 * n], b[2 * n + 1]);
}

DEVICE void store_tile(float* values, const float (&d)[2][4], int tile, int column, int lane) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = tile * 16 + (lane >> 2) + half * 8;
            if (row < FACTOR)
                *(float2*)(values + place(row * COLUMNS + column + n * 8 + (lane & 3) * 2)) = make_float2(d[n][2 * half], d[n][2 * half + 1]);
        }
}

// A applied to all columns. A small one in place: a warp first takes all its columns to registers. A large one to `values`,
// several warps to the same 16 columns.
DEVICE void dense_step(float* values, const half_word* raw, const word* factor) {
    constexpr int units = COLUMNS / 16, words = (TILES + 3) / 4;
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#if FACTOR <= 64
    constexpr int each = (units + WARPS - 1) / WARPS;
    word b[each][INPUTS][TILES][4];
#pragma unroll
    for (int i = 0; i < each; i++)
        if (warp + i * WARPS < units)
#pragma unroll
            for (int plane = 0; plane < INPUTS; plane++)
#pragma unroll
                for (int k = 0; k < TILES; k++)
                    load_columns(b[i][plane][k], raw + plane * TILES * 16 * PITCH, k, (warp + i * WARPS) * 16, lane);
    synchronize_block();
#pragma unroll
    for (int m = 0; m < TILES; m++) {
        word signs = factor[m * 32 + lane];
#pragma unroll
        for (int i = 0; i < each; i++) {
            float d[2][4] = {};
            if (warp + i * WARPS >= units) continue;
#pragma unroll
            for (int k = 0; k < TILES; k++) {
                word a[4];
                expand(a, signs, k);
#pragma unroll
                for (int plane = 0; plane < INPUTS; plane++) multiply_pair(d, a, b[i][plane][k]);
            }
            store_tile(values, d, m, (warp + i * WARPS) * 16, lane);
        }
    }
#else
    constexpr int share = WARPS > units ? WARPS / units : 1;
    for (int unit = warp / share; unit < units; unit += WARPS / share)
        for (int m = warp % share * 2; m < TILES; m += share * 2) {
            float d[2][2][4] = {};
            for (int k = 0; k < TILES; k++) {
                word a[2][4], b[4];
                expand(a[0], factor[(m * words + k / 4) * 32 + lane], k);
                expand(a[1], factor[(min(m + 1, TILES - 1) * words + k / 4) * 32 + lane], k);
#pragma unroll
                for (int plane = 0; plane < INPUTS; plane++) {
                    load_columns(b, raw + plane * TILES * 16 * PITCH, k, unit * 16, lane);
                    multiply_pair(d[0], a[0], b);
                    multiply_pair(d[1], a[1], b);
                }
            }
            store_tile(values, d[0], m, unit * 16, lane);
            if (m + 1 < TILES) store_tile(values, d[1], m + 1, unit * 16, lane);
        }
#endif
    synchronize_block();
}
#endif

// `count` (8 or 4) entries from `at` on, scaled, in the output's dtype.
template <int count>
DEVICE void store_values(const Arguments& given, float* v, const unsigned char* signs, int row, int at) {
    long to = (long)row * SIZE + at;
#pragma unroll
    for (int i = 0; i < count; i++) {
        v[i] *= given.scale;
        if (INVERTED) v[i] = as_float(as_word(v[i]) ^ ((word)signs[at / 8] << (31 - i - at % 8) & 0x80000000u));
    }
#pragma unroll
    for (int i = 0; i < count; i += 4) {
        if (OUT == 0) *(float4*)((float*)given.output + to + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
        else *(uint2*)((half_word*)given.output + to + i) = OUT == 1
            ? make_uint2(pack_bf16(v[i], v[i + 1]), pack_bf16(v[i + 2], v[i + 3]))
            : make_uint2(pack_fp16(v[i], v[i + 1]), pack_fp16(v[i + 2], v[i + 3]));
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

#if FOR_PRODUCT
// The largest of all threads' values.
DEVICE float largest(float most, float* scratch) {
    for (int apart = 16; apart; apart /= 2) most = fmaxf(most, exchange(most, apart));
    if (!(threadIdx.x & 31)) scratch[threadIdx.x / 32] = most;
    synchronize_block();
    most = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) most = fmaxf(most, scratch[i]);
    return most;
}

// Four entries, negated where bits of `signs` are set, as integers X = 256 H + L, bytes of H and L.
DEVICE void round_4(const float* v, float per, word signs, word& high, word& low) {
    high = low = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int x = round_to_int(signs >> i & 1 ? -v[i] * per : v[i] * per);
        high |= (word)((x + 128) >> 8 & 255) << i * 8, low |= (word)(x & 255) << i * 8;
    }
}

// Where four entries from `at` on stand in planes: of every 16 entries these have 0 to 3, 8 to 11, 4 to 7, 12 to 15.
DEVICE int byte_of(int at) {
    int four = at >> 2 & 3;
    return at + (four == 1 ? 4 : four == 2 ? -4 : 0);
}

// 16 inputs of one rank times 16 of its scale, in the planes' steps.
DEVICE float project_16(uint2 codes, word scale, uint4 high, uint4 low) {
    word a[4] = {codes.x << 4 & 0xF0F0F0F0u, codes.y << 4 & 0xF0F0F0F0u, codes.x & 0xF0F0F0F0u, codes.y & 0xF0F0F0F0u};
    int h = dot_bytes(a[0], high.x, dot_bytes(a[1], high.y, dot_bytes(a[2], high.z, dot_bytes(a[3], high.w, 0))));
    int l = dot_bytes(a[0], low.x, dot_bytes(a[1], low.y, dot_bytes(a[2], low.z, dot_bytes(a[3], low.w, 0))));
    return from_fp16((half_word)scale) * (float)(h * 256 + l);
}

// Sixteens of a block's planes, `count` of them, `stride` bytes from plane to plane; `where` says which ones of the row they are.
// Gives the sum of one rank over a warp.
template <class Where>
DEVICE float project_rank(const Arguments& given, const unsigned char* planes, int stride, int count, int rank, Where where) {
    constexpr int loads = 8;
    int lane = threadIdx.x & 31;
    float sum = 0;
    const uint2* codes = (const uint2*)(given.right + (long)rank * SLICES * 32);
    const half_word* scales = given.right_scales + (long)rank * given.groups;
    for (int first = lane; first < count && rank < given.rank; first += 32 * loads) {
        uint2 loaded[loads];
        word scale[loads];
#pragma unroll
        for (int i = 0; i < loads; i++) {
            int at = where(min(first + i * 32, count - 1));
            loaded[i] = codes[at];
            scale[i] = first + i * 32 < count ? load_half_word(scales + min(at * 16 / given.group, given.groups - 1)) : 0;
        }
#pragma unroll
        for (int i = 0; i < loads; i++) {
            int at = min(first + i * 32, count - 1);
            sum += project_16(loaded[i], scale[i], ((const uint4*)planes)[at], ((const uint4*)(planes + stride))[at]);
        }
    }
    for (int apart = 16; apart; apart /= 2) sum += exchange(sum, apart);
    return sum;
}

#if CLUSTER > 1
// The row in planes, by all blocks; each keeps its own part, [plane][block][SHARE], for t, of which it adds what is its own.
DEVICE void finish_product(const Arguments& given, float* values, const unsigned char* signs, int row) {
    int own = own_block(), replica = blockIdx.y / CLUSTER, warp = threadIdx.x / 32;
    float* scratch = values + place(LOCAL) + 8;
    float* parts = scratch + 32;
    unsigned char* planes = (unsigned char*)(parts + given.padded_rank + 4);
    float v[GATHERS][CLUSTER * 4] = {}, most = 0;
#pragma unroll
    for (int i = 0; i < GATHERS; i++) {
        int four = threadIdx.x + i * THREADS;
        if (four * 4 < SHARE) gather(v[i], values, own * SHARE + four * 4);
#pragma unroll
        for (int k = 0; k < CLUSTER * 4; k++) most = fmaxf(most, fabsf(v[i][k]));
    }
    most = largest(most, scratch);
    if (threadIdx.x == 0) scratch[31] = most;
    meet_blocks();
#pragma unroll
    for (int block = 0; block < CLUSTER; block++) most = fmaxf(most, load_one_from_cluster(scratch + 31, block));
    float per = most > 0 ? 32512.0f / most : 0;
    unsigned char* output = (unsigned char*)given.output + (long)row * 2 * SLICES * 256;
#pragma unroll
    for (int i = 0; i < GATHERS; i++) {
        int four = threadIdx.x + i * THREADS;
        if (four * 4 >= SHARE) continue;
#pragma unroll
        for (int block = 0; block < CLUSTER; block++) {
            word high, low;
            int at = outside(own * SHARE + four * 4, block);
            round_4(v[i] + 4 * block, per, INVERTED ? signs[at / 8] >> at % 8 : 0, high, low);
            int to = byte_of(at), kept = block * SHARE + byte_of(four * 4);
            if (replica == 0) *(word*)(output + to) = high, *(word*)(output + SLICES * 256 + to) = low;
            *(word*)(planes + kept) = high, *(word*)(planes + CLUSTER * SHARE + kept) = low;
        }
    }
    for (int at = SIZE + 4 * (own * THREADS + threadIdx.x); at < SLICES * 256 && replica == 0; at += 4 * CLUSTER * THREADS)
        *(word*)(output + at) = *(word*)(output + SLICES * 256 + at) = 0;
    if (own + replica == 0 && threadIdx.x == 0) given.steps[row] = most * given.scale / 32512.0f;
    if (given.rank) {
        synchronize_block();
        int replicas = gridDim.y / CLUSTER;
        for (int rank = replica + warp * replicas; rank < given.padded_rank; rank += replicas * WARPS) {
            float sum = project_rank(given, planes, CLUSTER * SHARE, CLUSTER * SHARE / 16, rank, [=](int at) {
                return outside(own * SHARE + at % (SHARE / 16) * 16, at / (SHARE / 16)) / 16;
            });
            if (!(threadIdx.x & 31)) parts[rank] = sum;
        }
        meet_blocks();
        for (int rank = replica + (own * THREADS + threadIdx.x) * replicas; rank < given.padded_rank; rank += CLUSTER * THREADS * replicas) {
            float sum = 0;
#pragma unroll
            for (int block = 0; block < CLUSTER; block++) sum += load_one_from_cluster(parts + rank, block);
            given.t[row * given.padded_rank + rank] = sum * most * given.scale / (16 * 32512.0f);
        }
    }
    synchronize_cluster();
}
#else
// The row in planes: to shared memory and, by the first block, outside; t for every `blocks`-th rank.
DEVICE void finish_product(const Arguments& given, float* values, const unsigned char* signs, int row) {
    float v[CHUNKS][8] = {}, most = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int at = (c * THREADS + threadIdx.x) * 8;
        if (at < SIZE) {
            read_8(v[c], values + place(at));
            last_butterflies(v[c]);
            if (INVERTED) negate(v[c], signs[at / 8]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(v[c][i]));
    }
    synchronize_block();
    most = largest(most, values);
    float per = most > 0 ? 32512.0f / most : 0, step = most * given.scale / 32512.0f;
    unsigned char *planes = (unsigned char*)(values + 64), *output = (unsigned char*)given.output + (long)row * 2 * SLICES * 256;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            int at = (c * THREADS + threadIdx.x) * 8 + half, to = byte_of(at);
            word high, low;
            round_4(v[c] + half, per, 0, high, low);
            if (at >= SLICES * 256) continue;
            *(word*)(planes + to) = high, *(word*)(planes + SLICES * 256 + to) = low;
            if (blockIdx.y == 0) *(word*)(output + to) = high, *(word*)(output + SLICES * 256 + to) = low;
        }
    if (blockIdx.y == 0 && threadIdx.x == 0) given.steps[row] = step;
    synchronize_block();
    if (given.rank)
        for (int rank = blockIdx.y + threadIdx.x / 32 * gridDim.y; rank < given.padded_rank; rank += gridDim.y * WARPS) {
            float sum = project_rank(given, planes, SLICES * 256, SLICES * 16, rank, [](int at) { return at; });
            if (!(threadIdx.x & 31)) given.t[row * given.padded_rank + rank] = sum * step / 16;
        }
}
#endif
#endif

KERNEL void __launch_bounds__(THREADS) hadamard(Arguments given) {
    SHARED_MEMORY(shared);
    release_dependents();
    unsigned char* signs = shared;
    for (int at = threadIdx.x * 4; at < SIZE / 8; at += THREADS * 4) *(word*)(signs + at) = load_word(given.signs + at);
#if FOR_PRODUCT
    for (int at = threadIdx.x * 128; given.rank && at < SLICES * 128; at += THREADS * 128)  // R is on its way meanwhile
        for (int rank = blockIdx.y; rank < given.rank; rank += gridDim.y) prefetch((const char*)(given.right + (long)rank * SLICES * 32) + at);
#endif
    if (!INVERTED) synchronize_block();
    wait_for_inputs();
    int row = blockIdx.x;
#if FACTOR > 1
    half_word* raw = (half_word*)(shared + SIGNS);
    float* values = (float*)(shared + SIGNS + (HELD ? 0 : RAW));
    load_raw(raw, signs, given, row);
    dense_step(values, raw, given.factor);
#else
    float* values = (float*)(shared + SIGNS);
    first_step(values, signs, given, row);
#endif
    middle_steps<MIDDLE, LAST>(values);
#if CLUSTER > 1
    for (int at = threadIdx.x * 8; at < LOCAL; at += THREADS * 8) {
        float v[8];
        read_8(v, values + place(at));
        last_butterflies(v);
        store_8(values + place(at), v);
    }
    meet_blocks();
#endif
#if FOR_PRODUCT
    finish_product(given, values, signs, row);
#elif CLUSTER > 1
#pragma unroll
    for (int i = 0; i < GATHERS; i++) {
        int at = own_block() * SHARE + (threadIdx.x + i * THREADS) * 4;
        if ((threadIdx.x + i * THREADS) * 4 >= SHARE) continue;
        float v[CLUSTER * 4];
        gather(v, values, at);
#pragma unroll
        for (int block = 0; block < CLUSTER; block++) store_values<4>(given, v + 4 * block, signs, row, outside(at, block));
    }
    synchronize_cluster();
#else
#pragma unroll 4
    for (int at = threadIdx.x * 8; at < SIZE; at += THREADS * 8) {
        float v[8];
        read_8(v, values + place(at));
        last_butterflies(v);
        store_values<8>(given, v, signs, row, at);
    }
#endif
}

EXPORT(hadamard)
