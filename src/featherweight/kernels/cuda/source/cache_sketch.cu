// Sketches of many keys, by the matrix unit: what `cache_encode_qjl.cuh` computes for few.
//
// A block holds WIDTH columns of S in registers, in two pieces that add up to 16 bits of precision and more, and walks over TOKENS
// keys at a time; a warp has 32 columns. Outliers are masked out of the keys, and multiplied apart, eight channels to a product,
// by pairs of both pieces in shared memory. Grid: blocks that share the keys, slices of WIDTH columns.
//
// Fixed when compiled: NUMBER, HEAD_DIM, SKETCH, OUTLIERS (0, 8), OUTLIER_SKETCH.
#include "cache.cuh"

static_assert(HEAD_DIM == 128, "four reads of a lane");
constexpr int WIDTH = SKETCH < 256 ? SKETCH : 256, WARPS = WIDTH / 32, THREADS = 32 * WARPS, ROW = 2 * HEAD_DIM;
constexpr int TOKENS = 128, GROUPS = TOKENS / STAGE, PLACE = ROW + 64, PAIR_ROW = WIDTH + 4;  // PLACE: bytes of a key in shared memory
constexpr int TILE_BYTES = TOKENS * PLACE, SIGN_BYTES = WIDTH / 8, PIECE = 8 * 4 * 32;  // PIECE: pairs of words of a warp's fragments
constexpr int PAIRS = 2 * TILE_BYTES, SIZES = PAIRS + (OUTLIERS ? HEAD_DIM * PAIR_ROW * 4 : 0), MASKS = SIZES + GROUPS * HEAD_DIM * 4;
constexpr int APART = MASKS + GROUPS * ROW, SIGNS = APART + 8 * GROUPS, APART_SIGNS = SIGNS + TOKENS * SIGN_BYTES;
constexpr int SHARED = APART_SIGNS + (OUTLIERS ? TOKENS * SIGN_BYTES : 0);

struct Sketching {
    Rows source, targets[5];
    const uint2* fragments;  // slice, warp, piece, step, tile of columns, lane
    const word* pairs;       // [HEAD_DIM, SKETCH]
    int tokens, heads, sequences;
};

DEVICE word below(int lane) { return (1u << lane) - 1; }

// The eight largest of a group's channels by a warp: what masks them out, and their numbers, ascending.
DEVICE void choose_outliers(const float* sizes, half_word* masks, unsigned char* apart, int lane) {
    float mine[4];
    for (int at = 0; at < 4; at++) mine[at] = sizes[32 * at + lane];
    word chosen[4] = {};
    for (int round = 0; round < OUTLIERS; round++) {
        float top = fmaxf(fmaxf(mine[0], mine[1]), fmaxf(mine[2], mine[3]));
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) top = fmaxf(top, exchange(top, lanes));
        bool found = false;
#pragma unroll
        for (int at = 0; at < 4; at++) {
            const word equal = vote(mine[at] == top);
            if (!found && equal) {
                found = true;
                chosen[at] |= equal & (0u - equal);
                if ((equal & below(lane)) == 0 && mine[at] == top) mine[at] = -1.0f;
            }
        }
    }
    int before = 0;
#pragma unroll
    for (int at = 0; at < 4; at++) {
        const bool taken = chosen[at] >> lane & 1;
        masks[32 * at + lane] = taken ? 0 : 0xFFFF;
        if (taken) apart[before + count_bits(chosen[at] & below(lane))] = (unsigned char)(32 * at + lane);
        before += count_bits(chosen[at]);
    }
}

DEVICE uint4 masked(uint4 value, uint4 mask) { return {value.x & mask.x, value.y & mask.y, value.z & mask.z, value.w & mask.w}; }
DEVICE float squares(word two) { return from_number(two) * from_number(two) + from_number(two >> 16) * from_number(two >> 16); }
DEVICE float squares(uint4 eight) { return squares(eight.x) + squares(eight.y) + squares(eight.z) + squares(eight.w); }
DEVICE float over_quarters(float value) {
    value += exchange(value, 1);
    return value + exchange(value, 2);
}

// Signs of sums: bits 2 tile and the next of the lane's byte, for tokens `row` and 8 more.
DEVICE void store_signs(const float (&sums)[4][4], unsigned char* signs) {
    word upper = 0, lower = 0;
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            upper |= (word)(sums[tile][half] > 0) << (2 * tile + half);
            lower |= (word)(sums[tile][2 + half] > 0) << (2 * tile + half);
        }
    }
    signs[0] = (unsigned char)upper, signs[8 * SIGN_BYTES] = (unsigned char)lower;
}

