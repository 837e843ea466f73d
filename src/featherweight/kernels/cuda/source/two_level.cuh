// Σ s (q − z) x = s (Σ q x − z X) for every group of 16 inputs, where X is the sum of its activations.
//
// A code q taken out of a word by one AND is the fp16 number q 2^(p − 24), subnormal and exact, where p is its place in the half. S is
// the scale times 2^(24 − FIRST), and a power of two (the inverse of `factor`) that brings it into fp16's range.
//
// Lane l holds codes of rows l / 4 and l / 4 + 8, groups t, t + 4, t + 8 and t + 12 of a chunk, t = l % 4. A step of the matrix unit
// takes four inputs of each of four groups. With several tokens codes are scaled first: those of a tile's upper eight rows are
// brought to place FIRST, of the lower to SECOND, which LOWER makes up for. With one (DIAGONAL) column 2 t of the product is group t,
// column 2 t + 1 the one four on: it has activations in the rows of lane t and zeros in the others, and scales are applied to sums.
// Activations make up for the places of codes: pairs at the same inputs of both rows are at the same.
//
// A chunk: codes [4 BITS words][32 lanes], in 16s of bytes; of every group the step and minus the zero of its scales' second grid,
// then of its zeros', fp16, the first times the power of two that makes S, in the order of lanes; codes of scales and zeros, a word and
// a half (SECOND_BITS 3) or two words (4) for each lane. Rows eight apart share a word, one in either half.
constexpr int FIRST = BITS == 3 ? 3 : 4, SECOND = BITS == 4 ? 4 : 6;
constexpr int CODE_LOADS = BITS, CONSTANTS_AT = 512 * BITS, SECOND_AT = CONSTANTS_AT + 128;
constexpr int CHUNK_BYTES = SECOND_AT + (SECOND_BITS == 3 ? 192 : 256);
#define NORMALIZED 1
#define GROUP_SUMS 1
#define DIAGONAL SINGLE
constexpr bool HELD = false;
constexpr float GROUP_FACTOR = 1.0f / (1 << (24 - FIRST));  // of sums of activations, where DIAGONAL
constexpr float LOWER = DIAGONAL ? 1.0f : 1.0f / (1 << (SECOND - FIRST));

constexpr word FIELD = twice((1u << BITS) - 1);

DEVICE constexpr word fp16_power(int exponent) {  // both halves; subnormal below 2^-14
    return twice(exponent >= -14 ? (word)(exponent + 15) << 10 : 1u << (exponent + 24));
}

// Where pair PAIR of a group lies in its BITS words: inputs 2 (PAIR % 8) and the next of the upper row, then of the lower. Three bits
// fill 15 places; the bits of the last pair are the top ones of all three words.
DEVICE constexpr int word_of(int pair) {
    if (BITS == 4) return pair % 4;
    if (BITS == 2) return pair % 8 < 6 ? pair % 2 : pair / 8;
    return pair % 8 < 6 ? pair % 8 % 3 : pair == 14 ? 1 : (pair - 6) * 2;
}
DEVICE constexpr int place_of(int pair) {
    if (BITS == 4) return pair / 4 * 4;
    if (BITS == 2) return pair % 8 < 6 ? pair % 8 / 2 * 2 + pair / 8 * 10 : pair % 2 * 2 + 6;
    return pair % 8 < 6 ? pair % 8 / 3 * 3 + pair / 8 * 9 : 6;
}

// The lowest bit that is not read where it is; where a pair is with one token.
constexpr int TOP = BITS == 4 ? 8 : BITS == 2 ? 10 : 9;
DEVICE constexpr int read_place(int pair) { return place_of(pair) % TOP; }

// Field at bit PLACE of both halves of a word, brought to bit TO.
template <int PLACE, int TO>
DEVICE word field_at(word bits) {
    if constexpr (PLACE > TO) return bits >> (PLACE - TO) & FIELD << TO;
    else return bits << (TO - PLACE) & FIELD << TO;
}

template <int PAIR>
DEVICE word code_pair(const word* words) {
    constexpr int to = DIAGONAL ? read_place(PAIR) : PAIR < 8 ? FIRST : SECOND;
    if constexpr (BITS == 3 && PAIR == 15) {
        word bits = select_bits(words[0] >> 9, 0x00400040u, 0);
        bits = select_bits(words[1] >> 8, 0x00800080u, bits);
        return select_bits(words[2] >> 7, 0x01000100u, bits);
    } else {
        return field_at<place_of(PAIR), to>(words[word_of(PAIR)]);
    }
}

// What an input's activation is multiplied by where DIAGONAL.
DEVICE float place_factor(int pair) {
    int up = FIRST - read_place(pair);
    return as_float((word)(127 + up) << 23);
}

// Field of a second-level code, as an exact fp16 number.
template <int PLACE>
DEVICE word second_code(word bits) {
    constexpr int width = SECOND_BITS, shift = PLACE + width <= 10 ? 0 : width == 3 ? 6 : 8, to = PLACE - shift;
    word value = select_bits(bits >> shift, twice(((1u << width) - 1) << to), fp16_power(10 - to));
    return add_fp16(value, fp16_power(10 - to) | 0x80008000u);
}

// step (c − zero) of the codes of two rows; `grid` holds the step, then minus the zero.
DEVICE word second_number(word codes, word grid) { return multiply_by_half<0>(add_upper_half(codes, grid), grid); }

