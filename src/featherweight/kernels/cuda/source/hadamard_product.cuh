// Part of hadamard.cu: the row as lattice.cu reads it, and t = R y.
#pragma once
#include "hadamard_steps.cuh"
#include "planes.cuh"

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

// 16 inputs of one rank times 16 of its scale, in the planes' steps.
DEVICE float project_16(uint2 codes, word scale, uint4 high, uint4 low) {
    word a[4] = {codes.x << 4 & 0xF0F0F0F0u, codes.y << 4 & 0xF0F0F0F0u, codes.x & 0xF0F0F0F0u, codes.y & 0xF0F0F0F0u};
    int h = dot_bytes(a[0], high.x, dot_bytes(a[1], high.y, dot_bytes(a[2], high.z, dot_bytes(a[3], high.w, 0))));
    int l = dot_bytes(a[0], low.x, dot_bytes(a[1], low.y, dot_bytes(a[2], low.z, dot_bytes(a[3], low.w, 0))));
    return from_fp16((half_word)scale) * (float)(h * 256 + l);
}

// Of a rank, the codes and scales of a lane's sixteens from `first` of `COUNT` on; the sixteens of a block's planes stand in the row where
// `in_row` says.
constexpr int SIXTEENS = CLUSTER > 1 ? CLUSTER * (LOCAL / CLUSTER) / 16 : SLICES * 16, AT_ONCE = 8;
struct Codes {
    uint2 codes[AT_ONCE];
    word scales[AT_ONCE];

    static DEVICE int in_row(int at) {
        constexpr int share = LOCAL / CLUSTER;
        return CLUSTER == 1 ? at : outside(own_block() * share + at % (share / 16) * 16, at / (share / 16)) / 16;
    }
    DEVICE void load(const Arguments& given, int rank, int first) {
        if (rank >= given.rank) return;
        const uint2* row = (const uint2*)(given.right + (long)rank * SLICES * 32);
        const half_word* of = given.right_scales + (long)rank * given.groups;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = in_row(min(first + i * 32, SIXTEENS - 1));
            codes[i] = row[at];
            scales[i] = first + i * 32 < SIXTEENS ? load_half_word(of + min(at * 16 / given.group, given.groups - 1)) : 0;
        }
    }
};

// The first rank of a warp: its codes are asked for before the row is there.
DEVICE int first_rank() { return blockIdx.y / CLUSTER + threadIdx.x / 32 * (gridDim.y / CLUSTER); }

// The sum of one rank over a warp, from a block's planes, `stride` bytes from plane to plane. `codes` holds the rank's first.
DEVICE float project_rank(const Arguments& given, const unsigned char* planes, int stride, int rank, Codes& codes) {
    int lane = threadIdx.x & 31;
    float sum = 0;
    for (int first = lane; first < SIXTEENS && rank < given.rank; first += 32 * AT_ONCE) {
        if (first != lane || rank != first_rank()) codes.load(given, rank, first);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int at = min(first + i * 32, SIXTEENS - 1);
            sum += project_16(codes.codes[i], codes.scales[i], ((const uint4*)planes)[at], ((const uint4*)(planes + stride))[at]);
        }
    }
    for (int apart = 16; apart; apart /= 2) sum += exchange(sum, apart);
    return sum;
}

#if CLUSTER > 1
// The row in planes, by all blocks; each keeps its own part, [plane][block][SHARE], for t, of which it adds what is its own.
DEVICE void finish_product(const Arguments& given, float* values, const unsigned char* signs, int row, Codes& codes) {
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
        for (int rank = first_rank(); rank < given.padded_rank; rank += replicas * WARPS) {
            float sum = project_rank(given, planes, CLUSTER * SHARE, rank, codes);
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
DEVICE void finish_product(const Arguments& given, float* values, const unsigned char* signs, int row, Codes& codes) {
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
        for (int rank = first_rank(); rank < given.padded_rank; rank += gridDim.y * WARPS) {
            float sum = project_rank(given, planes, SLICES * 256, rank, codes);
            if (!(threadIdx.x & 31)) given.t[row * given.padded_rank + rank] = sum * step / 16;
        }
}
#endif
