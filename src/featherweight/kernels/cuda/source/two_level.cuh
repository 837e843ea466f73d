// A group is one step of the matrix unit, so scales are applied to the weights, in fp16: Σ s (q − z) x = Σ (q S) x − Σ (s z) X, where X is
// the sum of a group's activations: a step of the matrix unit for 16 groups.
//
// A code q taken out of a word by one AND is the fp16 number q 2^(p − 24), subnormal and exact, where p is its place in the half; S is
// the scale times 2^(24 − p). Of every four groups the first two have their codes at place FIRST, the others at SECOND. All
// scales carry a power of two (the inverse of `factor`) that brings S into fp16's range.
//
// A chunk: codes [4 BITS words][32 lanes], in 16s of bytes; of every group the step and minus the zero of its scales' second grid,
// then of its zeros', fp16, the first times the power of two that makes S; codes of scales and zeros, a word and a half
// (SECOND_BITS 3) or two words (4) for each lane: those of groups 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 for t = lane % 4. Rows eight
// apart share a word, one in either half.
constexpr int FIRST = BITS == 4 ? 4 : BITS == 3 ? 3 : 4, SECOND = BITS == 4 ? 4 : 6;
constexpr int CODE_LOADS = BITS, CONSTANTS_AT = 512 * BITS, SECOND_AT = CONSTANTS_AT + 128;
constexpr int CHUNK_BYTES = SECOND_AT + (SECOND_BITS == 3 ? 192 : 256);
constexpr int SPAN_BLOCKS = 1;
constexpr bool HELD = false;

constexpr word FIELD = twice((1u << BITS) - 1);

DEVICE constexpr word fp16_power(int exponent) {  // both halves; subnormal below 2^-14
    return twice(exponent >= -14 ? (word)(exponent + 15) << 10 : 1u << (exponent + 24));
}

// Field at bit PLACE of both halves of a word, brought to bit TO.
template <int PLACE, int TO>
DEVICE word field_at(word bits) {
    if constexpr (PLACE > TO) return bits >> (PLACE - TO) & FIELD << TO;
    else return bits << (TO - PLACE) & FIELD << TO;
}

