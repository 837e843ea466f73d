/* What every instruction set does alike, compiled for each. */
/* Codes of one row, one byte each. */
static void unpack_scalar(const Work *work, const uint8_t *source, int64_t bytes, int64_t count, uint8_t *codes) {
    int64_t bits = work->job->bits;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = i * bits >> 3;
        unsigned window = source[at] | (at + 1 < bytes ? source[at + 1] << 8 : 0);
        codes[i] = window >> (i * bits & 7) & ((1 << bits) - 1);
    }
}

static void widen_scalar(const uint16_t *halves, int64_t count, float *target) {
    for (int64_t i = 0; i < count; i++) target[i] = load(halves, FLOAT16, i);
}

/* Scale of every block of a row, and scale times zero point; `numbers` takes the stored scales. Loops run in whole vectors: behind
 * what is written all is zero. */
INLINE void parameters(const Work *work, int64_t row, Room *room) {
    const Job *job = work->job;
    int64_t each = job->group_size / job->block, whole = (job->groups + 15) / 16 * 16, size = job->scale_kind == FLOAT32 ? 4 : 2;
    const void *numbers = (const char *)job->scales + row * job->groups * size;
    if ((job->rows - 1 - row) * job->groups * size < PADDING) numbers = memcpy(room->numbers, numbers, job->groups * size);
    if (job->zeros) work->level->unpack(work, job->zeros + row * job->zero_bytes, job->zero_bytes, job->groups, room->zeros);
    float *restrict scale = each == 1 ? room->scale : room->group_scale;
    float *restrict shift = each == 1 ? room->shift : room->group_shift;
    const uint8_t *restrict zeros = room->zeros;
    if (job->scale_kind == FLOAT16) work->level->widen((const uint16_t *)numbers, whole, scale);
    else if (job->scale_kind == BFLOAT16) for (int64_t i = 0; i < whole; i++) scale[i] = load(numbers, BFLOAT16, i);
    else memcpy(scale, numbers, whole * sizeof(float));
    for (int64_t i = job->groups; i < whole; i++) scale[i] = 0;
    for (int64_t i = 0; i < whole; i += 16)
        for (int lane = 0; lane < 16; lane++) shift[i + lane] = scale[i + lane] * zeros[i + lane];
    for (int64_t group = 0, b = 0; each > 1 && group < job->groups; group++)
        for (int64_t end = b + each < work->blocks ? b + each : work->blocks; b < end; b++)
            room->scale[b] = scale[group], room->shift[b] = shift[group];
}

/* Values of a row, as torch makes them: s (q - z) in float32, then rounded. */
INLINE void values(const Job *job, int64_t row, const uint8_t *codes, const uint8_t *zeros) {
    int64_t size = job->scale_kind == FLOAT32 ? 4 : 2;
    const char *scales = (const char *)job->scales + row * job->groups * size;
    for (int64_t group = 0, i = 0; group < job->groups; group++) {
        int64_t end = i + job->group_size < job->columns ? i + job->group_size : job->columns;
        float scale = load(scales, job->scale_kind, group), zero = zeros[group];
        if (job->kind == FLOAT32)
            for (; i < end; i++) ((float *)job->y)[row * job->columns + i] = (codes[i] - zero) * scale;
        else
            for (; i < end; i++) store(job->y, BFLOAT16, row * job->columns + i, (codes[i] - zero) * scale);
    }
}

/* Scales of a row's blocks times those of some tokens' blocks. */
INLINE void factors(const Work *work, const float *restrict scale, int64_t token, int count, float *restrict factor) {
    int64_t stride = work->blocks + PADDING;
    for (int m = 0; m < count; m++)
        for (int64_t b = 0; b < (work->blocks + 15) / 16 * 16; b++) factor[m * stride + b] = scale[b] * work->scale[(token + m) * stride + b];
}

INLINE float dot(const float *a, const float *b, int64_t count) { /* both padded with zeros to 16 */
    float lanes[16] = {0}, total = 0;
    for (int64_t i = 0; i < count; i += 16)
        for (int lane = 0; lane < 16; lane++) lanes[lane] += a[i + lane] * b[i + lane];
    for (int lane = 0; lane < 16; lane++) total += lanes[lane];
    return total;
}

