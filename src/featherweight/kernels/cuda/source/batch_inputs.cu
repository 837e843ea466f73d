// Activations to the images of `batch.cuh`, and what each token's sums are to be multiplied by: a block to a token. `arrivals` to zero.
//
// Fixed when compiled: what `tiles.cuh` names, TOKENS (of an image), THREADS.
#include "batch.cuh"

// Eight consecutive inputs of a token, as fp32.
DEVICE void read_eight(float (&values)[8], const half_word* x, int input, int inputs) {
    uint4 raw = {0, 0, 0, 0};
    if (input < inputs) raw = load_now(x + input);
    const word* words = (const word*)&raw;
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = from_number((half_word)(words[i / 2] >> i % 2 * 16));
}

KERNEL void __launch_bounds__(THREADS)
batch_inputs(const half_word* x, unsigned char* images, float* factors, int* arrivals, int inputs, int units, int stride, int count) {
    SHARED_MEMORY(memory);
    release_dependents();
    wait_for_inputs();
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) arrivals[i] = 0;
    int token = blockIdx.x, at = token % TOKENS, thread = threadIdx.x, eights = units * (UNIT / 8);
    const half_word* mine = x + (long)token * stride;
    float values[8], largest = 0.0f;
    for (int eight = thread; eight < eights; eight += THREADS) {
        read_eight(values, mine, eight * 8, inputs);
#pragma unroll
        for (int i = 0; i < 8; i++) largest = maximum(largest, magnitude(values[i]));
    }
    word* most = (word*)memory;
    most[thread / 32] = warp_maximum(as_word(largest));
    synchronize_block();
    word found = most[0];
    for (int warp = 1; warp < THREADS / 32; warp++) found = most[warp] > found ? most[warp] : found;
    int carried = 140 - (int)(found >> 23);  // the largest times 2^carried is in [2^13, 2^14)
    carried = carried < 126 ? carried : 126;
    if (thread == 0) {
        int back = 151 - carried;
        factors[token] = as_float((word)(back < 254 ? back : 254) << 23);  // 2^(24 − carried)
    }
    for (int eight = thread; eight < eights; eight += THREADS) {
        int unit = eight / (UNIT / 8), place = eight % (UNIT / 8), chunk = place / 4;
        unsigned char* image = images + ((long)(token / TOKENS) * units + unit) * IMAGE_BYTES;
        read_eight(values, mine, eight * 8, inputs);
        word offsets = offsets_of(0);
        if (CHUNKS > 1) offsets = chunk % CHUNKS == 1 ? offsets_of(1) : offsets;
        if (CHUNKS > 2) offsets = chunk % CHUNKS == 2 ? offsets_of(2) : chunk % CHUNKS == 3 ? offsets_of(3) : offsets;
        unsigned char* numbers = image + chunk * 2 * STEP_BYTES + at / 8 * 128 + at % 8 * 16 + place % 4 * 4;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float factor = as_float((word)(127 + carried - (int)(offsets >> 4 * i & 15)) << 23);
            *(word*)(numbers + i * HALF_BYTES) = pack_fp16(values[2 * i] * factor, values[2 * i + 1] * factor);
            sum += values[2 * i] + values[2 * i + 1];
        }
#pragma unroll
        for (int distance = 1; distance < GROUP / 8; distance *= 2) sum += from_lane(sum, distance);
        if (place % (GROUP / 8) == 0) {
            float zero = ZEROS ? 1.0f : -(float)(1 << (BITS - 1));
            ((float*)(image + NUMBER_BYTES))[place * 8 / GROUP * TOKENS + at] = sum * as_float((word)(103 + carried) << 23) * zero;
        }
    }
}
EXPORT(batch_inputs)
