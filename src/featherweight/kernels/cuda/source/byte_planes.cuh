// One token's activations as whole numbers of three bytes with sign, each byte a column of its own of the matrix unit, which the codes meet as
// bytes: half as many products as with fp16, and codes are cut out four at a time. Groups of 128 inputs or more.
//
// Fixed when compiled: what `tiles.cuh` names.
#pragma once
#include "fields.cuh"
#include "warp.cuh"

constexpr int PLANES = 3, PLANE_BYTES = UNIT + 64;                           // no bank conflicts
constexpr int ITEM_CHUNKS = CHUNKS < 2 ? 2 : CHUNKS, ITEM_WORDS = 2 * ITEM_CHUNKS;  // of a lane: what whole cells cover, two chunks at least

// Of bytes 0 and 2 of word `index` of a lane's codes of an item (`high` 0), or 1 and 3: the pair that lies there, and at which bit.
DEVICE constexpr int pair_at(int index, int high) {
    if (BITS == 8) return index * 2 + high;
    if (BITS == 4) return index / 2 * 4 + index % 2 + high * 2;
    if (BITS == 2) return index + high * 4;
    if (index < 6) return index / 2 * 5 + index % 2 + high * 3;
    return index == 6 ? 2 + high * 5 : 12 + high * 3;
}
DEVICE constexpr int bit_at(int index, int high) {
    if (BITS == 2) return index % 2 * 2;
    return BITS == 3 && index < 6 ? index % 2 * 3 + high : 0;
}

// Word INDEX of the codes of an item and a row: four codes.
template <int INDEX>
DEVICE word four_codes(const word* cells) {
    if constexpr (BITS == 8) return cells[INDEX / 2 * 2 * CELL_WORDS + INDEX % 2];
    if constexpr (BITS == 4) return cells[INDEX / 2 * 2 * CELL_WORDS] >> INDEX % 2 * 4 & 0x0F0F0F0Fu;
    if constexpr (BITS == 2) return cells[0] >> INDEX / 2 * 4 & (INDEX % 2 ? 0x0C0C0C0Cu : 0x03030303u);
    if constexpr (BITS == 3 && INDEX < 6) return cells[INDEX / 2] & (INDEX % 2 ? 0x70387038u : 0x0E070E07u);
    if constexpr (BITS == 3 && INDEX == 6) return select_bits(cells[1] << 2, 0x07000700u, cells[0] >> 6 & 0x00070007u);
    if constexpr (BITS == 3 && INDEX == 7) {
        word bits = select_bits(cells[0] >> 7, 0x01000100u, cells[2] >> 6 & 0x00070007u);
        return select_bits(cells[2] >> 5, 0x04000400u, select_bits(cells[1] >> 6, 0x02000200u, bits));
    }
}

// Products of chunks CHUNK … of a unit; `tokens`: the lane's plane and place in it.
template <int CHUNK, int END>
DEVICE void multiply_planes(int (&sums)[4], const word* words, const unsigned char* tokens) {
    if constexpr (CHUNK < END) {
        uint4 x = *(const uint4*)(tokens + CHUNK / 2 * 64);
        constexpr int index = CHUNK % ITEM_CHUNKS * 2;
        const word* cells = words + CHUNK / ITEM_CHUNKS * (ITEM_CHUNKS / CHUNKS) * 2 * CELL_WORDS;
        word a[4] = {four_codes<index>(cells), four_codes<index>(cells + CELL_WORDS), four_codes<index + 1>(cells), four_codes<index + 1>(cells + CELL_WORDS)};
        word b[4] = {four_codes<index + 2>(cells), four_codes<index + 2>(cells + CELL_WORDS), four_codes<index + 3>(cells), four_codes<index + 3>(cells + CELL_WORDS)};
        multiply_unsigned(sums, a, x.x, x.y);
        multiply_unsigned(sums, b, x.z, x.w);
        multiply_planes<CHUNK + 2, END>(sums, words, tokens);
    }
}

