// Kept values lie one after the other, exactly as many as there are, by step (16 inputs), lane and place in the lane's operand.
//
// A chunk: of each step the number of values before it, 16 half words; then for every lane 16 bytes, a byte for each step: bit
// 2 a + h tells whether element a of the lane's operand is kept in its lower (h 0) or upper half; then the values. Chunks differ in
// length, `chunk_starts` tells where they lie; SLOT_BYTES is room for the longest.
constexpr int MASKS_AT = 32, KEPT_AT = MASKS_AT + 512, CHUNK_BYTES = SLOT_BYTES;
constexpr int SPAN_BLOCKS = 1;
constexpr bool HELD = true;

struct Chunk {
    const unsigned char* bytes;
    word masks[4], before[4];  // four steps to a word: bits of this lane, number of those of the lanes before it

    static DEVICE word count_bits(word bits) {  // of each byte
        bits -= bits >> 1 & 0x55555555u;
        bits = (bits & 0x33333333u) + (bits >> 2 & 0x33333333u);
        return bits + (bits >> 4) & 0x0F0F0F0Fu;
    }

    DEVICE void load(const unsigned char* chunk, int lane) {
        bytes = chunk;
        *(uint4*)masks = ((const uint4*)(chunk + MASKS_AT))[lane];
#pragma unroll
        for (int four = 0; four < 4; four++) {
            word sum = from_lane_before(count_bits(masks[four]), 1);
#pragma unroll
            for (int apart = 1; apart < 32; apart *= 2) sum += from_lane_before(sum, apart);
            before[four] = sum;
        }
    }

    template <int STEP>
    DEVICE void multiply_step(Sums& sums, const uint4 (&x)[COLUMNS][2]) const {
        word mask = masks[STEP / 4] >> STEP % 4 * 8, at = before[STEP / 4] >> STEP % 4 * 8 & 255u, a[4];
        const half_word* kept = (const half_word*)(bytes + KEPT_AT) + ((const half_word*)bytes)[STEP] + at;
#pragma unroll
        for (int element = 0; element < 4; element++) {
            word low = 0, high = 0;
            if (mask & 1u << 2 * element) low = *kept++;
            if (mask & 2u << 2 * element) high = *kept++;
            a[element] = pick_bytes(low, high, 0x5410u);
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            const uint4& both = x[column][STEP % 4 / 2];
            multiply_tile(STEP % 2 ? sums.odd[column] : sums.value[column], a, STEP % 2 ? both.z : both.x, STEP % 2 ? both.w : both.y);
        }
    }

    DEVICE void finish(Sums&, const uint2 (&)[COLUMNS]) const {}

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
#include "inputs.cuh"
#include "nothing.cuh"