struct Chunk {
    word codes[4 * BITS];
    word scale[4], zero[4];  // S and z of groups t, t + 4, t + 8, t + 12, rows eight apart in the halves

    template <int GROUP, int SCALE_PLACE, int ZERO_PLACE>
    DEVICE void decode_group(word scales, word zeros, word scale_grid, word zero_grid) {
        scale[GROUP] = second_number(second_code<SCALE_PLACE>(scales), scale_grid);
        zero[GROUP] = second_number(second_code<ZERO_PLACE>(zeros), zero_grid);
    }

    DEVICE void load(const unsigned char* chunk, int lane) {
        const uint4* all = (const uint4*)chunk;
#pragma unroll
        for (int load = 0; load < CODE_LOADS; load++) *(uint4*)(codes + 4 * load) = all[load * 32 + lane];
        const uint4* grids = (const uint4*)(chunk + CONSTANTS_AT) + lane % 4 * 2;
        uint4 a = grids[0], b = grids[1];
        word first = ((const word*)(chunk + SECOND_AT))[lane];
#if SECOND_BITS == 3
        word bytes = ((const half_word*)(chunk + SECOND_AT + 128))[lane];
        word second = pick_bytes(bytes, 0, 0x4140u);
        word last = select_bits(first >> 7, 0x01000100u, second & 0x00C000C0u);
        decode_group<0, 0, 12>(first, first, a.x, a.y);
        decode_group<1, 3, 0>(first, second, a.z, a.w);
        decode_group<2, 6, 3>(first, second, b.x, b.y);
        decode_group<3, 9, 6>(first, last, b.z, b.w);
#else
        word second = ((const word*)(chunk + SECOND_AT + 128))[lane];
        decode_group<0, 0, 0>(first, second, a.x, a.y);
        decode_group<1, 4, 4>(first, second, a.z, a.w);
        decode_group<2, 8, 8>(first, second, b.x, b.y);
        decode_group<3, 12, 12>(first, second, b.z, b.w);
#endif
    }

    template <int BLOCK, int STEP>
    DEVICE void multiply_step(Sums& sums, const uint4 (&x)[COLUMNS][2]) const {
        constexpr int group = BLOCK / 2 * 2 + STEP / 2, pair = BLOCK % 2 * 4 + STEP % 2 * 2;
        const word* words = codes + group * BITS;
        word a[4] = {code_pair<pair>(words), code_pair<pair + 8>(words), code_pair<pair + 1>(words), code_pair<pair + 9>(words)};
        if (!DIAGONAL) {
            a[0] = multiply_by_half<0>(a[0], scale[group]);
            a[1] = multiply_by_half<1>(a[1], scale[group]);
            a[2] = multiply_by_half<0>(a[2], scale[group]);
            a[3] = multiply_by_half<1>(a[3], scale[group]);
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const uint4& both = x[column][STEP / 2];
            bool other = DIAGONAL ? BLOCK / 2 : STEP % 2;
            multiply_fp16(other ? sums.odd[column] : sums.value[column], a, STEP % 2 ? both.z : both.x, STEP % 2 ? both.w : both.y);
        }
    }

    template <int BLOCK>
    DEVICE void multiply(Sums& sums, const uint4 (&x)[COLUMNS][2], int) const {
        multiply_step<BLOCK, 0>(sums, x);
        multiply_step<BLOCK, 1>(sums, x);
        multiply_step<BLOCK, 2>(sums, x);
        multiply_step<BLOCK, 3>(sums, x);
    }

    // The zeros' part, from the sums of the activations of each group.
    DEVICE void finish(Sums& sums, const uint2 (&groups)[COLUMNS]) const {
        constexpr word down = (fp16_power(FIRST - 24) & 0xFFFFu) | (fp16_power(SECOND - 24) & 0xFFFF0000u) | 0x80008000u;
        word offset[4];
#pragma unroll
        for (int group = 0; group < 4; group++) offset[group] = multiply_two_fp16(multiply_two_fp16(scale[group], down), zero[group]);
        word a[4] = {pick_bytes(offset[0], offset[1], 0x5410u), pick_bytes(offset[0], offset[1], 0x7632u),
                     pick_bytes(offset[2], offset[3], 0x5410u), pick_bytes(offset[2], offset[3], 0x7632u)};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) multiply_fp16(sums.value[column], a, groups[column].x, groups[column].y);
    }

    // The same where products are those of groups, which are scaled here: what is added are a lane's parts of two rows.
    DEVICE void finish(Sums& sums, const Sums& products, float4 groups) const {
#pragma unroll
        for (int group = 0; group < 4; group++) {
            const float* product = (group < 2 ? products.value[0] : products.odd[0]) + group % 2;
            float x = (&groups.x)[group];
            sums.value[0][0] += from_fp16((half_word)scale[group]) * (product[0] - from_fp16((half_word)zero[group]) * x);
            sums.value[0][2] += from_fp16((half_word)(scale[group] >> 16)) * (product[2] - from_fp16((half_word)(zero[group] >> 16)) * x);
        }
    }
};

// A block is half of the inputs of eight groups: lane t reads those of one, then those of the group four on.
DEVICE int pair_place(int input, int pair) {
    int group = input / 16 % 16, within = input % 16;
    return input - input % 256 + group / 8 * 128 + within / 8 * 64 + group / 4 % 2 * 32 + group % 4 * 8 + within % 8 + 2 * pair;
}

#include "inputs.cuh"
#if LISTED
#include "records.cuh"
#else
#include "nothing.cuh"
#endif
