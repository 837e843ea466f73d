// Weights beside the codes, a list for every tile and segment of chunks. A step of it is one weight of each of the tile's 16 rows: 64
// bytes, of which lane t has rows 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: two fp16 values, twice the places of their inputs, and again.
#pragma once

// Where the lists of a split's tiles lie.
struct Lists {
    const int* starts;
    int segments, segment, length, first;  // of a tile, this split's first and their number, twice its first input
    DEVICE Lists(const Work& work, const Run& run) {
        segments = (work.tile_chunks + work.segment_chunks - 1) / work.segment_chunks;
        segment = run.first_chunk / work.segment_chunks;
        length = (run.first_chunk + run.length + work.segment_chunks - 1) / work.segment_chunks - segment;
        first = run.first_chunk * CHUNK * 2;
        starts = work.list_starts + segment;
    }
    DEVICE int2 of(const Work& work, int tile) const {
        const int* here = starts + (tile < work.tiles ? tile : 0) * segments;
        return make_int2((int)load_word(here), (int)load_word(here + length));
    }
};

#if SINGLE
struct Extra {
    DEVICE Extra(const Work&, const Run&, int) {}
    DEVICE void begin(const Work&, int, bool, int, int) {}
    DEVICE void add(Sums&, const Work&, const Inputs&, int) {}
};

// With one token a lane multiplies two weights of every fourth step.
struct Beside {
    static constexpr int AHEAD = 14;  // loads in flight: the list of a tile with one weight in a hundred of 4096 inputs
    Lists lists;
    int2 coming;  // steps of the collector's next tile

    DEVICE Beside(const Work& work, const Run& run, int tile) : lists(work, run) { coming = lists.of(work, tile); }

    DEVICE static float product(word value, int place, const unsigned char* row) { return from_fp16((half_word)value) * from_fp16(*(const half_word*)(row + place)); }

    DEVICE void add(float (&found)[1][4], const Work& work, const Inputs& inputs, int tile, bool mine, int lane) {
        int2 list = coming;
        coming = lists.of(work, tile + COLLECTORS);
        if (!mine) return;
        const uint2* records = (const uint2*)work.list + lane % 8;
        const unsigned char* row = (const unsigned char*)inputs.plain - lists.first;
        float sums[2] = {};
        for (int start = list.x; start < list.y; start += 4 * AHEAD) {
            uint2 ahead[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int step = start + 4 * i + lane / 8;
                ahead[i].x = 0, ahead[i].y = (word)lists.first * 0x10001u;
                if (step < list.y) ahead[i] = load_pair(records + step * 8ll);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (start + 4 * i >= list.y) break;
                sums[0] += product(ahead[i].x, (int)(ahead[i].y & 0xFFFFu), row);
                sums[1] += product(ahead[i].x >> 16, (int)(ahead[i].y >> 16), row);
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
};
#else
// With several a step is one of the matrix unit, values on the diagonal of its first operand, the activations that belong to them
// in the other. The warps take a tile's steps in turn.
struct Extra {
    static constexpr int HELD = 4;  // steps that a warp asks for before the tile's chunks
    Lists lists;
    int next, end;
    int2 coming;  // steps of the tile after
    uint4 held[HELD];

    DEVICE Extra(const Work& work, const Run& run, int tile) : lists(work, run) { coming = lists.of(work, tile); }

    DEVICE uint4 step(const Work& work, int index, int lane) const { return load_stream(work.list + index * 4ll + lane % 4); }

    DEVICE void begin(const Work& work, int tile, bool mine, int warp, int lane) {
        next = end = 0;
        if (mine) next = coming.x + warp, end = coming.y;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (next + i * WARPS < end) held[i] = step(work, next + i * WARPS, lane);
        }
        coming = lists.of(work, tile + 1);
    }

    DEVICE void add_step(float (&found)[COLUMNS][4], const uint4& records, word mine, const unsigned char* const (&rows)[COLUMNS], const word (&swizzle)[COLUMNS]) const {
        word a[4] = {records.x & mine, 0, 0, records.z & mine}, places[2] = {records.y, records.w};
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            word b[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                word low = *(const half_word*)(rows[column] + ((places[i] & 0xFFFFu) ^ swizzle[column]));
                word high = *(const half_word*)(rows[column] + (places[i] >> 16 ^ swizzle[column]));
                b[i] = low | high << 16;
            }
            multiply_fp16(found[column], a, b[0], b[1]);
        }
    }

    DEVICE void add(Sums& sums, const Work& work, const Inputs& inputs, int lane) {
        if (next >= end) return;
        const unsigned char* rows[COLUMNS];
        word swizzle[COLUMNS], mine = lane / 8 == lane % 4 ? (lane / 4 % 2 ? 0xFFFF0000u : 0x0000FFFFu) : 0;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            int token = Inputs::token_of(column, lane, work.tokens);
            rows[column] = (const unsigned char*)(inputs.numbers + token * inputs.stride) - lists.first;
            swizzle[column] = (word)(2 * Inputs::swizzle(token));
        }
        float found[COLUMNS][4] = {};
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if (next + i * WARPS < end) add_step(found, held[i], mine, rows, swizzle);
        }
#pragma unroll 1
        for (next += HELD * WARPS; next < end; next += WARPS) add_step(found, step(work, next, lane), mine, rows, swizzle);
        float inverse = 1.0f / work.factor;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int part = 0; part < 4; part++) sums.value[column][part] += found[column][part] * (part < 2 ? inverse : inverse * (1.0f / LOWER));
        }
    }
};

struct Beside {
    DEVICE Beside(const Work&, const Run&, int) {}
    DEVICE void add(float (&)[COLUMNS][4], const Work&, const Inputs&, int, bool, int) {}
};
#endif
