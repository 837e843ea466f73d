// Activations as a launch is given them, in order or gathered.
#pragma once

// Eight consecutive inputs of a token.
DEVICE uint4 load_inputs(const Work& work, int token, int input) {
    const half_word* x = work.x + (long long)token * work.x_stride;
    if (!work.gather && input + 8 <= work.inputs) return *(const uint4*)(x + input);
    word from[8], v[8];
    if (work.gather) {
        *(uint4*)from = *(const uint4*)(work.gather + input);
        *(uint4*)(from + 4) = *(const uint4*)(work.gather + input + 4);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (!work.gather) from[i] = input + i;
        v[i] = from[i] < (word)work.inputs ? x[from[i]] : 0;
    }
    return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
}
