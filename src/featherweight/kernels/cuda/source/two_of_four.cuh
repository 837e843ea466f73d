// The matrix unit takes kept weights and their places as they are: BITS 4, codes decoded to (q − z), exact; or 16, the values.
//
// A step is 32 inputs, of which 16 are stored: a lane's operand is eight of them, four pairs (kept neighbours of a four) in turn of
// the rows l / 4 and l / 4 + 8: fours t, then t + 4, for t = l % 4. Places have two bits each; a word of them serves two steps:
// lanes 0 and 1 of every four hold those of the first step, 2 and 3 of the second, for the step's first and last 16 inputs, the
// upper row in the lower half.
//
// A chunk: operands, in 16s of bytes, [loads][32 lanes]; a word of places for each pair of steps, 16 bytes a lane; for codes, scales of
// GROUP inputs each, [group][8], two rows eight apart in a word, and zero points alike, in half a word.
constexpr int STEPS = CHUNK / 32, OPERANDS = BITS == 16 ? STEPS : STEPS / 4, PLACES_AT = OPERANDS * 512, SCALES_AT = PLACES_AT + 512;
constexpr int GROUPS = CHUNK / GROUP;
constexpr int CHUNK_BYTES = SCALES_AT + (BITS == 16 ? 0 : GROUPS * 32 + (ZEROS ? GROUPS * 16 : 0));

constexpr int SPAN_BLOCKS = BITS == 16 || GROUP <= 64 ? 1 : GROUP / 64;
constexpr bool HELD = false;

// The lowest four bits of both halves of `codes`, less `zero`: exact.
DEVICE word centred(word codes, word zero) {
    return multiply_add(select_bits(codes, 0x000F000Fu, MAGIC), power_of_two(0), zero | MAGIC | 0x80008000u);
}

struct Chunk {
    uint4 operands[OPERANDS], places;
#if BITS != 16
    word scales[GROUPS];
    Sums group;
#if ZEROS
    word zeros[GROUPS];
#endif
#endif

    DEVICE void load(const unsigned char* chunk, int lane) {
        const uint4* all = (const uint4*)chunk;
#pragma unroll
        for (int load = 0; load < OPERANDS; load++) operands[load] = all[load * 32 + lane];
        places = all[OPERANDS * 32 + lane];
#if BITS != 16
#pragma unroll
        for (int index = 0; index < GROUPS; index++) {
            scales[index] = ((const word*)(chunk + SCALES_AT))[index * 8 + lane / 4];
#if ZEROS
            zeros[index] = ((const half_word*)(chunk + SCALES_AT + GROUPS * 32))[index * 8 + lane / 4];
#endif
        }
        group = Sums{};
#endif
    }

    template <int STEP>
    DEVICE void decode(word (&a)[4]) const {
#if BITS == 16
        a[0] = operands[STEP].x, a[1] = operands[STEP].y, a[2] = operands[STEP].z, a[3] = operands[STEP].w;
#else
        const uint4& load = operands[STEP / 4];
        word codes = STEP % 4 == 0 ? load.x : STEP % 4 == 1 ? load.y : STEP % 4 == 2 ? load.z : load.w;
#if ZEROS
        word both = zeros[STEP * 32 / GROUP], upper = pick_bytes(both, 0, 0x4040u), lower = pick_bytes(both, 0, 0x4141u);
#else
        word upper = 0x00080008u, lower = upper;
#endif
        a[0] = centred(codes, upper);
        a[1] = centred(codes >> 4, lower);
        a[2] = centred(codes >> 8, upper);
        a[3] = centred(codes >> 12, lower);
#endif
    }

    template <int STEP>
    DEVICE void multiply_step(Sums& sums, const uint4 (&x)[COLUMNS][2]) {
        word a[4], here = STEP / 2 == 0 ? places.x : STEP / 2 == 1 ? places.y : STEP / 2 == 2 ? places.z : places.w;
        decode<STEP>(a);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#if BITS == 16
            multiply_sparse<STEP % 2>(STEP % 2 ? sums.odd[column] : sums.value[column], a, x[column][STEP % 2], here);
#else
            multiply_sparse<STEP % 2>(group.value[column], a, x[column][STEP % 2], here);
#endif
        }
#if BITS != 16
        if constexpr ((STEP + 1) * 32 % GROUP == 0) {
            word pair = scales[STEP * 32 / GROUP];
            float upper = from_scale((half_word)(pair & 0xFFFFu)), lower = from_scale((half_word)(pair >> 16));
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
                for (int part = 0; part < 4; part++) {
                    sums.value[column][part] += (part < 2 ? upper : lower) * group.value[column][part];
                    group.value[column][part] = 0.0f;
                }
            }
        }
#endif
    }

    DEVICE void finish(Sums&, const uint2 (&)[COLUMNS]) const {}

    template <int BLOCK>
    DEVICE void multiply(Sums& sums, const uint4 (&x)[COLUMNS][2], int) {
        multiply_step<2 * BLOCK>(sums, x);
        multiply_step<2 * BLOCK + 1>(sums, x);
    }
};

// Lane t reads the eight numbers of a step that meet its part of the operand: pairs 2 t of every eight inputs.
DEVICE int pair_place(int input, int pair) {
    int within = input % 32;
    return input - within + (within % 8 / 2 + pair) * 8 + within / 8 * 2;
}

#define NORMALIZED 0
#define GROUP_SUMS 0
#define DIAGONAL 0
constexpr float LOWER = 1.0f, GROUP_FACTOR = 1.0f;
#include "inputs.cuh"
#include "nothing.cuh"
