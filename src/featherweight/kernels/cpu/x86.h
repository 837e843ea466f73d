/* AVX2, and AVX-512 with VNNI and VBMI: parts of integer.c. */
INLINE T2 __m256i unpack_16(const Work *work, const uint8_t *source) { /* reads 16 bytes; returns 16-bit numbers */
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)source));
    __m256i windows = _mm256_shuffle_epi8(both, _mm256_loadu_si256((const __m256i *)work->gather_16));
    __m256i high = _mm256_mullo_epi16(windows, _mm256_loadu_si256((const __m256i *)work->factor));
    return _mm256_srl_epi16(high, _mm_cvtsi32_si128(16 - (int)work->job->bits));
}

T2 static void unpack_avx2(const Work *work, const uint8_t *source, int64_t bytes, int64_t count, uint8_t *codes) {
    int64_t i = 0, at = 0;
    for (; i + 16 <= count && at + 16 <= bytes; i += 16, at += 2 * work->job->bits) {
        __m256i wide = unpack_16(work, source + at);
        __m128i narrow = _mm_packus_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storeu_si128((__m128i *)(codes + i), narrow);
    }
    unpack_scalar(work, source + at, bytes - at, count - i, codes + i);
}

T2 static void widen_avx2(const uint16_t *halves, int64_t count, float *target) {
    for (int64_t i = 0; i < count; i += 8)
        _mm256_storeu_ps(target + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
}

INLINE T2 void row_avx2_of(const Work *work, const uint8_t *codes, const float *factor, int64_t token, const int count, float *result) {
    const Job *job = work->job;
    __m256 total[4];
    for (int m = 0; m < count; m++) total[m] = _mm256_setzero_ps();
    for (int64_t b = 0; b < work->blocks; b++) {
        __m256i highs[4], lows[4];
        for (int m = 0; m < count; m++) highs[m] = lows[m] = _mm256_setzero_si256();
        for (int64_t at = b * job->block; at < (b + 1) * job->block; at += 16) {
            __m256i code = unpack_16(work, codes + (at * job->bits >> 3));
            for (int m = 0; m < count; m++) {
                const int16_t *high = work->words + (token + m) * work->width + at, *low = high + job->tokens * work->width;
                highs[m] = _mm256_add_epi32(highs[m], _mm256_madd_epi16(code, _mm256_loadu_si256((const __m256i *)high)));
                lows[m] = _mm256_add_epi32(lows[m], _mm256_madd_epi16(code, _mm256_loadu_si256((const __m256i *)low)));
            }
        }
        for (int m = 0; m < count; m++) {
            __m256 each = _mm256_set1_ps(factor[m * (work->blocks + PADDING) + b]);
            __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(highs[m]), _mm256_set1_ps(256), _mm256_cvtepi32_ps(lows[m]));
            total[m] = _mm256_fmadd_ps(sum, each, total[m]);
        }
    }
    for (int m = 0; m < count; m++) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(total[m]), _mm256_extractf128_ps(total[m], 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        result[m] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
}
T2 static void row_avx2(const Work *work, const uint8_t *codes, const float *factor, int64_t token, int count, float *result) {
    if (count == 1) row_avx2_of(work, codes, factor, token, 1, result);
    else if (count == 2) row_avx2_of(work, codes, factor, token, 2, result);
    else row_avx2_of(work, codes, factor, token, 4, result);
}
T2 static float dot_avx2(const float *a, const float *b, int64_t count) { return dot(a, b, count); }
LEVEL(avx2, T2)

/* Tables of unpack_64 for 4 and 2 bits: shifts, and the block of 16 codes that each sum of four codes belongs to. */
static const uint64_t halves[8] = {0, 0, 0, 0, 4, 4, 4, 4}, quarters[8] = {0, 0, 2, 2, 4, 4, 6, 6};
static const uint32_t blocks_in_order[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
static const uint32_t blocks_of_4[16] = {0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3};
static const uint32_t blocks_of_2[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};

/* 64 codes of `bits` bits: in order, or with 4 bits the even ones first, with 2 bits every fourth from the first, the second, .... */
INLINE T512 __m512i unpack_64(const uint8_t *codes, const int bits, __m512i gather, __m512i offset, __m512i mask) {
    if (bits == 8) return _mm512_loadu_si512(codes);
    __m512i spread;
    if (bits == 4) spread = _mm512_srlv_epi64(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)codes)), offset);
    else if (bits == 2) spread = _mm512_srlv_epi64(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)codes)), offset);
    else spread = _mm512_multishift_epi64_epi8(offset, _mm512_permutexvar_epi8(gather, _mm512_loadu_si512(codes)));
    return _mm512_and_si512(spread, mask);
}

T512 static void unpack_avx512(const Work *work, const uint8_t *source, int64_t bytes, int64_t count, uint8_t *codes) {
    __m512i gather = _mm512_loadu_si512(work->gather), offset = _mm512_loadu_si512(work->offset);
    __m512i mask = _mm512_set1_epi8((char)((1 << work->job->bits) - 1));
    for (int64_t i = 0, at = 0; i < count; i += 64, at += 8 * work->job->bits) {
        __mmask64 there = bytes - at >= 64 ? ~0ull : (1ull << (bytes - at)) - 1;
        __mmask64 wanted = count - i >= 64 ? ~0ull : (1ull << (count - i)) - 1;
        __m512i gathered = _mm512_permutexvar_epi8(gather, _mm512_maskz_loadu_epi8(there, source + at));
        _mm512_mask_storeu_epi8(codes + i, wanted, _mm512_and_si512(_mm512_multishift_epi64_epi8(offset, gathered), mask));
    }
}