/* Order in which unpack_64 of x86.h yields the 64 codes of a unit. */
INLINE void ordered(const int8_t *numbers, int64_t bits, int8_t *target) {
    if (bits == 4) for (int i = 0; i < 32; i++) target[i] = numbers[2 * i], target[32 + i] = numbers[2 * i + 1];
    else if (bits == 2) for (int i = 0; i < 64; i++) target[i] = numbers[i % 16 * 4 + i / 16];
    else memcpy(target, numbers, 64);
}

/* Fixed-point integers of the blocks of one token, their scales and sums. A block with a number that is not finite is NaN. */
INLINE void fix(Work *work, int64_t token) {
    const Job *job = work->job;
    int64_t block = job->block, plane = job->tokens * work->width, stride = work->blocks + PADDING;
    float most = work->planes == 3 ? 127.0f * 65536 : 127.0f * 256;
    for (int64_t b = 0; b < work->blocks; b++) {
        float values[256];
        int8_t parts[3][256];
        uint32_t most_bits = 0;
        int32_t sum = 0, integers[256];
        if (job->kind == FLOAT32) memcpy(values, (const float *)job->x + token * job->columns + b * block, block * sizeof(float));
        else for (int64_t i = 0; i < block; i++) values[i] = load(job->x, BFLOAT16, token * job->columns + b * block + i);
        for (int64_t i = 0; i < block; i++) {
            uint32_t bits = as_bits(values[i]) & 0x7fffffff;
            most_bits = bits > most_bits ? bits : most_bits;
        }
        float largest = as_float(most_bits), scale = most_bits < 0x7f800000 ? largest / most : NAN;
        float inverse = largest > 1e-30f && scale == scale ? most / largest : 0;
        for (int64_t i = 0; i < block; i++) integers[i] = inverse > 0 ? (int32_t)rintf(values[i] * inverse) : 0;
        for (int64_t i = 0; i < block; i++) sum += integers[i];
        int64_t at = token * work->width + b * block;
        if (work->words)
            for (int64_t i = 0; i < block; i++) work->words[at + i] = integers[i] >> 8, work->words[at + plane + i] = integers[i] & 255;
        else {
            for (int64_t i = 0; i < block; i++) {
                int32_t low = (int8_t)integers[i], rest = (integers[i] - low) >> 8, middle = (int8_t)rest;
                parts[0][i] = (rest - middle) >> 8, parts[1][i] = middle, parts[2][i] = low;
            }
            for (int p = 0; p < work->planes; p++) memcpy(work->bytes + at + p * plane, parts[3 - work->planes + p], block);
        }
        work->scale[token * stride + b] = scale, work->sum[token * stride + b] = scale * sum;
    }
    for (int64_t at = 0; work->bytes && (job->bits == 4 || job->bits == 2) && at < work->width; at += 64)
        for (int p = 0; p < work->planes; p++) {
            int8_t unit[64], *there = work->bytes + token * work->width + p * plane + at;
            memcpy(unit, there, 64), ordered(unit, job->bits, there);
        }
}

/* One instruction set's versions of all of these; `unpack`, `widen`, `dot` and `row` are written for each. */
#define LEVEL(NAME, TARGET) \
    TARGET static void parameters_##NAME(const Work *work, int64_t row, Room *room) { parameters(work, row, room); } \
    TARGET static void factors_##NAME(const Work *work, const float *scale, int64_t token, int count, float *factor) { \
        factors(work, scale, token, count, factor); \
    } \
    TARGET static void values_##NAME(const Work *work, int64_t row, const uint8_t *codes, const uint8_t *zeros) { \
        values(work->job, row, codes, zeros); \
    } \
    TARGET static void fix_##NAME(Work *work, int64_t token) { fix(work, token); } \
    static const Level NAME = { \
        unpack_##NAME, widen_##NAME, parameters_##NAME, factors_##NAME, fix_##NAME, row_##NAME, dot_##NAME, values_##NAME, \
    };
