// One token put into a coded cache: its queries and key normed and rotated, key and value left among the exact ones, and what that
// settles put into code. Lengths follow from the position, so that a graph can replay it.
//
// Exact tokens lie in rings. Grid: key heads, sequences; HEAD_DIM threads. Fixed when compiled: NUMBER, HEAD_DIM, NORMED, KEYS (1 a
// sketch, 2 integers by channel, 4 integers by token), and what the codecs name.
#include "cache.cuh"
#if KEYS == 1
#include "cache_encode_qjl.cuh"
#endif
#include "cache_encode_integer.cuh"

constexpr int ROW = 2 * HEAD_DIM, WARPS = HEAD_DIM / 32, VALUE_GROUPS = HEAD_DIM / VALUE_GROUP;  // ROW: bytes of a token

struct Appending {
    Rows keys, values, key_codes[5], value_codes[3];  // rings, codes
    const half_word *qkv, *cosine, *sine;             // cosine, sine [positions, HEAD_DIM]
    const float *query_gain, *key_gain, *projection;
    const int* position;
    int* lengths;  // coded keys, coded values, tokens
    half_word* query;
    int group, key_ring, value_ring, key_window, value_window;  // rings: entries less one
    float eps;
};

// A head by a warp: the lane's two neighbouring channels of each half.
DEVICE void rotate(half_word* target, const half_word* source, const float* gain, const half_word* cosine, const half_word* sine, float eps, int lane) {
    const word both[2] = {((const word*)source)[lane], ((const word*)source)[lane + 32]};
    float x[2][2] = {{from_number(both[0]), from_number(both[0] >> 16)}, {from_number(both[1]), from_number(both[1] >> 16)}};
#if NORMED
    float sum = x[0][0] * x[0][0] + x[0][1] * x[0][1] + x[1][0] * x[1][0] + x[1][1] * x[1][1];
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += exchange(sum, lanes);
    const float scale = 1.0f / sqrtf(sum / HEAD_DIM + eps);
#pragma unroll
    for (int at = 0; at < 4; at++) x[at / 2][at % 2] *= scale * gain[at / 2 * HEAD_DIM / 2 + 2 * lane + at % 2];
#endif
    float turned[2][2];
#pragma unroll
    for (int at = 0; at < 4; at++) {
        const int half = at / 2, channel = half * HEAD_DIM / 2 + 2 * lane + at % 2;
        const float other = half ? x[0][at % 2] : -x[1][at % 2];
        turned[half][at % 2] = x[half][at % 2] * from_number(cosine[channel]) + other * from_number(sine[channel]);
    }
    ((word*)target)[lane] = pair(turned[0][0], turned[0][1]);
    ((word*)target)[lane + 32] = pair(turned[1][0], turned[1][1]);
}

DEVICE unsigned char* row_in(const Rows& ring, int sequence, int head, int token, int mask) {
    return (unsigned char*)ring.of(sequence, head) + (long long)(token & mask) * ROW;
}

template <int BITS, int GROUP>
DEVICE void encode_one(const Rows (&codes)[3], const unsigned char* row, int sequence, int head, long long token, int lane) {
    encode_token<BITS, GROUP>(((const uint2*)row)[lane], (unsigned char*)codes[0].of(sequence, head) + token * HEAD_DIM * BITS / 8,
                              (unsigned char*)codes[1].of(sequence, head) + token * 2 * (HEAD_DIM / GROUP),
                              (unsigned char*)codes[2].of(sequence, head) + token * 2 * (HEAD_DIM / GROUP), lane);
}

KERNEL void __launch_bounds__(HEAD_DIM) cache_append(const __grid_constant__ Appending a) {
    SHARED_MEMORY(room);
    wait_for_inputs();
    release_dependents();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x, sequence = blockIdx.y, heads = gridDim.x;
    const int here = *a.position, total = here + 1;
    const half_word* row = a.qkv + (long long)sequence * heads * (a.group + 2) * HEAD_DIM;
    const half_word *cosine = a.cosine + (long long)here * HEAD_DIM, *sine = a.sine + (long long)here * HEAD_DIM;
    for (int at = warp; at < a.group + 2; at += WARPS) {
        if (at < a.group) {
            const int member = head * a.group + at;
            rotate(a.query + ((long long)sequence * heads * a.group + member) * HEAD_DIM, row + member * HEAD_DIM, a.query_gain, cosine, sine, a.eps, lane);
        } else if (at == a.group) {
            rotate((half_word*)row_in(a.keys, sequence, head, here, a.key_ring), row + (heads * a.group + head) * HEAD_DIM, a.key_gain, cosine, sine, a.eps, lane);
        } else {
            const uint2* value = (const uint2*)(row + (heads * (a.group + 1) + head) * HEAD_DIM);
            ((uint2*)row_in(a.values, sequence, head, here, a.value_ring))[lane] = value[lane];
        }
    }
    synchronize_block();

    const int value = here - a.value_window, key = here - a.key_window;  // tokens that may have come of age
    if (warp == 0 && value >= 0) {
        encode_one<VALUE_BITS, VALUE_GROUP>(a.value_codes, row_in(a.values, sequence, head, value, a.value_ring), sequence, head, value, lane);
    }
#if KEYS == 4
    const Rows targets[3] = {a.key_codes[0], a.key_codes[1], a.key_codes[2]};
    if (warp == 1 && key >= 0) encode_one<8, KEY_GROUP>(targets, row_in(a.keys, sequence, head, key, a.key_ring), sequence, head, key, lane);
    const int coded = key + 1;
#else
    const int coded = total - total % a.key_window;
    if (coded == total) {
#if KEYS == 1
        constexpr int SIZE = STAGE;
        constexpr int BYTES[5] = {STAGE * SKETCH / 8, STAGE * 2, STAGE * OUTLIER_SKETCH / 8, STAGE * 2, OUTLIERS};
#else
        constexpr int SIZE = KEY_GROUP, BYTES[5] = {KEY_GROUP * HEAD_DIM * KEY_BITS / 8, ROW, ROW, 0, 0};
#endif
        for (int first = key + 1; first < total; first += SIZE) {
            const auto row_of = [&](int token) { return row_in(a.keys, sequence, head, first + token, a.key_ring); };
            unsigned char* targets[5];
#pragma unroll
            for (int at = 0; at < 5; at++) targets[at] = (unsigned char*)a.key_codes[at].of(sequence, head) + (long long)(first / SIZE) * BYTES[at];
#if KEYS == 1
            encode_sketch(row_of, targets, a.projection, room, threadIdx.x);
#else
            encode_channels<KEY_BITS, KEY_GROUP>(row_of, targets[0], targets[1], targets[2], room, threadIdx.x);
#endif
        }
    }
#endif
    if (threadIdx.x == 0 && head == 0 && sequence == 0) {
        a.lengths[0] = coded > 0 ? coded : 0, a.lengths[1] = value >= 0 ? value + 1 : 0, a.lengths[2] = total;
    }
}

EXPORT(cache_append)
