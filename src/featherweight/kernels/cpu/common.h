/* What integer.c and x86.h share: the job, the work on it, numbers. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#define T2 __attribute__((target("avx2,fma,f16c")))
#define T512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma,f16c")))
#else
#define X86 0
#endif
#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, FLOAT16, BFLOAT16 };
enum { SCALAR, AVX2, AVX512 };
enum { PADDING = 64, AHEAD = 4096 }; /* AHEAD: bytes of codes fetched before they are read; 2048 to 6144 do alike */

/* Mirrored by featherweight.kernels.cpu.library.Job. */
typedef struct {
    const uint8_t *codes; /* [rows][code_bytes] */
    const void *scales;   /* [rows][groups] of scale_kind */
    const uint8_t *zeros; /* [rows][zero_bytes], codes of `bits` bits; NULL: all 2^(bits - 1) */
    const void *x;        /* [tokens][columns] of kind; not read by decode */
    void *y;              /* [tokens][rows] of kind; decode: [rows][columns] */
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel; NULL for one thread */
    int64_t rows, columns, tokens, groups, group_size, code_bytes, zero_bytes;
    int64_t block; /* inputs: 16, or a multiple of 64 up to 256; divides columns and group_size */
    int64_t bits, scale_kind, kind, level, threads; /* kind: FLOAT32 or BFLOAT16 */
} Job;

typedef struct Work Work;

/* Of one thread, for one row. Behind what is written everything is zero (`zeros`: the fixed zero point). */
typedef struct {
    uint8_t *zeros, *codes;           /* [groups + PADDING]; [code_bytes + PADDING], or one byte each [columns + PADDING] */
    float *numbers;                   /* stored scales, [groups + PADDING] */
    float *group_scale, *group_shift; /* [groups + PADDING] */
    float *scale, *shift, *factor;    /* [blocks + PADDING]; factor: of four tokens */
} Room;

typedef struct {
    void (*unpack)(const Work *, const uint8_t *, int64_t bytes, int64_t count, uint8_t *codes);
    void (*widen)(const uint16_t *halves, int64_t count, float *); /* in sixteens */
    void (*parameters)(const Work *, int64_t row, Room *);
    void (*factors)(const Work *, const float *scale, int64_t token, int count, float *factor);
    void (*fix)(Work *, int64_t token);
    void (*row)(const Work *, const uint8_t *codes, const float *factor, int64_t token, int count, float *result);
    float (*dot)(const float *, const float *, int64_t count);
    void (*values)(const Work *, int64_t row, const uint8_t *codes, const uint8_t *zeros);
} Level;

struct Work {
    const Job *job;
    int64_t blocks, width, next, chunk; /* width: columns, padded to 64 */
    int planes, failed;
    int8_t *bytes;      /* [planes][tokens][width], highest first */
    int16_t *words;     /* [2][tokens][width], highest first */
    float *scale, *sum; /* of activations [tokens][blocks + PADDING]: of a block's integers; times their sum */
    uint8_t gather[64], offset[64], gather_16[32];
    int16_t factor[16];
    const Level *level;
};

INLINE float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

INLINE float from_half(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13, exponent = half & 0x7c00;
    float normal = as_float(magnitude + (112u << 23)), small = as_float(magnitude + (113u << 23)) - as_float(113u << 23);
    float value = exponent == 0x7c00 ? as_float(magnitude | 0x7f800000) : exponent ? normal : small;
    return as_float(as_bits(value) | (uint32_t)(half & 0x8000) << 16);
}

INLINE float load(const void *source, int64_t kind, int64_t at) {
    if (kind == FLOAT32) return ((const float *)source)[at];
    uint16_t bits = ((const uint16_t *)source)[at];
    return kind == FLOAT16 ? from_half(bits) : as_float((uint32_t)bits << 16);
}

INLINE void store(void *target, int64_t kind, int64_t at, float value) {
    uint32_t bits = as_bits(value);
    if (kind == FLOAT32) ((float *)target)[at] = value;
    else ((uint16_t *)target)[at] = value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}