struct Walk {
    uint2 fragments[2][8][4];
    int lane, row, quarter, warp, column;  // column: the first of the warp

    DEVICE void begin(const Sketching& a) {
        lane = threadIdx.x % 32, row = lane / 4, quarter = lane % 4, warp = threadIdx.x / 32, column = blockIdx.y * WIDTH + 32 * warp;
        const uint2* mine = a.fragments + (long long)(blockIdx.y * WARPS + warp) * 2 * PIECE + lane;
#pragma unroll
        for (int at = 0; at < 64; at++) fragments[at / 32][at / 4 % 8][at % 4] = mine[32 * at];
    }

    // Keys `token` (of the tile, this lane's row) and 8 more; squares of what is not masked out are added up if `sized`.
    DEVICE void keys(float (&sums)[4][4], float (&size)[2], bool sized, const unsigned char* tile, const uint4 (&masks)[4], int token) const {
        const unsigned char* at = tile + token * PLACE + 16 * quarter;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const uint4 upper = masked(*(const uint4*)(at + 64 * part), masks[part]);
            const uint4 lower = masked(*(const uint4*)(at + 8 * PLACE + 64 * part), masks[part]);
            const word first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
            if (sized) size[0] += squares(upper), size[1] += squares(lower);
#pragma unroll
            for (int piece = 0; piece < 2; piece++) {
#pragma unroll
                for (int columns = 0; columns < 4; columns++) {
                    const uint2 a = fragments[piece][2 * part][columns], b = fragments[piece][2 * part + 1][columns];
                    multiply_tile(sums[columns], first, a.x, a.y);
                    multiply_tile(sums[columns], second, b.x, b.y);
                }
            }
        }
    }

    // The same of the outliers alone.
    DEVICE void outliers(float (&sums)[4][4], float (&size)[2], const unsigned char* tile, const word* pairs, const unsigned char* apart,
                         int token) const {
        const int one = apart[2 * quarter], two = apart[2 * quarter + 1];
        const half_word *upper = (const half_word*)(tile + token * PLACE), *lower = (const half_word*)(tile + (token + 8) * PLACE);
        const word a = upper[one] | (word)upper[two] << 16, b = lower[one] | (word)lower[two] << 16;
        size[0] = squares(a), size[1] = squares(b);
        const int place = 32 * warp + 8 * (row / 2) + row % 2;
#pragma unroll
        for (int columns = 0; columns < 4; columns++) {
            const word x = pairs[one * PAIR_ROW + place + 2 * columns], y = pairs[two * PAIR_ROW + place + 2 * columns];
            multiply_short(sums[columns], a, b, lower_halves(x, y));
            multiply_short(sums[columns], a, b, upper_halves(x, y));
        }
    }
};

struct Place {
    int sequence, head, first, count;
    DEVICE Place(const Sketching& a, int tile) {
        const int blocks = (a.tokens + TOKENS - 1) / TOKENS;
        sequence = tile / blocks / a.heads, head = tile / blocks % a.heads, first = tile % blocks * TOKENS;
        count = a.tokens - first < TOKENS ? a.tokens - first : TOKENS;
    }
};

DEVICE void fetch(const Sketching& a, unsigned char* tile, int number) {
    const Place place(a, number);
    const unsigned char* source = a.source.of(place.sequence, place.head) + (long long)place.first * ROW;
    for (int at = threadIdx.x; at < TOKENS * (ROW / 16); at += THREADS) {
        const int token = at / (ROW / 16), part = at % (ROW / 16);
        copy_to_shared(tile + token * PLACE + 16 * part, source + token * ROW + 16 * part, token < place.count);
    }
}

// Norms of this lane's keys, by slice 0.
DEVICE void store_norms(unsigned char* norms, int token, const float (&size)[2], int quarter) {
    const float first = over_quarters(size[0]), second = over_quarters(size[1]);
    if (quarter == 0 && blockIdx.y == 0) {
        ((half_word*)norms)[token] = to_number(fminf(sqrtf(first), MOST));
        ((half_word*)norms)[token + 8] = to_number(fminf(sqrtf(second), MOST));
    }
}

