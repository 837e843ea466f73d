// Weights beside the codes, a list for every tile and segment of chunks. A step of it is one weight of each of the tile's 16 rows: 64
// bytes, of which lane t has rows 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: two fp16 values, twice the places of their inputs, and again.
//
// A step is one of the matrix unit, values on the diagonal of its first operand, the activations that belong to them in the other.
// With one token a lane multiplies two weights of every fourth step itself.
#pragma once

struct Extra {
    static constexpr int AHEAD = 4;  // loads in flight
    int segments, segment, length, first;  // of a tile, this split's first and their number, twice its first input

    DEVICE Extra(const Work& work, const Run& run, int) {
        segments = (work.tile_chunks + work.segment_chunks - 1) / work.segment_chunks;
        segment = run.first_chunk / work.segment_chunks;
        length = (run.first_chunk + run.length + work.segment_chunks - 1) / work.segment_chunks - segment;
        first = run.first_chunk * CHUNK * 2;
    }

#if SINGLE
    DEVICE static float product(word value, int place, const unsigned char* row) { return from_fp16((half_word)value) * from_fp16(*(const half_word*)(row + place)); }

    DEVICE void add(float (&found)[1][4], const Work& work, const Inputs& inputs, int tile, int lane) const {
        const int* here = work.list_starts + tile * segments + segment;
        const uint2* list = (const uint2*)work.list + lane % 8;
        const unsigned char* row = (const unsigned char*)inputs.plain - first;
        float sums[2] = {};
        int end = here[length];
        for (int step = here[0] + lane / 8; step - lane / 8 < end; step += 4 * AHEAD) {
            uint2 records[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                records[i].x = 0, records[i].y = (word)first * 0x10001u;
                if (step + 4 * i < end) records[i] = load_pair(list + (step + 4 * i) * 8ll);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                sums[0] += product(records[i].x, (int)(records[i].y & 0xFFFFu), row);
                sums[1] += product(records[i].x >> 16, (int)(records[i].y >> 16), row);
            }
        }
        int from = lane / 8 * 2;  // lane 2 t + h has rows 2 t + 8 h and the next; here they are wanted by lanes 4 row
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sums[half] += from_lane_xor(sums[half], 8);
            sums[half] += from_lane_xor(sums[half], 16);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            word even = word_from_lane(as_word(sums[0]), from + half), odd = word_from_lane(as_word(sums[1]), from + half);
            found[0][2 * half] = as_float(lane / 4 % 2 ? odd : even);
        }
    }
#else
    DEVICE void add_step(float (&found)[COLUMNS][4], const uint4& records, word mine, const unsigned char* const (&rows)[COLUMNS], const word (&swizzle)[COLUMNS]) const {
        word a[4] = {records.x & mine, 0, 0, records.z & mine};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            word b[2], places[2] = {records.y, records.w};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                word low = *(const half_word*)(rows[column] + ((places[i] & 0xFFFFu) ^ swizzle[column]));
                word high = *(const half_word*)(rows[column] + (places[i] >> 16 ^ swizzle[column]));
                b[i] = low | high << 16;
            }
            multiply_fp16(found[column], a, b[0], b[1]);
        }
    }

    DEVICE void add(float (&found)[COLUMNS][4], const Work& work, const Inputs& inputs, int tile, int lane) const {
        const int* here = work.list_starts + tile * segments + segment;
        const uint4* list = work.list + lane % 4;
        const unsigned char* rows[COLUMNS];
        word swizzle[COLUMNS], mine = lane / 8 == lane % 4 ? (lane / 4 % 2 ? 0xFFFF0000u : 0x0000FFFFu) : 0;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            int token = Inputs::token_of(column, lane, work.tokens);
            rows[column] = (const unsigned char*)(inputs.numbers + token * inputs.stride) - first;
            swizzle[column] = (word)(2 * Inputs::swizzle(token));
        }
        int end = here[length];
        for (int step = here[0]; step < end; step += AHEAD) {
            uint4 records[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                records[i] = make_uint4(0, (word)first * 0x10001u, 0, (word)first * 0x10001u);
                if (step + i < end) records[i] = load_stream(list + (step + i) * 4ll);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) add_step(found, records[i], mine, rows, swizzle);
        }
    }
#endif
};