template <int INDEX>
DEVICE void put_words(unsigned char* place, const float (&values)[ITEM_CHUNKS * 8], int carried) {
    if constexpr (INDEX < ITEM_WORDS) {
        constexpr int low = pair_at(INDEX, 0) * 2, high = pair_at(INDEX, 1) * 2;
        const float base = 12582912.0f + 32896.0f;  // 1.5 2^23: whole numbers in the mantissa; 128 in each of the two lower bytes
        float first = as_float((word)(127 + carried - bit_at(INDEX, 0)) << 23), second = as_float((word)(127 + carried - bit_at(INDEX, 1)) << 23);
        word a = as_word(values[low] * first + base), b = as_word(values[high] * second + base);
        word c = as_word(values[low + 1] * first + base), d = as_word(values[high + 1] * second + base);
        word even = pick_bytes(a, b, 0x5140u), odd = pick_bytes(c, d, 0x5140u);
        word top = pick_bytes(pick_bytes(a, b, 0x0062u), pick_bytes(c, d, 0x0062u), 0x5410u);
        *(word*)place = ((top | 0x80808080u) - 0x40404040u) ^ 0x80808080u;
        *(word*)(place + PLANE_BYTES) = pick_bytes(even, odd, 0x7632u) ^ 0x80808080u;
        *(word*)(place + 2 * PLANE_BYTES) = pick_bytes(even, odd, 0x5410u) ^ 0x80808080u;
        put_words<INDEX + 1>(place + (INDEX % 4 == 3 ? 52 : 4), values, carried);
    }
}

// Makes the planes of a unit; `beside`: what zero points contribute, in column 0, and what takes the columns back.
DEVICE void put_planes(unsigned char* stage, float* beside, const half_word* x, int unit, int inputs, int lane) {
    constexpr int ITEMS = UNIT / 8 / ITEM_CHUNKS;  // a lane has one at most
    static_assert(ITEMS <= 32 && GROUP == 128, "a warp makes a unit at once");
    float values[ITEM_CHUNKS * 8], largest = 0.0f, sum = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < ITEM_CHUNKS; chunk++) {
        int input = unit * UNIT + (lane / 4 * ITEM_CHUNKS + chunk) * 32 + lane % 4 * 8;
        uint4 raw = {0, 0, 0, 0};
        if (lane < ITEMS && input < inputs) raw = load_now(x + input);
        const word* words = (const word*)&raw;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float value = from_number((half_word)(words[i / 2] >> i % 2 * 16));
            values[chunk * 8 + i] = value, sum += value;
            largest = maximum(largest, magnitude(value));
        }
    }
    int carried = 148 - (int)(warp_maximum(as_word(largest)) >> 23);  // the largest times 2^carried is in [2^21, 2^22)
    carried = carried < 126 ? carried : 126;
    if (lane < ITEMS) put_words<0>(stage + lane / 4 * (ITEM_CHUNKS * 32) + lane % 4 * 16, values, carried);
#pragma unroll
    for (int distance = 1; distance < GROUP / 8 / ITEM_CHUNKS; distance *= 2) sum += from_lane(sum, distance);
    constexpr int lanes = GROUP / 8 / ITEM_CHUNKS;  // to a group
    float zero = sum * as_float((word)(111 + carried) << 23) * (ZEROS ? 1.0f : -(float)(1 << (BITS - 1)));  // 2^(carried − 16)
    if (lane < ITEMS) {
        for (int column = lane % lanes; column < WIDTH; column += lanes) beside[lane / lanes * WIDTH + column] = column == 0 ? zero : 0.0f;
    }
    if (lane < WIDTH) beside[GROUPS_OF_UNIT * WIDTH + lane] = lane < PLANES ? as_float((word)(143 - carried - 8 * lane) << 23) : 0.0f;
}
