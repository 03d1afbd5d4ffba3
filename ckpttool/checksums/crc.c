/* CRC-32 (of zip archives) and CRC-32C (of TensorFlow's files), by the instructions that processors have for it.

   On x86-64 by carry-less multiplication, as V. Gopal and others describe it in "Fast CRC Computation for Generic
   Polynomials Using PCLMULQDQ Instruction", Intel, 2009: the message is folded to 128 bits by multiplying what is far
   in front by x^distance modulo the polynomial, and reduced after Barrett. On arm64 by the instructions for both. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* What the Python side expects; raised when a function changes. */
#define ABI 1

enum kind { CRC32, CRC32C };

EXPORT int ckpttool_crc_abi(void) { return ABI; }

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

/* Of each polynomial P, bits reversed: x^(D+32) and x^(D-32) mod P for distances D of 2048, 512 and 128 bits;
   x^64 mod P; P and the quotient x^64 / P. */
struct constants {
    uint64_t by_2048[2], by_512[2], by_128[2], by_64, barrett[2];
};

static const struct constants constants[] = {
    {{0x11542778a, 0x1322d1430},
     {0x154442bd4, 0x1c6e41596},
     {0x1751997d0, 0x0ccaa009e},
     0x163cd6124,
     {0x1db710641, 0x1f7011641}},
    {{0x0dcb17aa4, 0x0b9e02b86},
     {0x0740eef02, 0x09e4addf8},
     {0x0f20c0dfe, 0x14cd00bd6},
     0x0dd45aab8,
     {0x105ec76f1, 0x0dea713f1}},
};

#define TARGET __attribute__((target("sse4.1,pclmul")))
#define WIDE_TARGET __attribute__((target("sse4.1,pclmul,avx512f,vpclmulqdq")))

/* `ahead` moved over a distance, plus what is there. */
static inline TARGET __m128i fold(__m128i ahead, __m128i factor, __m128i there) {
    const __m128i low = _mm_clmulepi64_si128(ahead, factor, 0x00);
    const __m128i high = _mm_clmulepi64_si128(ahead, factor, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

static inline WIDE_TARGET __m512i fold_wide(__m512i ahead, __m512i factor, __m512i there) {
    const __m512i low = _mm512_clmulepi64_epi128(ahead, factor, 0x00);
    const __m512i high = _mm512_clmulepi64_epi128(ahead, factor, 0x11);
    return _mm512_ternarylogic_epi64(low, high, there, 0x96);
}

/* The rest of a message whose first 64 bytes have been put into `parts`; `count` is a multiple of 16. */
static TARGET uint32_t finish(const struct constants *c, const __m128i *parts, const unsigned char *data,
                              size_t count) {
    const __m128i by_512 = _mm_loadu_si128((const __m128i *)c->by_512);
    const __m128i by_128 = _mm_loadu_si128((const __m128i *)c->by_128);
    const __m128i barrett = _mm_loadu_si128((const __m128i *)c->barrett);
    const __m128i lower = _mm_setr_epi32(-1, 0, -1, 0);
    __m128i part[4], x, y;
    for (int i = 0; i < 4; i++)
        part[i] = parts[i];
    for (; count >= 64; data += 64, count -= 64)
        for (int i = 0; i < 4; i++)
            part[i] = fold(part[i], by_512, _mm_loadu_si128((const __m128i *)data + i));
    x = part[0];
    for (int i = 1; i < 4; i++)
        x = fold(x, by_128, part[i]);
    for (; count >= 16; data += 16, count -= 16)
        x = fold(x, by_128, _mm_loadu_si128((const __m128i *)data));
    /* 128 bits to 64 */
    y = _mm_clmulepi64_si128(x, by_128, 0x10);
    x = _mm_xor_si128(_mm_srli_si128(x, 8), y);
    y = _mm_srli_si128(x, 4);
    x = _mm_clmulepi64_si128(_mm_and_si128(x, lower), _mm_loadl_epi64((const __m128i *)&c->by_64), 0x00);
    x = _mm_xor_si128(x, y);
    /* 64 bits to 32 */
    y = _mm_clmulepi64_si128(_mm_and_si128(x, lower), barrett, 0x10);
    y = _mm_clmulepi64_si128(_mm_and_si128(y, lower), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x, y), 1);
}

static TARGET uint32_t crc_128(const struct constants *c, uint32_t crc, const unsigned char *data, size_t count) {
    __m128i parts[4];
    for (int i = 0; i < 4; i++)
        parts[i] = _mm_loadu_si128((const __m128i *)data + i);
    parts[0] = _mm_xor_si128(parts[0], _mm_cvtsi32_si128((int)crc));
    return finish(c, parts, data + 64, count - 64);
}

static WIDE_TARGET uint32_t crc_512(const struct constants *c, uint32_t crc, const unsigned char *data, size_t count) {
    const __m512i by_2048 = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)c->by_2048));
    const __m512i by_512 = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)c->by_512));
    __m512i part[4];
    __m128i parts[4];
    for (int i = 0; i < 4; i++)
        part[i] = _mm512_loadu_si512(data + 64 * i);
    part[0] = _mm512_xor_si512(part[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    data += 256;
    count -= 256;
    for (; count >= 256; data += 256, count -= 256)
        for (int i = 0; i < 4; i++)
            part[i] = fold_wide(part[i], by_2048, _mm512_loadu_si512(data + 64 * i));
    for (int i = 1; i < 4; i++)
        part[i] = fold_wide(part[i - 1], by_512, part[i]);
    _mm512_storeu_si512(parts, part[3]);
    return finish(c, parts, data, count);
}

/* Bit by bit, for less than 16 bytes. */
static uint32_t crc_tail(const struct constants *c, uint32_t crc, const unsigned char *data, size_t count) {
    const uint32_t polynomial = (uint32_t)(c->barrett[0] >> 1);
    for (; count; data++, count--) {
        crc ^= *data;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? polynomial : 0);
    }
    return crc;
}