// Pair PAIR (0 … 15) of a block's BITS words: element PAIR % 4 of the operand of step PAIR / 4.
template <int PAIR>
DEVICE word code_pair(const word* words) {
    constexpr int to = PAIR < 8 ? FIRST : SECOND;
#if BITS == 4
    return field_at<PAIR % 4 * 4, to>(words[PAIR / 4]);
#elif BITS == 2
    // places 0 2 | 4 6 | 8 10 | 12 14 of words 0 and 1: the lower of each goes to FIRST, the upper to SECOND
    return field_at<PAIR % 4 * 4 + (PAIR < 8 ? 0 : 2), to>(words[PAIR % 8 / 4]);
#else
    if constexpr (PAIR < 3) return field_at<3, to>(words[PAIR]);
    else if constexpr (PAIR < 6) return field_at<9, to>(words[PAIR - 3]);
    else if constexpr (PAIR < 8) return field_at<0, to>(words[PAIR - 6]);
    else if constexpr (PAIR < 11) return field_at<6, to>(words[PAIR - 8]);
    else if constexpr (PAIR < 14) return field_at<12, to>(words[PAIR - 11]);
    else if constexpr (PAIR == 14) return field_at<0, to>(words[2]);
    else {
        word bits = words[0] >> 9 & 0x00400040u;
        bits = select_bits(words[1] >> 8, 0x00800080u, bits);
        return select_bits(words[2] >> 7, 0x01000100u, bits);
    }
#endif
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
    word scale[4], offset[4];  // S and −s z of groups 2 t, 2 t + 1, 2 t + 8, 2 t + 9, rows eight apart in the halves

    template <int GROUP, int SCALE_PLACE, int ZERO_PLACE>
    DEVICE void decode_group(word scales, word zeros, word scale_grid, word zero_grid, word down) {
        scale[GROUP] = second_number(second_code<SCALE_PLACE>(scales), scale_grid);
        word zero = second_number(second_code<ZERO_PLACE>(zeros), zero_grid);
        offset[GROUP] = multiply_two_fp16(multiply_two_fp16(scale[GROUP], down), zero);
    }

    DEVICE void load(const unsigned char* chunk, int lane) {
        const uint4* all = (const uint4*)chunk;
#pragma unroll
        for (int load = 0; load < CODE_LOADS; load++) *(uint4*)(codes + 4 * load) = all[load * 32 + lane];
        const uint4* grids = (const uint4*)(chunk + CONSTANTS_AT) + lane % 4;
        uint4 a = grids[0], b = grids[4];
        word first = ((const word*)(chunk + SECOND_AT))[lane];
        word down = (lane % 2 ? fp16_power(SECOND - 24) : fp16_power(FIRST - 24)) | 0x80008000u;  // groups 2 t are at either place
#if SECOND_BITS == 3
        word bytes = ((const half_word*)(chunk + SECOND_AT + 128))[lane];
        word second = pick_bytes(bytes, 0, 0x4140u);
        word last = select_bits(first >> 7, 0x01000100u, second & 0x00C000C0u);
        decode_group<0, 0, 12>(first, first, a.x, a.y, down);
        decode_group<1, 3, 0>(first, second, a.z, a.w, down);
        decode_group<2, 6, 3>(first, second, b.x, b.y, down);
        decode_group<3, 9, 6>(first, last, b.z, b.w, down);
#else
        word second = ((const word*)(chunk + SECOND_AT + 128))[lane];
        decode_group<0, 0, 0>(first, second, a.x, a.y, down);
        decode_group<1, 4, 4>(first, second, a.z, a.w, down);
        decode_group<2, 8, 8>(first, second, b.x, b.y, down);
        decode_group<3, 12, 12>(first, second, b.z, b.w, down);
#endif
    }

    template <int BLOCK, int STEP>
    DEVICE void multiply_step(Sums& sums, const uint4 (&x)[COLUMNS][2], int lane) const {
        constexpr int group = 4 * BLOCK + STEP, owner = group % 8 / 2, index = group / 8 * 2 + group % 2;
        const word* words = codes + BLOCK * BITS;
        word s = word_from_lane(scale[index], (lane & ~3) + owner), a[4];
        a[0] = multiply_by_half<0>(code_pair<4 * STEP>(words), s);
        a[1] = multiply_by_half<1>(code_pair<4 * STEP + 1>(words), s);
        a[2] = multiply_by_half<0>(code_pair<4 * STEP + 2>(words), s);
        a[3] = multiply_by_half<1>(code_pair<4 * STEP + 3>(words), s);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const uint4& both = x[column][STEP / 2];
            multiply_fp16(STEP % 2 ? sums.odd[column] : sums.value[column], a, STEP % 2 ? both.z : both.x, STEP % 2 ? both.w : both.y);
        }
    }

    template <int BLOCK>
    DEVICE void multiply(Sums& sums, const uint4 (&x)[COLUMNS][2], int lane) {
        multiply_step<BLOCK, 0>(sums, x, lane);
        multiply_step<BLOCK, 1>(sums, x, lane);
        multiply_step<BLOCK, 2>(sums, x, lane);
        multiply_step<BLOCK, 3>(sums, x, lane);
    }

    // The zeros' part, from the sums of the activations of each group.
    DEVICE void finish(Sums& sums, const uint2 (&groups)[COLUMNS]) const {
        word a[4] = {pick_bytes(offset[0], offset[1], 0x5410u), pick_bytes(offset[0], offset[1], 0x7632u),
                     pick_bytes(offset[2], offset[3], 0x5410u), pick_bytes(offset[2], offset[3], 0x7632u)};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) multiply_fp16(sums.value[column], a, groups[column].x, groups[column].y);
    }
};

// Lane t reads eight numbers at a time, four of either of two steps; four consecutive inputs lie together.
DEVICE int pair_place(int input, int pair) {
    int within = input % 64, step = within / 16;
    return input - within + step / 2 * 32 + within % 16 / 4 * 8 + step % 2 * 4 + 2 * pair;
}

#define NORMALIZED 1
#define GROUP_SUMS 1
#include "inputs.cuh"

