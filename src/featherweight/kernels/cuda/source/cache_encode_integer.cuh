// Integers of BITS (2, 4, 8), a scale and a minimum for GROUP neighbours: channels of a token, or tokens of a channel.
//
// As the reference has it, bit for bit: scale and minimum are rounded to the cache's numbers before the codes are found.
#pragma once
#include "cache.cuh"

static_assert(HEAD_DIM == 128, "a lane has four channels of a token");

DEVICE float stored_scale(float scale) { return from_number(to_number(fminf(fmaxf(scale, LEAST), MOST))); }
DEVICE word exchange_word(word value, int lanes) { return as_word(exchange(as_float(value), lanes)); }

// The code of `above` the minimum, for a scale and its reciprocal: the quotient as IEEE has it, by one correction (Markstein 1990).
template <int BITS>
DEVICE word integer_code(float above, float scale, float reciprocal) {
    const float near = above * reciprocal, quotient = fmaf(fmaf(-near, scale, above), reciprocal, near);
    return (word)fminf(fmaxf(rintf(quotient), 0.0f), (float)((1 << BITS) - 1));
}

// Four neighbouring channels of a token for each lane. Code i of W words goes to field i / W of word i % W; 8 bits in their order.
template <int BITS, int GROUP>
DEVICE void encode_token(uint2 four, unsigned char* codes, unsigned char* scales, unsigned char* minima, int lane) {
    const float x[4] = {from_number(four.x), from_number(four.x >> 16), from_number(four.y), from_number(four.y >> 16)};
    float low = fminf(fminf(x[0], x[1]), fminf(x[2], x[3])), high = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
#pragma unroll
    for (int lanes = 1; lanes < GROUP / 4; lanes *= 2) low = fminf(low, exchange(low, lanes)), high = fmaxf(high, exchange(high, lanes));
    const float scale = stored_scale(divide(high - low, (float)((1 << BITS) - 1))), reciprocal = divide(1.0f, scale);
    if (lane % (GROUP / 4) == 0) {
        ((half_word*)scales)[lane / (GROUP / 4)] = to_number(scale);
        ((half_word*)minima)[lane / (GROUP / 4)] = to_number(low);
    }
    word bytes = 0;  // a channel's code in each
#pragma unroll
    for (int at = 0; at < 4; at++) bytes |= integer_code<BITS>(x[at] - low, scale, reciprocal) << 8 * at;
    if constexpr (BITS < 8) {  // BITS lanes own the words' first fields; byte by byte, then bytes are turned among lanes 8 apart
        bytes <<= BITS * (lane % 8 / BITS);
#pragma unroll
        for (int lanes = BITS; lanes < 8; lanes *= 2) bytes |= exchange_word(bytes, lanes);
        word other = exchange_word(bytes, 8);
        bytes = lane & 8 ? pick_bytes(bytes, other, 0x3715u) : pick_bytes(bytes, other, 0x6240u);
        other = exchange_word(bytes, 16);
        bytes = lane & 16 ? pick_bytes(bytes, other, 0x3276u) : pick_bytes(bytes, other, 0x5410u);
        if (lane % 8 < BITS) ((word*)codes)[4 * (lane % BITS) + lane / 8] = bytes;
    } else {
        ((word*)codes)[lane] = bytes;
    }
}

// GROUP tokens by HEAD_DIM threads, one for each channel; `room` has the codes' bytes of shared memory. `row_of(token)` tells where a
// token lies.
template <int BITS, int GROUP, class RowOf>
DEVICE void encode_channels(const RowOf& row_of, unsigned char* codes, unsigned char* scales, unsigned char* minima, unsigned char* room, int thread) {
    constexpr int WORDS = HEAD_DIM * BITS / 32, SHARE = 32 / WORDS > 0 ? 32 / WORDS : 1;  // lanes whose codes meet in a byte
    static_assert(SHARE == 8 / BITS, "two or four");
    const int lane = thread % 32, warp = thread / 32;
    float low = MOST, high = -MOST;
#pragma unroll 32
    for (int token = 0; token < GROUP; token++) {
        const float value = from_number(((const half_word*)row_of(token))[thread]);
        low = fminf(low, value), high = fmaxf(high, value);
    }
    const float scale = stored_scale(divide(high - low, (float)((1 << BITS) - 1))), reciprocal = divide(1.0f, scale);
    ((half_word*)scales)[thread] = to_number(scale);
    ((half_word*)minima)[thread] = to_number(low);
    // The warp's codes of a token lie in byte `warp` of its words: those of four tokens at a time.
#pragma unroll
    for (int first = 0; first < GROUP; first += 4) {
        word bytes = 0;
#pragma unroll
        for (int at = 0; at < 4; at++) {
            const float above = from_number(((const half_word*)row_of(first + at))[thread]) - low;
            bytes |= integer_code<BITS>(above, scale, reciprocal) << 8 * at;
        }
        bytes <<= lane / WORDS * BITS;
#pragma unroll
        for (int lanes = WORDS; lanes < 32; lanes *= 2) bytes |= exchange_word(bytes, lanes);
#pragma unroll
        for (int at = 0; at < 4 / SHARE; at++) {
            const int token = lane / WORDS * (4 / SHARE) + at;
            room[((first + token) * WORDS + lane % WORDS) * 4 + warp] = (unsigned char)(bytes >> 8 * token);
        }
    }
    synchronize_block();
    for (int at = thread; at < GROUP * WORDS / 4; at += HEAD_DIM) ((uint4*)codes)[at] = ((const uint4*)room)[at];
    synchronize_block();
}
