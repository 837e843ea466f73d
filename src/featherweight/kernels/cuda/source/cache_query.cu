// The query as `cache_keys_qjl.cuh` reads it: its sketch `Sᵀ q` in 16 bits, as two signed bytes, divided by each bit's place.
//
// Grid: key heads times blocks of HEADS query heads, sequences. Fixed when compiled: as there, and THREADS.
#include "cache_keys_qjl.cuh"

constexpr int COLUMNS = SKETCH / THREADS;  // of a thread

KERNEL void __launch_bounds__(THREADS) cache_query(const __grid_constant__ Arguments a, const float* projection, unsigned char* prepared,
                                                   float constant) {
    SHARED_MEMORY(shared);
    wait_for_inputs();
    release_dependents();
    float* query = (float*)shared;                              // [HEAD_DIM][HEADS]
    float* sums = query + HEAD_DIM * HEADS;                     // of a warp: largest and sum, of each head
    unsigned char* bytes = shared + 4 * (HEAD_DIM * HEADS + THREADS / 32 * HEADS * 2);
    const int blocks = (a.group + HEADS - 1) / HEADS, block = blockIdx.x % blocks, key_head = blockIdx.x / blocks;
    const int heads = a.group - block * HEADS < HEADS ? a.group - block * HEADS : HEADS;
    unsigned char* target = prepared + (long long)(blockIdx.y * gridDim.x + blockIdx.x) * PREPARED;
    for (int at = threadIdx.x; at < PREPARED_FACTORS / 4; at += THREADS) ((word*)bytes)[at] = 0;
    for (int at = threadIdx.x; at < HEADS * HEAD_DIM; at += THREADS) {
        const int head = at / HEAD_DIM < heads ? at / HEAD_DIM : heads - 1, channel = at % HEAD_DIM;
        const half_word* source = (const half_word*)a.query.of(blockIdx.y, key_head * a.group + block * HEADS + head);
        const float value = from_number(source[channel]);
        query[channel * HEADS + at / HEAD_DIM] = value;
        const float scaled = value * a.scaling;
        const half_word high = to_number(scaled);
        half_word* columns = (half_word*)(target + PREPARED_QUERY) + at / HEAD_DIM * 2 * HEAD_DIM + channel;
        columns[0] = high;
        columns[HEAD_DIM] = to_number(scaled - from_number(high));
    }
    synchronize_block();

    float u[COLUMNS][HEADS] = {};
#pragma unroll 16
    for (int channel = 0; channel < HEAD_DIM; channel++) {
        const float4 q = ((const float4*)query)[channel];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const float s = projection[channel * SKETCH + column * THREADS + threadIdx.x];
            u[column][0] += s * q.x, u[column][1] += s * q.y, u[column][2] += s * q.z, u[column][3] += s * q.w;
        }
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
        float largest = 0, sum = 0;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) largest = fmaxf(largest, fabsf(u[column][head])), sum += u[column][head];
        for (int lanes = 1; lanes < 32; lanes *= 2) largest = fmaxf(largest, exchange(largest, lanes)), sum += exchange(sum, lanes);
        if (lane == 0) sums[(warp * HEADS + head) * 2] = largest, sums[(warp * HEADS + head) * 2 + 1] = sum;
    }
    synchronize_block();
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
        float largest = 1e-30f, sum = 0;
        for (int each = 0; each < THREADS / 32; each++) {
            largest = fmaxf(largest, sums[(each * HEADS + head) * 2]), sum += sums[(each * HEADS + head) * 2 + 1];
        }
        const float unit = largest / 32500.0f;
        if (threadIdx.x == head) {
            ((float2*)(target + PREPARED_FACTORS))[head] = {2 * unit * constant / SKETCH * a.scaling, sum * constant / SKETCH * a.scaling};
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const int sign = column * THREADS + threadIdx.x, byte = sign / 8, bit = sign % 8;
            // byte: quarter of SIGN_WORDS words each; two words to a product, four bytes to a word
            const int word_at = byte / 4 % SIGN_WORDS, quarter = byte / 4 / SIGN_WORDS, step = word_at / 2, half = word_at % 2;
            const int value = (int)rintf(u[column][head] / (unit * (float)(1 << bit))), low = (value + 128 & 255) - 128;
            const int at = ((step * PLANES + bit) * 2 + half) * 4 + byte % 4;
            bytes[((2 * head) * 4 + quarter) * STEPS * PLANES * 8 + at] = (unsigned char)(value - low >> 8);
            bytes[((2 * head + 1) * 4 + quarter) * STEPS * PLANES * 8 + at] = (unsigned char)low;
        }
    }
    synchronize_block();
    for (int at = threadIdx.x; at < PREPARED_FACTORS / 16; at += THREADS) ((uint4*)target)[at] = ((const uint4*)bytes)[at];
}