DEVICE void store_tile(unsigned char* target, const unsigned char* signs, const Place& place, int length, int thread) {
    const int bits = length - (int)blockIdx.y * WIDTH < WIDTH ? length - (int)blockIdx.y * WIDTH : WIDTH, parts = bits > 0 ? bits / 128 : 0;
    for (int at = thread; at < place.count * parts; at += THREADS) {
        const int token = at / parts, part = at % parts;
        *(uint4*)(target + (long long)(place.first + token) * (length / 8) + blockIdx.y * SIGN_BYTES + 16 * part) =
            *(const uint4*)(signs + token * SIGN_BYTES + 16 * part);
    }
}

KERNEL void __launch_bounds__(THREADS, 1) cache_sketch(const __grid_constant__ Sketching a) {
    SHARED_MEMORY(shared);
    wait_for_inputs();
    const int thread = threadIdx.x, tiles = (a.tokens + TOKENS - 1) / TOKENS * a.heads * a.sequences;
    float* sizes = (float*)(shared + SIZES);
    half_word* masks = (half_word*)(shared + MASKS);
    unsigned char* apart = shared + APART;
    word* pairs = (word*)(shared + PAIRS);
    Walk walk;
    walk.begin(a);
    fetch(a, shared, blockIdx.x);
    close_copies();
    for (int at = thread; OUTLIERS > 0 && at < HEAD_DIM * WIDTH; at += THREADS) {
        pairs[at / WIDTH * PAIR_ROW + at % WIDTH] = a.pairs[at / WIDTH * SKETCH + blockIdx.y * WIDTH + at % WIDTH];
    }
    for (int at = thread; at < GROUPS * HEAD_DIM; at += THREADS) masks[at] = 0xFFFF;
    int turn = 0;
    for (int number = blockIdx.x; number < tiles; number += gridDim.x, turn ^= 1) {
        const Place place(a, number);
        const unsigned char* tile = shared + turn * TILE_BYTES;
        if (number + (int)gridDim.x < tiles) fetch(a, shared + (turn ^ 1) * TILE_BYTES, number + gridDim.x);
        close_copies();
        wait_for_copies<1>();
        synchronize_block();
        unsigned char* targets[5];
        for (int at = 0; at < 5; at++) targets[at] = (unsigned char*)a.targets[at].of(place.sequence, place.head);
        if constexpr (OUTLIERS > 0) {
            for (int at = thread; at < GROUPS * HEAD_DIM / 2; at += THREADS) {
                float first = 0, second = 0;
                const unsigned char* column = tile + at / (HEAD_DIM / 2) * STAGE * PLACE + at % (HEAD_DIM / 2) * 4;
#pragma unroll 8
                for (int token = 0; token < STAGE; token++) {
                    const word two = *(const word*)(column + token * PLACE);
                    first += from_number(two) * from_number(two), second += from_number(two >> 16) * from_number(two >> 16);
                }
                sizes[2 * at] = first, sizes[2 * at + 1] = second;
            }
            synchronize_block();
            for (int group = walk.warp; group < GROUPS; group += WARPS) {
                choose_outliers(sizes + group * HEAD_DIM, masks + group * HEAD_DIM, apart + 8 * group, walk.lane);
            }
            synchronize_block();
            if (blockIdx.y == 0 && thread < place.count / STAGE * 8) targets[4][place.first / STAGE * 8 + thread] = apart[thread];
        }
        for (int part = 0; part < place.count / 16; part++) {
            const int group = part / 2, token = 16 * part + walk.row;
            uint4 seen[4];
#pragma unroll
            for (int at = 0; at < 4; at++) seen[at] = *(const uint4*)(shared + MASKS + group * ROW + 64 * at + 16 * walk.quarter);
            float sums[4][4] = {}, size[2] = {};
            const bool sized = part % WARPS == walk.warp;
            walk.keys(sums, size, sized, tile, seen, token);
            store_signs(sums, shared + SIGNS + token * SIGN_BYTES + 4 * walk.warp + walk.quarter);
            if (sized) store_norms(targets[1], place.first + token, size, walk.quarter);
            if constexpr (OUTLIERS > 0) {
                if (walk.column < OUTLIER_SKETCH || sized) {
                    float others[4][4] = {};
                    walk.outliers(others, size, tile, pairs, apart + 8 * group, token);
                    store_signs(others, shared + APART_SIGNS + token * SIGN_BYTES + 4 * walk.warp + walk.quarter);
                    if (sized) store_norms(targets[3], place.first + token, size, walk.quarter);
                }
            }
        }
        synchronize_block();
        store_tile(targets[0], shared + SIGNS, place, SKETCH, thread);
        if constexpr (OUTLIERS > 0) store_tile(targets[2], shared + APART_SIGNS, place, OUTLIER_SKETCH, thread);
    }
}

EXPORT(cache_sketch)
