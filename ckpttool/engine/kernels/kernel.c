/* Weighted means of tensors' elements: widen, multiply and add in float64, divide, round once.

   The bits of the result are those of ckpttool/engine/kernels/numpy_kernel.py, on every processor: only IEEE 754
   operations in a fixed order, no contraction to fused multiply-adds (-ffp-contract=off), no reassociation. A result
   that is not a number is the one quiet NaN of its type, positive and without a payload.

   The loops are plain C that compilers vectorise. They are compiled once for each instruction set (kernel_body.h), and
   the caller chooses one that the processor has (ckpttool_kernel_supported). */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "the sums must be computed as they are written: compile with -fno-fast-math"
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#define EXPORT __attribute__((visibility("default")))

/* What the Python side expects; raised when a function changes. */
#define ABI 1

/* The element types, as the caller numbers them. */
enum type {
    FLOAT32,
    BFLOAT16,
    FLOAT16,
    FLOAT64,
    FLOAT8_E4M3FN,
    FLOAT8_E4M3FNUZ,
    FLOAT8_E5M2,
    FLOAT8_E5M2FNUZ,
    TYPES
};

/* So many elements at a time: what belongs to them stays in the first-level cache. */
#define BLOCK 1024

/* Inputs may be at any address, and of any type. */
#define LOOSE __attribute__((aligned(1), may_alias))
typedef float LOOSE loose_float;
typedef double LOOSE loose_double;
typedef uint16_t LOOSE loose_u16;
typedef uint32_t LOOSE loose_u32;
typedef uint64_t LOOSE loose_u64;

static inline __attribute__((always_inline)) uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline __attribute__((always_inline)) float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline __attribute__((always_inline)) uint64_t bits_of_double(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline __attribute__((always_inline)) double double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#define SIGN32 0x80000000u
#define SIGN64 0x8000000000000000u
#define INFINITY32 0x7F800000u
#define INFINITY64 0x7FF0000000000000u

/* 2^exponent, for constants. */
#define POWER(exponent) double_of_bits((uint64_t)(1023 + (exponent)) << 52)

/* 2^27 + 1: splits a float64 into two halves of 26 bits each. */
#define DEKKER 134217729.0

/* Bytes of an element of each type. */
static const unsigned char sizes[TYPES] = {4, 2, 2, 8, 1, 1, 1, 1};

/* float8 to float32, filled by the caller's ckpttool_kernel_set_table before anything is summed. */
static float tables[TYPES][256];

typedef int mean_function(const void *const *raws, const uint8_t *types, const double *weights, size_t terms,
                          size_t count, double divisor, int precise, int out_type, void *out);

#define BODY(name) name##_baseline
#define TARGET
#include "kernel_body.h"
#undef BODY
#undef TARGET

#if defined(__x86_64__)
#define BODY(name) name##_avx2
#define TARGET __attribute__((target("avx2,f16c")))
#define HALF_LANES 8

static inline TARGET void halves_to_floats_avx2(float *to, const void *from) {
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from)));
}

static inline TARGET void floats_to_halves_avx2(void *to, const float *from) {
    _mm_storeu_si128(to, _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernel_body.h"
#undef BODY
#undef TARGET
#undef HALF_LANES

#define BODY(name) name##_avx512
#if defined(__clang__)
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define HALF_LANES 16

static inline TARGET void halves_to_floats_avx512(float *to, const void *from) {
    _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(from)));
}

static inline TARGET void floats_to_halves_avx512(void *to, const float *from) {
    _mm256_storeu_si256(to, _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}

#include "kernel_body.h"
#undef BODY
#undef TARGET
#undef HALF_LANES
#endif

static const struct {
    const char *name;
    mean_function *mean;
} variants[] = {
#if defined(__aarch64__)
    {"neon", mean_baseline},
#else
    {"baseline", mean_baseline},
#endif
#if defined(__x86_64__)
    {"avx2", mean_avx2},
    {"avx512", mean_avx512},
#endif
};

EXPORT int ckpttool_kernel_abi(void) { return ABI; }

/* The name of a variant, from 0 on, the best one last; null behind the last. */
EXPORT const char *ckpttool_kernel_name(int variant) {
    return variant >= 0 && (size_t)variant < sizeof variants / sizeof *variants ? variants[variant].name : NULL;
}

/* Whether this processor (and its operating system) can run a variant. */
EXPORT int ckpttool_kernel_supported(int variant) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (variant == 1) {
        unsigned int a, b, c, d; /* not every compiler knows the name of f16c here */
        return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    }
    if (variant == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return variant == 0;
}

/* What each of a float8 type's 256 patterns is. */
EXPORT void ckpttool_kernel_set_table(int type, const float *values) {
    memcpy(tables[type], values, sizeof tables[type]);
}

/* out = round((sum of weight * x) / divisor).

   Args: for each term the address of `count` elements, their type and their weight; `precise`: whether the sum is
   carried as a pair of float64 numbers. Returns 1 if some result is not finite, else 0.

   The processor's modes that would change results are set aside: other libraries in the process may have told it to
   take subnormal numbers for zero, or to round otherwise. */
EXPORT int ckpttool_weighted_mean(int variant, const void *const *raws, const uint8_t *types, const double *weights,
                                  size_t terms, size_t count, double divisor, int precise, int out_type, void *out) {
#if defined(__x86_64__)
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(0x1F80);
#elif defined(__aarch64__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
#endif
    const int nonfinite = variants[variant].mean(raws, types, weights, terms, count, divisor, precise, out_type, out);
#if defined(__x86_64__)
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#endif
    return nonfinite;
}
