// Kept codes lie one after the other, four bits each; they become bytes of the matrix unit's operand, 16 (q − 8), and activations
// integers of two bytes: sums of a group are exact.
//
// 64 inputs are two steps of 32, near and far. A lane holds eight codes of either of two rows, eight apart, in each: four windows
// s = 0 … 3: upper row far, upper row near, lower row near, lower row far. Codes of the upper row lie below a place of the lane, those
// of the lower row from there on, the first of a window nearest to it: one look at 32 codes around that place shows all four windows.
//
// A chunk: for every eight lanes the places, in codes, where theirs of each 64 inputs begin, 4 half words; then for every lane four
// words: bit 4 e + s of word w tells whether element e of window s of inputs 64 w … is kept; scales of GROUP inputs each, [group][8],
// two rows eight apart in a word, and zero points alike, in half a word; then the codes, q ^ 8. Chunks differ in length.
#include "digits.cuh"
#include "digit_inputs.cuh"
#include "nothing.cuh"

constexpr int GROUPS = CHUNK / GROUP, MASKS_AT = 32, SCALES_AT = MASKS_AT + 512, ZEROS_AT = SCALES_AT + GROUPS * 32;
constexpr int CODES_AT = ZEROS_AT + (ZEROS ? GROUPS * 16 : 0), CHUNK_BYTES = SLOT_BYTES;
constexpr int PLANES = SINGLE ? 1 : 2;  // one token's two digits are two columns of one product
constexpr bool HELD = true;

// Bytes of eight elements, the first four and the last four; dropped ones are `fill`. UP: the first code is the window's lowest.
template <int WINDOW, bool UP>
DEVICE void place_eight(word& first, word& second, word window, word masks, word fill) {
    word there = WINDOW == 3 ? masks >> 3 & 0x11111111u : masks & 0x11111111u << WINDOW;
    word places = there * (0x1111110Cu >> WINDOW % 3) + 0x44444444u;  // before every element, and 4 more if it is not there
    word low = window << 4;
    word early = pick_bytes(low, window, UP ? 0x5140u : 0x2637u), late = pick_bytes(low, window, UP ? 0x7362u : 0x0415u);
    word kept = pick_bytes(masks << (7 - WINDOW), masks << (3 - WINDOW), 0xFBEAu);
    first = pick_bytes(early, fill, places) & 0xF0F0F0F0u;
    second = pick_bytes(early, late, take_upper(places)) & kept & 0xF0F0F0F0u;
    if (ZEROS) second |= fill & ~kept;
}

struct Chunk {
    const unsigned char* bytes;
    const int* group_sums[COLUMNS][2];  // of the lane's tokens' activations, as `factors`
    float2 factors[COLUMNS];
    word masks[4], places, starts[2];  // `places`: of each 64 inputs, codes from the eight lanes' start to the lane's place
    int group[COLUMNS][PLANES][4];

    DEVICE void load(const unsigned char* chunk, int lane) {
        bytes = chunk;
        *(uint4*)masks = ((const uint4*)(chunk + MASKS_AT))[lane];
        *(uint2*)starts = ((const uint2*)chunk)[lane / 8];
        word all = 0, upper = 0;
#pragma unroll
        for (int four = 3; four >= 0; four--) {
            all = append_byte(all, count_bits(masks[four]));
            upper = append_byte(upper, count_bits(masks[four] & 0x33333333u));
        }
        places = all;
#pragma unroll
        for (int apart = 1; apart < 8; apart *= 2) places = add_before_in_eight(places, apart);
        places += upper - all;
        clear();
    }

