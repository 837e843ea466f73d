// Who reads which tokens in code.
#pragma once
#include "cache.cuh"

// Stages of coded values, which the warps of all parts share: a run of them for each at first, and then whoever is free takes the next.
struct Runs {
    static constexpr int LENGTH = DEPTH - 1, NONE = -1;
    word* taken;  // runs that were taken after the first ones
    int stages, warps, at, end, next;

    DEVICE void begin(word* tickets, int coded_values, int all, int warp, int lane) {
        taken = tickets, stages = (coded_values + STAGE - 1) / STAGE, warps = all;
        start(warp, lane);
    }
    // A run, and in the background the number of the one after it.
    DEVICE void start(int run, int lane) {
        at = run * LENGTH, end = at + LENGTH;
        if (at < stages && lane == 0) next = take_number(taken);
    }
    DEVICE int take(int lane) {
        if (at == end) start(warps + broadcast(next, 0), lane);
        if (at >= stages) return end = at + 1, NONE;
        return at++;
    }
};