T512 static void widen_avx512(const uint16_t *halves, int64_t count, float *target) {
    for (int64_t i = 0; i < count; i += 16)
        _mm512_storeu_ps(target + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(halves + i))));
}

/* 64 codes times the integers of their activations, in 16 lanes of 4 codes each, float32. */
INLINE T512 __m512 fixed(const __m512i *planes, const int count) {
    __m512i low = _mm512_add_epi32(_mm512_slli_epi32(planes[count - 2], 8), planes[count - 1]);
    if (count == 2) return _mm512_cvtepi32_ps(low);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(planes[0]), _mm512_set1_ps(65536), _mm512_cvtepi32_ps(low));
}

enum { NARROW, SINGLE, SEVERAL }; /* a block is a part of 64 inputs, these, or several times as many */

/* What a row needs throughout: of the unpacking, and how many units a block has. */
typedef struct {
    __m512i gather, offset, mask, lanes;
    int64_t units, plane, width, stride;
} Constants;

/* One block (of four that are narrow, all) times its activations, to `total`; `codes` and `x` go on to the next. */
INLINE T512 void block_avx512(
    const Constants *constants, const uint8_t **codes, const int8_t **x, const float *factor, __m512 *total, const int count,
    const int planes, const int width, const int bits, int64_t step
) {
    __m512i sums[4][3];
    for (int m = 0; m < count; m++)
        for (int p = 0; p < planes; p++) sums[m][p] = _mm512_setzero_si512();
    for (int64_t u = 0; u < (width == SEVERAL ? constants->units : 1); u++, *codes += step, *x += 64) {
        _mm_prefetch((const char *)*codes + AHEAD, _MM_HINT_T0);
        __m512i code = unpack_64(*codes, bits, constants->gather, constants->offset, constants->mask);
        for (int m = 0; m < count; m++)
            for (int p = 0; p < planes; p++) {
                __m512i numbers = _mm512_loadu_si512(*x + m * constants->width + p * constants->plane);
                sums[m][p] = _mm512_dpbusd_epi32(sums[m][p], code, numbers);
            }
    }
    for (int m = 0; m < count; m++) {
        const float *there = factor + m * constants->stride;
        __m512 each = _mm512_set1_ps(there[0]);
        if (width == NARROW) each = _mm512_permutexvar_ps(constants->lanes, _mm512_castps128_ps512(_mm_loadu_ps(there)));
        total[m] = _mm512_fmadd_ps(fixed(sums[m], planes), each, total[m]);
    }
}

INLINE T512 void row_avx512_of(
    const Work *work, const uint8_t *codes, const float *factor, int64_t token, float *result, const int count, const int planes,
    const int width, const int bits
) {
    const Job *job = work->job;
    Constants constants = {
        _mm512_loadu_si512(work->gather), _mm512_loadu_si512(bits == 4 ? halves : bits == 2 ? quarters : (const void *)work->offset),
        _mm512_set1_epi8((char)((1 << job->bits) - 1)),
        _mm512_loadu_si512(bits == 4 ? blocks_of_4 : bits == 2 ? blocks_of_2 : blocks_in_order), job->block / 64,
        job->tokens * work->width, work->width, work->blocks + PADDING,
    };
    const int8_t *x = work->bytes + token * work->width;
    const int each = width == NARROW ? 4 : 1;
    __m512 even[4], odd[4]; /* apart, so that additions need not wait for each other */
    for (int m = 0; m < count; m++) even[m] = odd[m] = _mm512_setzero_ps();
    int64_t b = 0;
    for (; b + each < work->blocks; b += 2 * each) {
        block_avx512(&constants, &codes, &x, factor + b, even, count, planes, width, bits, 8 * job->bits);
        block_avx512(&constants, &codes, &x, factor + b + each, odd, count, planes, width, bits, 8 * job->bits);
    }
    if (b < work->blocks) block_avx512(&constants, &codes, &x, factor + b, even, count, planes, width, bits, 8 * job->bits);
    for (int m = 0; m < count; m++) result[m] = _mm512_reduce_add_ps(_mm512_add_ps(even[m], odd[m]));
}

T512 static void row_avx512(const Work *work, const uint8_t *codes, const float *factor, int64_t token, int count, float *result) {
    const int64_t bits = work->job->bits, planes = work->planes, block = work->job->block;
    const int width = block < 64 ? NARROW : block == 64 ? SINGLE : SEVERAL;
#define CASE(C, P, W, B) if (count == C && planes == P && width == W) { row_avx512_of(work, codes, factor, token, result, C, P, W, B); return; }
#define WIDTHS(C, P, B) CASE(C, P, NARROW, B) CASE(C, P, SINGLE, B) CASE(C, P, SEVERAL, B)
#define CASES(B) WIDTHS(1, 2, B) WIDTHS(1, 3, B) WIDTHS(2, 2, B) WIDTHS(2, 3, B) WIDTHS(4, 2, B) WIDTHS(4, 3, B)
    if (bits == 2) { CASES(2) } else if (bits == 4) { CASES(4) } else if (bits == 8) { CASES(8) } else { CASES(0) }
}
T512 static float dot_avx512(const float *a, const float *b, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
    return _mm512_reduce_add_ps(sum);
}
LEVEL(avx512, T512)
