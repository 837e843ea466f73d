// Kept values lie one after the other, exactly as many as there are, by step (16 inputs), lane and place in the lane's operand; four
// at a time their lower bytes, then their upper bytes, so that one byte permutation puts four bytes in their places.
//
// A chunk: of each step the number of values before it, 16 half words; then for every lane four words: bit 4 e + s of word w tells
// whether element e of the lane's operand of step 4 w + s is kept, where e 2 a and 2 a + 1 are the halves of its word a; then the values.
// Chunks differ in length, `chunk_starts` tells where they lie; SLOT_BYTES is room for the longest.
#include "digits.cuh"

constexpr int MASKS_AT = 32, KEPT_AT = MASKS_AT + 512, CHUNK_BYTES = SLOT_BYTES;
constexpr bool HELD = true;

struct Chunk {
    const unsigned char* bytes;
    word masks[4], before[4], starts[8];  // `before`: of four steps, the number of values of the lanes before; starts of two steps each

    DEVICE void load(const unsigned char* chunk, int lane) {
        bytes = chunk;
        *(uint4*)masks = ((const uint4*)(chunk + MASKS_AT))[lane];
        *(uint4*)starts = ((const uint4*)chunk)[0];
        *(uint4*)(starts + 4) = ((const uint4*)chunk)[1];
#pragma unroll
        for (int four = 0; four < 4; four++) {
            word own = 0;
#pragma unroll
            for (int step = 3; step >= 0; step--) own = append_byte(own, count_bits(masks[four] & 0x11111111u << step));
            before[four] = own;
#pragma unroll
            for (int apart = 1; apart < 32; apart *= 2) before[four] = add_lane_before(before[four], apart);
            before[four] -= own;
        }
    }

    // Four elements as two operand words, from their lower and their upper bytes.
    static DEVICE void widen(word& first, word& second, word lower, word upper) {
        first = pick_bytes(lower, upper, 0x5140u);
        second = pick_bytes(lower, upper, 0x7362u);
    }

    // Operand of a step.
    template <int STEP>
    DEVICE void decode(word (&a)[4]) const {
        constexpr int four = STEP / 4, within = STEP % 4;
        word at = add_byte<within>(before[four], take_half<STEP % 2>(starts[STEP / 2]));
        const uint2* values = (const uint2*)(bytes + KEPT_AT + (2 * at & ~7u));
        uint2 loaded[3] = {values[0], values[1], values[2]};
        word low[2] = {shift_pair(loaded[0].x, loaded[1].x, 8 * at), shift_pair(loaded[1].x, loaded[2].x, 8 * at)};
        word high[2] = {shift_pair(loaded[0].y, loaded[1].y, 8 * at), shift_pair(loaded[1].y, loaded[2].y, 8 * at)};
        word there = within == 3 ? masks[four] >> 3 & 0x11111111u : masks[four] & 0x11111111u << within;
        word places = there * (0x1111110Cu >> within % 3) + 0x44444444u;  // before every element, and 4 more if it is not there
        word last = take_upper(places), kept = pick_bytes(masks[four] << (7 - within), masks[four] << (3 - within), 0xFBEAu);
        widen(a[0], a[1], pick_bytes(low[0], 0, places), pick_bytes(high[0], 0, places));
        widen(a[2], a[3], pick_bytes(low[0], low[1], last) & kept, pick_bytes(high[0], high[1], last) & kept);
    }

    template <int STEP>
    DEVICE void multiply_step(Sums& sums, const uint4 (&x)[COLUMNS][2]) const {
        word a[4];
        decode<STEP>(a);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const uint4& both = x[column][STEP % 4 / 2];
            multiply_tile(STEP % 2 ? sums.odd[column] : sums.value[column], a, STEP % 2 ? both.z : both.x, STEP % 2 ? both.w : both.y);
        }
    }

    template <int BLOCK>
    DEVICE void multiply(Sums& sums, const uint4 (&x)[COLUMNS][2], int) const {
        multiply_step<4 * BLOCK>(sums, x);
        multiply_step<4 * BLOCK + 1>(sums, x);
        multiply_step<4 * BLOCK + 2>(sums, x);
        multiply_step<4 * BLOCK + 3>(sums, x);
    }
};

// Lane t reads eight numbers at a time, four of either of two steps; four consecutive inputs lie together.
DEVICE int pair_place(int input, int pair) {
    int within = input % 64, step = within / 16;
    return input - within + step / 2 * 32 + within % 16 / 4 * 8 + step % 2 * 4 + 2 * pair;
}

#define NORMALIZED 0
#define GROUP_SUMS 0
#define DIAGONAL 0
constexpr float LOWER = 1.0f, GROUP_FACTOR = 1.0f;
#include "inputs.cuh"
#include "nothing.cuh"