    // What is known of the activations of the chunk.
    DEVICE void meet(const Inputs& inputs, int tokens, int chunk, int lane) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            int token = column * 8 + lane % 4 * 2;
            factors[column] = *(const float2*)(inputs.factors + chunk * 8 * COLUMNS + token);
            group_sums[column][0] = inputs.sums(chunk, tokens) + (token < tokens ? token : 0) * 8;
            group_sums[column][1] = inputs.sums(chunk, tokens) + (token + 1 < tokens ? token + 1 : 0) * 8;
        }
    }

    DEVICE void clear() {
#pragma unroll
        for (int entry = 0; entry < COLUMNS * PLANES * 4; entry++) group[entry / (4 * PLANES)][entry / 4 % PLANES][entry % 4] = 0;
    }

    // 16 times the zero point less 8, in every byte, of two rows.
    DEVICE void fills(word (&fill)[2], int index, int lane) const {
        word both = ZEROS ? ((const half_word*)(bytes + ZEROS_AT))[index * 8 + lane / 4] : 0;
        fill[0] = ZEROS ? pick_bytes(both << 4, 0, 0) ^ 0x80808080u : 0;
        fill[1] = ZEROS ? pick_bytes(both << 4, 0, 0x1111u) ^ 0x80808080u : 0;
    }

    // Operands of the two steps of 64 inputs.
    template <int BLOCK>
    DEVICE void decode(word (&near)[4], word (&far)[4], int lane) const {
        word mask = masks[BLOCK], at = add_byte<BLOCK>(places, take_half<BLOCK % 2>(starts[BLOCK / 2]));
        const word* codes = (const word*)(bytes + CODES_AT) + (int)(at >> 3);
        word loaded[5] = {codes[-2], codes[-1], codes[0], codes[1], codes[2]}, windows[4], fill[2], more[2];
#pragma unroll
        for (int i = 0; i < 4; i++) windows[i] = shift_pair(loaded[i], loaded[i + 1], 4 * at);
        windows[0] = shift_up(windows[0], windows[1], 4 * count_bits(mask & 0x22222222u));
        windows[3] = shift_down(windows[2], windows[3], 4 * count_bits(mask & 0x44444444u));
        fills(fill, BLOCK * 64 / GROUP, lane);
        fills(more, (BLOCK * 64 + 32) / GROUP, lane);
        place_eight<0, false>(far[0], far[2], windows[0], mask, more[0]);
        place_eight<1, false>(near[0], near[2], windows[1], mask, fill[0]);
        place_eight<2, true>(near[1], near[3], windows[2], mask, fill[1]);
        place_eight<3, true>(far[1], far[3], windows[3], mask, more[1]);
    }

    template <int STEP>
    DEVICE void multiply_step(Sums& sums, const word (&a)[4], const uint4 (&x)[COLUMNS][2], int lane) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int plane = 0; plane < PLANES; plane++) {
                const uint4& b = x[column][plane];
                multiply_signed(group[column][plane], a, STEP % 2 ? b.z : b.x, STEP % 2 ? b.w : b.y);
            }
        }
        if constexpr ((STEP + 1) * 32 % GROUP == 0) add_group<STEP * 32 / GROUP>(sums, lane);
    }

    template <int INDEX>
    DEVICE void add_group(Sums& sums, int lane) {
        word pair = ((const word*)(bytes + SCALES_AT))[INDEX * 8 + lane / 4], fill[2];
        float scale[2] = {from_scale((half_word)(pair & 0xFFFFu)), from_scale((half_word)(pair >> 16))};
        fills(fill, INDEX, lane);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part += SINGLE ? 2 : 1) {
                int sum = group[column][0][part] * 256 + (SINGLE ? group[column][0][part + 1] : group[column][PLANES - 1][part]);
                if (ZEROS) sum -= ((int)fill[part / 2] >> 24) * group_sums[column][part % 2][INDEX];
                sums.value[column][part] += scale[part / 2] * (part % 2 ? factors[column].y : factors[column].x) * (float)sum;
            }
        }
        clear();
    }

    template <int BLOCK>
    DEVICE void multiply(Sums& sums, const uint4 (&x)[COLUMNS][2], int lane) {
        word near[4], far[4];
        decode<BLOCK>(near, far, lane);
        multiply_step<2 * BLOCK>(sums, near, x, lane);
        multiply_step<2 * BLOCK + 1>(sums, far, x, lane);
    }
};

#define NORMALIZED 0
#define GROUP_SUMS 0
#define DIAGONAL 0
#define DIGITS 1
constexpr float LOWER = 1.0f;
