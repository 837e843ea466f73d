// One token's attention over a static cache: norms of the heads, rotation, append, softmax over all tokens, and the mix of values.
//
// A cluster of blocks serves one query head. LANES threads hold a token, eight numbers each; tokens are dealt out in turn to
// the places of a block, the blocks of the cluster, and passes. Older keys and values are asked for before the wait: they are
// from earlier steps. Every place keeps a softmax of its own; they are put together in the block, then over the cluster, in a
// fixed order.
//
// Fixed when compiled: ACTIVATION, DIM of a head, KEYS heads, GROUP query heads to each, NORMED, THREADS.
#include "numbers.cuh"

constexpr int LANES = DIM / 8, PLACES = THREADS / LANES, PASSES = 8;
constexpr float NONE = -1e30f;  // below every score

struct Row {
    float value[8];

    DEVICE void load(const half_word* address) { set(*(const uint4*)address); }
    DEVICE void set(uint4 bits) {
        const word words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            value[2 * i] = from_number((half_word)words[i]);
            value[2 * i + 1] = from_number((half_word)(words[i] >> 16));
        }
    }
    DEVICE uint4 packed() const {
        word words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = to_number(value[2 * i]) | (word)to_number(value[2 * i + 1]) << 16;
        return {words[0], words[1], words[2], words[3]};
    }
    DEVICE float dot(const Row& other) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += value[i] * other.value[i];
        return sum;
    }
};

// A head's part of this lane, normed, rotated and rounded as it is stored.
DEVICE Row rotated(const half_word* head, const float* gain, const Row& cosine, const Row& sine, int lane, float eps) {
    Row own, other;
    int at = lane * 8, across = (at + DIM / 2) % DIM;
    own.load(head + at);
    other.load(head + across);
#if NORMED
    float scale = inverse_root(sum_over_lanes(own.dot(own), LANES) / DIM + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) own.value[i] *= scale * gain[at + i], other.value[i] *= scale * gain[across + i];
#endif
    float sign = at < DIM / 2 ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) own.value[i] = own.value[i] * cosine.value[i] + sign * other.value[i] * sine.value[i];
    Row result;
    result.set(own.packed());
    return result;
}

// What a place has seen so far.
struct Softmax {
    float best, weight;
    Row mixed;

    DEVICE void add(const Row (&values)[PASSES], const float (&scores)[PASSES]) {
        float higher = best;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) higher = scores[pass] > higher ? scores[pass] : higher;
        float shrink = exponential(best - higher);
        weight *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i++) mixed.value[i] *= shrink;
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            float part = scores[pass] > NONE ? exponential(scores[pass] - higher) : 0.0f;
            weight += part;
#pragma unroll
            for (int i = 0; i < 8; i++) mixed.value[i] += part * values[pass].value[i];
        }
        best = higher;
    }
};

KERNEL void __launch_bounds__(THREADS)
attend(const half_word* qkv, const half_word* cosine, const half_word* sine, half_word* keys, half_word* values,
       const int* position, const float* query_gain, const float* key_gain, half_word* out, int length, float scaling, float eps) {
    SHARED_MEMORY(memory);
    float* parts = (float*)memory;             // [PLACES][DIM + 2], the softmax of every place: values, best, weight
    float* whole = parts + PLACES * (DIM + 2);  // [DIM + 2], that of the block
    int thread = threadIdx.x, lane = thread % LANES, place = thread / LANES, rank = blockIdx.y, splits = gridDim.y;
    int owner = blockIdx.x, head = owner % (KEYS * GROUP), batch = owner / (KEYS * GROUP), key_head = head / GROUP;
    int here = *position, step = PLACES * splits, first = rank * PLACES + place;
    long base = (long)(batch * KEYS + key_head) * length * DIM + lane * 8;
    uint4 key_bits[PASSES], value_bits[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
        int token = first + pass * step;
        key_bits[pass] = value_bits[pass] = uint4{0, 0, 0, 0};
        if (token >= here) continue;
        key_bits[pass] = *(const uint4*)(keys + base + (long)token * DIM);
        value_bits[pass] = *(const uint4*)(values + base + (long)token * DIM);
    }
    Row turn, lift;
    turn.load(cosine + (long)here * DIM + lane * 8);
    lift.load(sine + (long)here * DIM + lane * 8);
    release_dependents();
    wait_for_inputs();

    const half_word* row = qkv + (long)batch * KEYS * (GROUP + 2) * DIM;
    Row query = rotated(row + head * DIM, query_gain, turn, lift, lane, eps);
    uint4 key = rotated(row + (KEYS * GROUP + key_head) * DIM, key_gain, turn, lift, lane, eps).packed();
    uint4 value = *(const uint4*)(row + (KEYS * (GROUP + 1) + key_head) * DIM + lane * 8);
    Softmax seen = {NONE, 0.0f, {}};
    for (int begin = first; begin - first <= here; begin += PASSES * step) {
        float scores[PASSES];
        Row mixed[PASSES];
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            int token = begin + pass * step;
            if (begin != first && token < here) {
                key_bits[pass] = *(const uint4*)(keys + base + (long)token * DIM);
                value_bits[pass] = *(const uint4*)(values + base + (long)token * DIM);
            }
            if (token == here) key_bits[pass] = key, value_bits[pass] = value;
            Row each;
            each.set(key_bits[pass]);
            float score = sum_over_lanes(query.dot(each), LANES) * scaling;
            scores[pass] = token <= here ? score : NONE;
            mixed[pass].set(value_bits[pass]);
            if (token == here && head % GROUP == 0) {
                *(uint4*)(keys + base + (long)here * DIM) = key;
                *(uint4*)(values + base + (long)here * DIM) = value;
            }
        }
        seen.add(mixed, scores);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) parts[place * (DIM + 2) + lane * 8 + i] = seen.mixed.value[i];
    if (lane == 0) parts[place * (DIM + 2) + DIM] = seen.best, parts[place * (DIM + 2) + DIM + 1] = seen.weight;
    synchronize_block();
    float best = NONE;
    for (int other = 0; other < PLACES; other++) {
        float theirs = parts[other * (DIM + 2) + DIM];
        best = theirs > best ? theirs : best;
    }
    for (int at = thread; at < DIM + 2; at += THREADS) {
        float sum = 0.0f;
        for (int other = 0; other < PLACES; other++) {
            const float* part = parts + other * (DIM + 2);
            sum += exponential(part[DIM] - best) * part[at];
        }
        whole[at] = at == DIM ? best : sum;
    }
    synchronize_block();
    synchronize_cluster();
    int width = (DIM + splits - 1) / splits, at = rank * width + thread;
    if (thread < width && at < DIM) {
        float highest = NONE, sum = 0.0f, weight = 0.0f;
        for (int other = 0; other < splits; other++) {
            float theirs = load_from_block(whole + DIM, other);
            highest = theirs > highest ? theirs : highest;
        }
        for (int other = 0; other < splits; other++) {
            float grow = exponential(load_from_block(whole + DIM, other) - highest);
            sum += grow * load_from_block(whole + at, other);
            weight += grow * load_from_block(whole + DIM + 1, other);
        }
        out[(long)owner * DIM + at] = to_number(sum / weight);
    }
    synchronize_cluster();  // a block stays until its part was read
}
EXPORT(attend)
