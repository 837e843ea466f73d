// Integers of BITS (2, 4, 8), a scale and a minimum for GROUP neighbours: channels of a token, or tokens of a channel.
//
// As the reference has it, bit for bit: scale and minimum are rounded to the cache's numbers before the codes are found.
#pragma once
#include "cache.cuh"

static_assert(HEAD_DIM == 128, "a lane has four channels of a token");

DEVICE float stored_scale(float scale) { return from_number(to_number(fminf(fmaxf(scale, LEAST), MOST))); }
DEVICE word exchange_word(word value, int lanes) { return as_word(exchange(as_float(value), lanes)); }

template <int BITS>
DEVICE word integer_code(float value, float low, float scale) {
    return (word)fminf(fmaxf(rintf(divide(value - low, scale)), 0.0f), (float)((1 << BITS) - 1));
}

// Four neighbouring channels of a token for each lane. Code i of W words goes to field i / W of word i % W; 8 bits in their order.
template <int BITS, int GROUP>
DEVICE void encode_token(uint2 four, unsigned char* codes, unsigned char* scales, unsigned char* minima, int lane) {
    const float x[4] = {from_number(four.x), from_number(four.x >> 16), from_number(four.y), from_number(four.y >> 16)};
    float low = fminf(fminf(x[0], x[1]), fminf(x[2], x[3])), high = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    for (int lanes = 1; lanes < GROUP / 4; lanes *= 2) low = fminf(low, exchange(low, lanes)), high = fmaxf(high, exchange(high, lanes));
    const float scale = stored_scale(divide(high - low, (float)((1 << BITS) - 1)));
    if (lane % (GROUP / 4) == 0) {
        ((half_word*)scales)[lane / (GROUP / 4)] = to_number(scale);
        ((half_word*)minima)[lane / (GROUP / 4)] = to_number(low);
    }
    word of[4];
#pragma unroll
    for (int at = 0; at < 4; at++) of[at] = integer_code<BITS>(x[at], low, scale);
    if constexpr (BITS == 8) {
        ((word*)codes)[lane] = of[0] | of[1] << 8 | of[2] << 16 | of[3] << 24;
    } else {
        constexpr int OWNERS = BITS;  // of four words each: lanes that hold their first fields
#pragma unroll
        for (int at = 0; at < 4; at++) {
            of[at] <<= lane / OWNERS * BITS;
            for (int lanes = OWNERS; lanes < 32; lanes *= 2) of[at] |= exchange_word(of[at], lanes);
        }
        if (lane < OWNERS) ((uint4*)codes)[lane] = {of[0], of[1], of[2], of[3]};
    }
}

// GROUP tokens by HEAD_DIM threads, one for each channel; `rows` may lie in shared memory, `room` holds GROUP * HEAD_DIM bytes of it.
// `row_of(token)` tells where a token lies.
template <int BITS, int GROUP, class RowOf>
DEVICE void encode_channels(const RowOf& row_of, unsigned char* codes, unsigned char* scales, unsigned char* minima, unsigned char* room, int thread) {
    float low = MOST, high = -MOST;
#pragma unroll 16
    for (int token = 0; token < GROUP; token++) {
        const float value = from_number(((const half_word*)row_of(token))[thread]);
        low = fminf(low, value), high = fmaxf(high, value);
    }
    const float scale = stored_scale(divide(high - low, (float)((1 << BITS) - 1)));
    ((half_word*)scales)[thread] = to_number(scale);
    ((half_word*)minima)[thread] = to_number(low);
#pragma unroll 16
    for (int token = 0; token < GROUP; token++) {
        room[token * HEAD_DIM + thread] = (unsigned char)integer_code<BITS>(from_number(((const half_word*)row_of(token))[thread]), low, scale);
    }
    synchronize_block();
    constexpr int WORDS = HEAD_DIM * BITS / 32;
    for (int at = thread; at < GROUP * WORDS; at += HEAD_DIM) {
        word fields = 0;
#pragma unroll
        for (int field = 0; field < 32 / BITS; field++) fields |= (word)room[at / WORDS * HEAD_DIM + field * WORDS + at % WORDS] << field * BITS;
        ((word*)codes)[at] = fields;
    }
    synchronize_block();
}
