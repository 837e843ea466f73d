// States of a head, which several warps and then several blocks have made, added up: their sums, maximum and weight.
#pragma once
#include "cache.cuh"

constexpr int STATE = HEAD_DIM + 4;           // floats of a head's part: sums, maximum, weight, and two to spare
constexpr int SHARES = WARPS / HEADS;  // warps that add up a head
static_assert(WARPS >= HEADS, "a warp adds up each head");

// Weighted sum of states of one head by a warp, four channels to a lane.
struct Total {
    float4 sums = {0, 0, 0, 0};
    float best = LOWEST, weight = 0;

    // Every `step`-th of the states before `end`, `stride` floats apart, EARLY of them asked for at once.
    template <int EARLY, class Load>
    DEVICE void add(const float* states, int begin, int end, int step, int stride, int lane, const Load& load) {
        for (int first = begin; first < end; first += 32 * step) {
            const int mine = first + lane * step;
            const float4 own = mine < end ? load(states + (long long)mine * stride + HEAD_DIM) : float4{LOWEST, 0, 0, 0};
            const int count = (end - first + step - 1) / step < 32 ? (end - first + step - 1) / step : 32;
            const auto state = [&](int part) {
                const bool there = part < count && 4 * lane < HEAD_DIM;
                return there ? load(states + (long long)(first + part * step) * stride + 4 * lane) : float4{0, 0, 0, 0};
            };
            float4 early[EARLY];  // on their way while the factors are found
#pragma unroll
            for (int part = 0; part < EARLY; part++) early[part] = state(part);
            float top = fmaxf(best, own.x);
            for (int lanes = 1; lanes < 32; lanes *= 2) top = fmaxf(top, exchange(top, lanes));
            const float before = power(best - top), factor = power(own.x - top);
            float whole = factor * own.y;
            for (int lanes = 1; lanes < 32; lanes *= 2) whole += exchange(whole, lanes);
            best = top, weight = weight * before + whole;
            sums = {sums.x * before, sums.y * before, sums.z * before, sums.w * before};
#pragma unroll
            for (int part = 0; part < EARLY; part++) take(early[part], broadcast(factor, part));
#pragma unroll 8
            for (int part = EARLY; part < count; part++) take(state(part), broadcast(factor, part));
        }
    }
    DEVICE void take(const float4& four, float by) {
        sums = {sums.x + by * four.x, sums.y + by * four.y, sums.z + by * four.z, sums.w + by * four.w};
    }
    DEVICE void store(float* state, int lane) const {
        if (4 * lane < HEAD_DIM) *(float4*)(state + 4 * lane) = sums;
        if (lane == 0) *(float4*)(state + HEAD_DIM) = {best, weight, 0, 0};
    }
};

// What this share of the warps adds to the product of a head's mixture with the rotation, rows for columns; four channels to a lane.
DEVICE float4 rotate(const float* mixed, const float* rotation, int share, int lane) {
    constexpr int rows = HEAD_DIM / SHARES;
    float4 sums = {0, 0, 0, 0};
#pragma unroll 16
    for (int at = share * rows; at < (share + 1) * rows; at++) {
        const float4 row = *(const float4*)(rotation + at * HEAD_DIM + 4 * lane);
        const float value = mixed[at];
        sums = {sums.x + value * row.x, sums.y + value * row.y, sums.z + value * row.z, sums.w + value * row.w};
    }
    return sums;
}

// All parts of an owner's heads, by the last block of them: `states` in global memory, `room` [SHARES][HEADS] states of shared memory.
DEVICE void combine(const Arguments& a, const float* states, float* room, int parts, half_word* out, int heads, int warp, int lane) {
    const int head = warp % HEADS, share = warp / HEADS;
    const auto fresh = [](const float* at) { return load_fresh(at); };
    const auto near = [](const float* at) { return *(const float4*)at; };
    const bool works = share < SHARES;
    Total total, exact;
    if (works) {
        total.template add<16>(states + head * STATE, share + (ROTATED_VALUES ? 1 : 0), parts, SHARES, HEADS * STATE, lane, fresh);
        if (ROTATED_VALUES && share == 0) exact.template add<1>(states + head * STATE, 0, 1, 1, HEADS * STATE, lane, fresh);
        total.store(room + (share * HEADS + head) * STATE, lane);
    }
    synchronize_block();
    if (ROTATED_VALUES) {
        Total whole;
        float4 turned = {0, 0, 0, 0};
        float* mixed = room + (SHARES + share) * HEADS * STATE + head * STATE;  // this warp's copy of its head's mixture
        if (works) {
            whole.template add<SHARES>(room + head * STATE, 0, SHARES, 1, HEADS * STATE, lane, near);
            whole.store(mixed, lane);
            synchronize_warp();
            turned = rotate(mixed, a.rotation, share, lane);
        }
        synchronize_block();
        if (works) {
            whole.sums = turned;
            whole.store(room + (share * HEADS + head) * STATE, lane);
        }
        if (works && share == 0) exact.store(room + 2 * SHARES * HEADS * STATE + head * STATE, lane);
        synchronize_block();
        if (works && share == 0) {  // shares have one maximum and weight between them
            const float4 end = near(room + head * STATE + HEAD_DIM), mine = near(room + 2 * SHARES * HEADS * STATE + head * STATE + HEAD_DIM);
            const float top = fmaxf(end.x, mine.x), coded = power(end.x - top), plain = power(mine.x - top);
            float4 sums = {exact.sums.x * plain, exact.sums.y * plain, exact.sums.z * plain, exact.sums.w * plain};
#pragma unroll
            for (int each = 0; each < SHARES; each++) {
                const float4 four = near(room + (each * HEADS + head) * STATE + 4 * lane);
                sums = {sums.x + coded * four.x, sums.y + coded * four.y, sums.z + coded * four.z, sums.w + coded * four.w};
            }
            total.sums = sums, total.weight = end.y * coded + mine.y * plain;
        }
    } else if (works && share == 0) {
        total = Total();
        total.template add<SHARES>(room + head * STATE, 0, SHARES, 1, HEADS * STATE, lane, near);
    }
    if (works && share == 0 && head < heads && 4 * lane < HEAD_DIM) {
        const float scale = 1.0f / total.weight;
        *(uint2*)(out + head * HEAD_DIM + 4 * lane) = {pair(total.sums.x * scale, total.sums.y * scale), pair(total.sums.z * scale, total.sums.w * scale)};
    }
}
