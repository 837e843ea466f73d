// Values of a lattice weight, rows of 16 bits, from the layout that lattice.cu reads: a warp takes 16 rows by 256 inputs. Rows may stand in the order
// of blocks of outputs: f 2^twos + b 2^near + j, j < 2^near, at (b factor + f) 2^near + j.
//
// Fixed when compiled: BITS, COLUMNS (1), RANK (0), WARPS.
#include "lattice.cuh"

struct Values {
    const uint4* codes;   // [tiles][slices][BITS][32]
    const word* tables;   // [2 or 3][256]
    const float* scale;   // [1]
    half_word* output;    // [16 tiles][inputs]
    int slices, rows, inputs, first_tile, tiles, type, factor, twos, near;
    float per_residual;
};

DEVICE word nibbles_of(const word* tables, word code) { return tables[code >> 8 & 255] ^ tables[256 + (code & 255)]; }

// Eight values of one vector; `second`: nibbles of the second codeword, with their zero point.
DEVICE void store_vector(half_word* output, word nibbles, word second, float zero, const Values& given, float scale) {
    word pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float v[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int at = 2 * i + k, shift = at < 4 ? 8 * at : 8 * at - 28;
            v[k] = ((float)(nibbles >> shift & 15) - 7.5f) * 0.5f;
            if (BITS > 2) v[k] += ((float)(second >> shift & 15) - zero) * 0.5f * given.per_residual;
            v[k] *= scale;
        }
        pairs[i] = given.type == 1 ? pack_bf16(v[0], v[1]) : pack_fp16(v[0], v[1]);
    }
    *(uint4*)output = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

KERNEL void __launch_bounds__(WARPS * 32) lattice_values(Values given) {
    SHARED_MEMORY(shared);
    release_dependents();
    word* tables = (word*)shared;
    for (int i = threadIdx.x; i < (BITS == 3 ? 768 : 512); i += blockDim.x) tables[i] = given.tables[i];
    synchronize_block();
    wait_for_inputs();
    int lane = threadIdx.x & 31, item = blockIdx.x * WARPS + (threadIdx.x >> 5), tile = item / given.slices, slice = item % given.slices;
    if (tile >= given.tiles) return;
    float scale = *given.scale;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile * 16 + (lane >> 2) + half * 8;
        int at = given.first_tile * 16 + row, column = at & ((1 << given.twos) - 1);
        if (at >= given.rows) continue;
        at = (((column >> given.near) * given.factor + (at >> given.twos)) << given.near) + (column & ((1 << given.near) - 1));
        const uint4* codes = given.codes + ((long)(at / 16) * given.slices + slice) * (BITS * 32) + at % 8 * 4 + (lane & 3);
        uint4 loaded[BITS];
#pragma unroll
        for (int part = 0; part < BITS; part++) loaded[part] = codes[part * 32];
        const word* words = (const word*)loaded;
        bool lower = at % 16 >= 8;
        auto chosen = [&](int i) { return lower ? words[i + 1] : words[i]; };
#pragma unroll
        for (int block = 0; block < 4; block++) {
            int input = slice * 256 + block * 64 + (lane & 3) * 16;
            if (input >= given.inputs) continue;
            word pair = chosen(block * 2), second[2] = {};
            if (BITS == 4) second[0] = nibbles_of(tables, chosen(8 + block * 2)), second[1] = nibbles_of(tables, chosen(8 + block * 2) >> 16);
            if (BITS == 3) second[0] = tables[512 + (words[8 + block] >> 16 * lower & 255)], second[1] = tables[512 + (words[8 + block] >> (16 * lower + 8) & 255)];
            half_word* to = given.output + (long)row * given.inputs + input;
            store_vector(to, nibbles_of(tables, pair), second[0], BITS == 3 ? 8.0f : 7.5f, given, scale);
            store_vector(to + 8, nibbles_of(tables, pair >> 16), second[1], BITS == 3 ? 8.0f : 7.5f, given, scale);
        }
    }
}

EXPORT(lattice_values)