/* 2: with vectors of 512 bits; 1: of 128 bits; 0: not at all. */
static int level(void) {
    static int known = -1;
    if (known < 0) {
        unsigned int a, b, c, d;
        __builtin_cpu_init();
        known = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_PCLMUL) && (c & bit_SSE4_1);
        if (known && __builtin_cpu_supports("avx512f") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 10))
            known = 2;
    }
    return known;
}

EXPORT int ckpttool_crc_supported(void) { return level() > 0; }

EXPORT uint32_t ckpttool_crc(int kind, uint32_t crc, const unsigned char *data, size_t count) {
    const struct constants *c = &constants[kind];
    const size_t whole = count & ~(size_t)15;
    crc = ~crc;
    if (count >= 64) {
        crc = (level() == 2 && count >= 256 ? crc_512 : crc_128)(c, crc, data, whole);
        data += whole;
        count -= whole;
    }
    return ~crc_tail(c, crc, data, count);
}

#elif defined(__aarch64__)

#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define TARGET __attribute__((target("+crc")))

EXPORT int ckpttool_crc_supported(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & 1 << 7) != 0;
#else
    return 1; /* every arm64 of Apple has them */
#endif
}

#define CRC(name, eight, one)                                                                                          \
    static TARGET uint32_t name(uint32_t crc, const unsigned char *data, size_t count) {                               \
        uint64_t word;                                                                                                 \
        for (; count >= sizeof word; data += sizeof word, count -= sizeof word) {                                      \
            memcpy(&word, data, sizeof word);                                                                          \
            crc = eight(crc, word);                                                                                    \
        }                                                                                                              \
        for (; count; data++, count--)                                                                                 \
            crc = one(crc, *data);                                                                                     \
        return crc;                                                                                                    \
    }

CRC(crc_zip, __crc32d, __crc32b)
CRC(crc_castagnoli, __crc32cd, __crc32cb)

EXPORT uint32_t ckpttool_crc(int kind, uint32_t crc, const unsigned char *data, size_t count) {
    return ~(kind == CRC32 ? crc_zip : crc_castagnoli)(~crc, data, count);
}

#else

EXPORT int ckpttool_crc_supported(void) { return 0; }

EXPORT uint32_t ckpttool_crc(int kind, uint32_t crc, const unsigned char *data, size_t count) {
    (void)kind, (void)data, (void)count;
    return crc;
}

#endif
