// Weights beside the codes of a chunk: 16 at a time are the two operands of a step of the matrix unit, one weight in each of its inputs.
//
// Records lie in steps of 64 bytes: lane t has those at inputs 2 t and 2 t + 1 of a step, of a tile's upper eight rows, then those at
// 2 t + 8 and 2 t + 9, of the lower: two words of two fp16 values, two of where they belong. These 16 bits are twice the place of
// the input in shared memory (bits 1 to 8) and the bit of the row: 9 to 15, then 0; none in what fills up a step.
#pragma once

struct Extra {
    static constexpr int HELD = 4;  // steps that a warp asks for before the chunk's codes
    int next, end, coming, coming_end;  // steps of this chunk, and of the one after
    float inverse;
    word shift;  // brings the bit of the lane's row to the top
    uint4 held[HELD];

    DEVICE Extra(const Work& work, int lane) : inverse(1.0f / work.factor), shift(lane / 4 < 7 ? 6 - lane / 4 : 15) {}

    DEVICE void look_ahead(const Work& work, const Run& run, int unit, int end) {
        if (unit >= end) return;
        const int* here = work.list_starts + run.chunk_of(work, unit);
        coming = (int)load_word(here);
        coming_end = (int)load_word(here + 1);
    }
    DEVICE uint4 step(const Work& work, int index, int lane) const { return load_stream(work.list + (long long)index * 4 + lane % 4); }
    DEVICE void ask(const Work& work, int lane) {
        next = coming, end = coming_end;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (next + i < end) held[i] = step(work, next + i, lane);
        }
    }
    DEVICE void add_step(float (&found)[COLUMNS][4], const uint4& records, const unsigned char* const (&rows)[COLUMNS], const word (&swizzle)[COLUMNS]) const {
        word a[4] = {records.x & pick_bytes(records.z << shift, 0, 0xBB99u), 0, 0, records.y & pick_bytes(records.w << shift, 0, 0xBB99u)};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            word b[2], places[2] = {records.z, records.w};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                word low = *(const half_word*)(rows[column] + ((places[i] & 0x1FEu) ^ swizzle[column]));
                word high = *(const half_word*)(rows[column] + ((places[i] >> 16 & 0x1FEu) ^ swizzle[column]));
                b[i] = low | high << 16;
            }
            multiply_fp16(found[column], a, b[0], b[1]);
        }
    }
    // To a chunk's sums.
    DEVICE void add(const Work& work, Sums& sums, const Inputs& inputs, int chunk, int lane) {
        if (next >= end) return;
        const unsigned char* rows[COLUMNS];
        word swizzle[COLUMNS];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            int token = inputs.token_of(column, lane, work.tokens);
            rows[column] = (const unsigned char*)(inputs.numbers + token * inputs.stride + chunk * CHUNK);
            swizzle[column] = 2 * inputs.swizzle(token);
        }
        float found[COLUMNS][4] = {};
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (next + i < end) add_step(found, held[i], rows, swizzle);
        }
#pragma unroll 1
        for (next += HELD; next < end; next++) add_step(found, step(work, next, lane), rows, swizzle);
        float factor = DIAGONAL && lane % 4 ? 0.0f : inverse;  // lanes of a row have the same sum there
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) sums.value[column][part] += found[column][part] * (part < 2 ? factor : factor * (1.0f / LOWER));
        }
    }
};
