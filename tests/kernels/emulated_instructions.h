// What `instructions.cuh` asks of the card beside `intrinsics.cuh`, by plain arithmetic.
#pragma once
#include <algorithm>
using std::min;

// Shared memory begins at address 1024, as on the card.
DEVICE word shared_address(const void* pointer) { return (word)((const unsigned char*)pointer - fibre_here->shared) + 1024; }
template <int OFFSET>
DEVICE word load_shared(word address) { return *(const word*)(fibre_here->shared + address - 1024 + OFFSET); }
DEVICE void meet_blocks() {
    synchronize_block();
    synchronize_cluster();
}
DEVICE void arrive_in_cluster() { fibre_here->turn = arrive_at(cluster_barrier, cluster_threads); }
DEVICE void wait_for_cluster() { wait_for_turn(cluster_barrier, fibre_here->turn); }
DEVICE void expect_bytes(unsigned long long* barrier, int bytes) { *barrier = bytes; }
DEVICE void send_to_block(float* place, unsigned long long* barrier, int rank, float value) {
    unsigned char* there = cluster_memory[rank].data();
    *(float*)(there + ((unsigned char*)place - fibre_here->shared)) = value;
    *(unsigned long long*)(there + ((unsigned char*)barrier - fibre_here->shared)) -= 4;
}
DEVICE void wait_for_bytes(unsigned long long* barrier) {
    while (*barrier) swapcontext(&fibre_here->context, &scheduler);
}
DEVICE float load_float_now(const float* address) { return *address; }
DEVICE float load_one_from_cluster(const float* place, int rank) {
    size_t offset = (const unsigned char*)place - fibre_here->shared;
    return *(const float*)(cluster_memory[rank].data() + offset);
}
DEVICE float4 load_four_from_cluster(const float* place, int rank) {
    return {load_one_from_cluster(place, rank), load_one_from_cluster(place + 1, rank), load_one_from_cluster(place + 2, rank),
            load_one_from_cluster(place + 3, rank)};
}
DEVICE void prefetch(const void*, int) {}
DEVICE void add_shared(int* sum, int value) { *sum += value; }

DEVICE word differing_bits(word a, word b, word mask) { return (a ^ b) & mask; }

DEVICE void multiply_bytes(int (&c)[4], const word (&a)[4], word b0, word b1) { multiply_byte_matrices<uint8_t>(c, a, b0, b1); }
DEVICE void multiply_signed_bytes(int (&c)[4], const word (&a)[4], word b0, word b1) { multiply_byte_matrices<int8_t>(c, a, b0, b1); }
DEVICE void multiply_tf32(float (&c)[4], const word (&a)[4], word b0, word b1) {
    auto& words = fibre_here->warp->words;
    int lane = fibre_here->lane;
    for (int i = 0; i < 4; i++) words[lane][i] = a[i];
    words[lane][4] = b0;
    words[lane][5] = b1;
    synchronize_warp();
    for (int part = 0; part < 4; part++) {
        int row = lane / 4, half = part / 2, column = lane % 4 * 2 + part % 2;
        double sum = c[part];
        for (int k = 0; k < 8; k++) {
            word x = words[row * 4 + k % 4][half + k / 4 * 2], y = words[column * 4 + k % 4][4 + k / 4];
            sum += (double)as_float(x & 0xFFFFE000u) * as_float(y & 0xFFFFE000u);
        }
        c[part] = (float)sum;
    }
    synchronize_warp();
}
DEVICE word load_byte(const unsigned char* address) { return *address; }

DEVICE int dot_bytes(word a, word b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += (int)(int8_t)(a >> i) * (int8_t)(b >> i);
    return sum;
}

DEVICE void load_transposed(word (&d)[4], const half_word* row) {
    auto& words = fibre_here->warp->words;
    memcpy(words[fibre_here->lane], &row, sizeof row);
    synchronize_warp();
    for (int tile = 0; tile < 4; tile++) {
        d[tile] = 0;
        for (int second = 0; second < 2; second++) {
            const half_word* from;
            memcpy(&from, words[tile * 8 + fibre_here->lane % 4 * 2 + second], sizeof from);
            d[tile] |= (word)from[fibre_here->lane / 4] << 16 * second;
        }
    }
    synchronize_warp();
}

DEVICE word pack_bf16(float first, float second) { return to_bf16(first) | (word)to_bf16(second) << 16; }
DEVICE int round_to_int(float value) { return (int)std::nearbyint(value); }

template <class Number>
DEVICE Number exchange(Number value, int lanes_apart) { return of_lane(value, fibre_here->lane ^ lanes_apart); }
DEVICE int from_lane(int value, int lane) { return of_lane(value, lane); }