// Weights beside the codes: a record is an fp16 value, one bit for the row (0, or 1 for the one eight below), 15 for the place of the
// input in shared memory. Lane l holds records of rows l / 4 and l / 4 + 8; all lanes at a time those of the upper, or of the lower.
// The warps of the block that has a tile's first chunk take the rows of its list in turn.
struct Extra {
    static constexpr int HELD = 4;  // rows of records that a warp asks for before the tile's chunks
    const int* starts;
    int segments, segment, length, first;  // of a tile, this split's first and their number, its first input
    int next, end, coming, coming_end;     // rows of the list: this warp's next, the tile's end; those of the tile after
    word records[HELD];

    DEVICE Extra(const Work& work, const Run& run, int tile) {
        segments = (work.tile_chunks + work.segment_chunks - 1) / work.segment_chunks;
        int last = (run.first_chunk + run.length + work.segment_chunks - 1) / work.segment_chunks;
        first = run.first_chunk * CHUNK;
        segment = run.first_chunk / work.segment_chunks;
        length = last - segment;
        starts = work.list_starts;
        look_ahead(work, tile);
    }
    DEVICE void look_ahead(const Work& work, int tile) {
        if (!starts) return;
        const int* here = starts + (tile < work.tiles ? tile : 0) * segments + segment;
        coming = here[0];
        coming_end = here[length];
    }
    DEVICE word record(const Work& work, int row, int lane) const { return load_word(work.list + (long long)row * 32 + lane); }
    DEVICE void begin(const Work& work, int tile, bool mine, int warp, int lane) {
        next = end = 0;
        if (!starts) return;
        if (mine) next = coming + warp, end = coming_end;
#pragma unroll
        for (int held = 0; held < HELD; held++) {
            if (next + held * WARPS < end) records[held] = record(work, next + held * WARPS, lane);
        }
        look_ahead(work, tile + 1);
    }
    DEVICE void add_number(float (&found)[8 * COLUMNS], float value, int place, const Inputs& inputs, int tokens) const {
        constexpr int each = SINGLE ? 1 : 4;
        const half_word* number = inputs.numbers + place;
        const float* factor = inputs.factors + place / CHUNK * 8 * COLUMNS;
#pragma unroll
        for (int token = 0; token < (SINGLE ? 1 : 8 * COLUMNS); token += each) {
            if (token >= tokens) break;
            float factors[4] = {factor[token]};
            if (!SINGLE) *(float4*)factors = *(const float4*)(factor + token);
#pragma unroll
            for (int i = 0; i < each; i++) {
                int here = SINGLE || token + i < tokens ? token + i : 0;
                found[token + i] += from_fp16(number[here * inputs.stride]) * value * factors[i];
            }
        }
    }
    DEVICE void add_record(float (&found)[2][8 * COLUMNS], word record, const Inputs& inputs, int tokens) const {
        float value = from_fp16((half_word)(record >> 16));
        int place = (int)(record & 0x7FFF) - first;
        if (record & 0x8000) add_number(found[1], value, place, inputs, tokens);
        else add_number(found[0], value, place, inputs, tokens);
    }
    DEVICE void add(const Work& work, float (&sums)[COLUMNS][4], const Inputs& inputs, int lane) {
        if (next >= end) return;
        float found[2][8 * COLUMNS] = {};
#pragma unroll
        for (int held = 0; held < HELD; held++) {
            if (next < end) add_record(found, records[held], inputs, work.tokens);
            next += WARPS;
        }
        for (; next < end; next += WARPS) add_record(found, record(work, next, lane), inputs, work.tokens);
        float inverse = 1.0f / work.factor;
#pragma unroll
        for (int token = 0; token < 8 * COLUMNS; token++) {
            if (token >= work.tokens) break;
#pragma unroll
            for (int row = 0; row < 2; row++) {
                float sum = found[row][token];
                sum += from_lane_xor(sum, 1);
                sum += from_lane_xor(sum, 2);
                if (token % 8 / 2 == lane % 4) sums[token / 8][row * 2 + token % 2] += sum * inverse;
            }
        }
    }
};
