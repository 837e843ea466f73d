/* Products with weights stored as packed integer codes, and their decoding, on a CPU.
 *
 *     y[t][r] = sum_k s[r][g] (q[r][k] - z[r][g]) x[t][k]
 *
 * Codes are a stream of bits per row, lowest first, and are read as they are. Inputs are cut into blocks within which a weight's
 * scale is constant. A block of activations becomes fixed-point integers of 24 bits (16 where y is bfloat16), so that the product
 * of a block is an exact sum of integers; blocks are added in float32. The integers are split into signed bytes for AVX-512 VNNI,
 * into a high and a low 16-bit number else.
 */
#include "common.h"
#include "generic.h"

static void row_scalar(const Work *work, const uint8_t *codes, const float *factor, int64_t token, int count, float *result) {
    const Job *job = work->job;
    uint8_t unpacked[256];
    for (int m = 0; m < count; m++) result[m] = 0;
    for (int64_t b = 0; b < work->blocks; b++) {
        int64_t at = b * job->block;
        unpack_scalar(work, codes + (at * job->bits >> 3), job->code_bytes - (at * job->bits >> 3), job->block, unpacked);
        for (int m = 0; m < count; m++) {
            const int16_t *high = work->words + (token + m) * work->width + at, *low = high + job->tokens * work->width;
            int32_t highs = 0, lows = 0;
            for (int64_t i = 0; i < job->block; i++) highs += unpacked[i] * high[i], lows += unpacked[i] * low[i];
            result[m] += (256.0f * highs + lows) * factor[m * (work->blocks + PADDING) + b];
        }
    }
}

static float dot_scalar(const float *a, const float *b, int64_t count) { return dot(a, b, count); }
LEVEL(scalar, )
#if X86
#include "x86.h"
#endif

static int make_room(const Work *work, Room *room) {
    const Job *job = work->job;
    int64_t groups = job->groups + PADDING, blocks = work->blocks + PADDING;
    room->zeros = malloc(groups), room->codes = calloc(job->columns + job->code_bytes + PADDING, 1);
    float *floats = room->numbers = calloc(3 * groups + 6 * blocks, sizeof(float));
    if (!room->zeros || !room->codes || !floats) return 0;
    memset(room->zeros, 1 << (job->bits - 1), groups);
    room->group_scale = floats + groups, room->group_shift = floats + 2 * groups;
    room->scale = floats + 3 * groups, room->shift = room->scale + blocks, room->factor = room->shift + blocks;
    return 1;
}

static void free_room(Room *room) { free(room->zeros), free(room->codes), free(room->numbers); }

/* Codes of a row behind which so much may be read that no vector leaves the tensor. */
static const uint8_t *row_codes(const Work *work, int64_t row, Room *room) {
    const Job *job = work->job;
    const uint8_t *codes = job->codes + row * job->code_bytes;
    if ((job->rows - 1 - row) * job->code_bytes >= PADDING) return codes;
    return memcpy(room->codes, codes, job->code_bytes);
}

static void multiply_row(const Work *work, int64_t row, Room *room) {
    const Job *job = work->job;
    const uint8_t *codes = row_codes(work, row, room);
    work->level->parameters(work, row, room);
    for (int64_t token = 0, count; token < job->tokens; token += count) {
        float result[4];
        count = job->tokens - token >= 4 ? 4 : job->tokens - token >= 2 ? 2 : 1;
        work->level->factors(work, room->scale, token, (int)count, room->factor);
        work->level->row(work, codes, room->factor, token, (int)count, result);
        for (int64_t m = 0; m < count; m++) {
            float zero = work->level->dot(room->shift, work->sum + (token + m) * (work->blocks + PADDING), work->blocks);
            store(job->y, job->kind, (token + m) * job->rows + row, result[m] - zero);
        }
    }
}

static void decode_row(const Work *work, int64_t row, Room *room) {
    const Job *job = work->job;
    work->level->unpack(work, job->codes + row * job->code_bytes, job->code_bytes, job->columns, room->codes);
    if (job->zeros) work->level->unpack(work, job->zeros + row * job->zero_bytes, job->zero_bytes, job->groups, room->zeros);
    work->level->values(work, row, room->codes, room->zeros);
}

static void some_rows(void *shared) {
    Work *work = shared;
    Room room;
    int sound = make_room(work, &room);
    if (!sound) work->failed = 1;
    while (!work->failed) {
        int64_t row = __atomic_fetch_add(&work->next, work->chunk, __ATOMIC_RELAXED), end = row + work->chunk;
        if (row >= work->job->rows) break;
        for (; row < end && row < work->job->rows; row++)
            if (work->bytes || work->words) multiply_row(work, row, &room);
            else decode_row(work, row, &room);
    }
    free_room(&room);
}

static void prepare(Work *work, const Job *job) {
    work->job = job, work->blocks = job->block ? job->columns / job->block : 0;
    work->width = (job->columns + 63) / 64 * 64, work->planes = job->kind == FLOAT32 ? 3 : 2;
    work->chunk = job->threads > 1 ? job->rows / (job->threads * 4) + 1 : job->rows;
    work->level = &scalar;
    for (int i = 0; i < 64; i++) {
        int byte = i % 8 < job->bits ? i % 8 : 0, code = i % 8 * job->bits;
        work->gather[i] = i / 8 * job->bits + byte, work->offset[i] = code;
        if (i < 32) work->gather_16[i] = i / 2 * job->bits / 8 + i % 2;
        if (i < 16) work->factor[i] = 1 << (16 - job->bits - i * job->bits % 8);
    }
#if X86
    if (job->level >= AVX2) work->level = job->level == AVX512 ? &avx512 : &avx2;
#endif
}

static int run(Work *work) {
    if (work->job->threads > 1 && work->job->parallel) work->job->parallel(some_rows, work, (unsigned)work->job->threads, 0);
    else work->chunk = work->job->rows, some_rows(work);
    return work->failed;
}

/* The best instructions there are: SCALAR, AVX2 or AVX512. */
int featherweight_level(void) {
#if X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return SCALAR;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")
        ? AVX512 : AVX2;
#else
    return SCALAR;
#endif
}

/* Both return 0, or 1 without memory. */
int featherweight_decode(const Job *job) {
    Work work = {0};
    prepare(&work, job);
    return run(&work);
}

int featherweight_multiply(const Job *job) {
    Work work = {0};
    prepare(&work, job);
    int64_t numbers = job->tokens * work.width, floats = job->tokens * (work.blocks + PADDING);
    int8_t *integers = NULL; /* in cache lines: a vector that crosses them is read twice */
    if (posix_memalign((void **)&integers, 64, numbers * 4)) return 1;
    memset(integers, 0, numbers * 4);
    work.scale = calloc(floats, sizeof(float)), work.sum = calloc(floats, sizeof(float));
    if (job->level == AVX512) work.bytes = integers;
    else work.words = (int16_t *)integers;
    int failed = !work.scale || !work.sum;
    for (int64_t token = 0; !failed && token < job->tokens; token++) work.level->fix(&work, token);
    failed = failed || run(&work);
    free(integers), free(work.scale), free(work.sum);
    return failed;
}
