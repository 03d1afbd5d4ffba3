/* The loops of kernel.c, for one instruction set: included with BODY (adds its name) and TARGET (chooses it). */

#define INLINE static inline __attribute__((always_inline)) TARGET

/* ---------------------------------------------------------------------------------------------------- widening */

INLINE double BODY(widen_float32)(const void *raw, size_t index) { return ((const loose_float *)raw)[index]; }

INLINE double BODY(widen_float64)(const void *raw, size_t index) { return ((const loose_double *)raw)[index]; }

INLINE double BODY(widen_bfloat16)(const void *raw, size_t index) {
    return float_of_bits((uint32_t)((const loose_u16 *)raw)[index] << 16);
}

/* The bits go where float32 has them, and the exponent gets float32's bias. A subnormal number is read with one more
   in its exponent, as 2^-14 too much; infinity and NaN get the greatest exponent. (F. Giesen, "Half to float done
   quic", https://fgiesen.wordpress.com/2012/03/28/.) */
INLINE double BODY(widen_float16)(const void *raw, size_t index) {
    const uint32_t half = ((const loose_u16 *)raw)[index];
    const uint32_t magnitude = (half & 0x7FFF) << 13;
    const uint32_t exponent = magnitude & 0x0F800000;
    const uint32_t normal = magnitude + (exponent == 0x0F800000 ? 224u << 23 : 112u << 23);
    const float subnormal = float_of_bits(magnitude + (113u << 23)) - 0x1p-14f;
    const uint32_t bits = exponent == 0 ? bits_of_float(subnormal) : normal;
    return float_of_bits(bits | (half & 0x8000) << 16);
}

#define ADDING(type, widen)                                                                                            \
    static TARGET void BODY(set_##type)(double *restrict sum, const void *raw, double weight, size_t count) {          \
        for (size_t i = 0; i < count; i++)                                                                             \
            sum[i] = weight * (widen);                                                                                 \
    }                                                                                                                  \
    static TARGET void BODY(add_##type)(double *restrict sum, const void *raw, double weight, size_t count) {          \
        for (size_t i = 0; i < count; i++)                                                                             \
            sum[i] += weight * (widen);                                                                                \
    }

ADDING(float32, BODY(widen_float32)(raw, i))
ADDING(bfloat16, BODY(widen_bfloat16)(raw, i))
#ifdef HALF_LANES /* so many at a time by an instruction */
static TARGET void BODY(halves)(float *restrict to, const void *raw, size_t count) {
    size_t i = 0;
    for (; i + HALF_LANES <= count; i += HALF_LANES)
        BODY(halves_to_floats)(to + i, (const char *)raw + 2 * i);
    for (; i < count; i++)
        to[i] = (float)BODY(widen_float16)(raw, i);
}

static TARGET void BODY(set_float16)(double *restrict sum, const void *raw, double weight, size_t count) {
    float values[BLOCK];
    BODY(halves)(values, raw, count);
    BODY(set_float32)(sum, values, weight, count);
}

static TARGET void BODY(add_float16)(double *restrict sum, const void *raw, double weight, size_t count) {
    float values[BLOCK];
    BODY(halves)(values, raw, count);
    BODY(add_float32)(sum, values, weight, count);
}
#else
ADDING(float16, BODY(widen_float16)(raw, i))
#endif
ADDING(float64, BODY(widen_float64)(raw, i))
#undef ADDING

/* The values of any type as float64. */
static TARGET void BODY(widen)(double *restrict values, const void *raw, int type, size_t count) {
    switch (type) {
    case FLOAT32:
        for (size_t i = 0; i < count; i++)
            values[i] = BODY(widen_float32)(raw, i);
        break;
    case BFLOAT16:
        for (size_t i = 0; i < count; i++)
            values[i] = BODY(widen_bfloat16)(raw, i);
        break;
    case FLOAT16:
        for (size_t i = 0; i < count; i++)
            values[i] = BODY(widen_float16)(raw, i);
        break;
    case FLOAT64:
        for (size_t i = 0; i < count; i++)
            values[i] = BODY(widen_float64)(raw, i);
        break;
    default:
        for (size_t i = 0; i < count; i++)
            values[i] = tables[type][((const uint8_t *)raw)[i]];
    }
}

/* ---------------------------------------------------------------------------------------------------- rounding */

/* A float64, rounded once to `precision` bits and the least exponent `least`, as a float32, which has them all.

   m = 1.5 * 2^(53 - precision) * (the power of two in |x|, at least 2^least) has its last bit where the result shall
   have it, so that one addition rounds half to even at that bit, and one subtraction takes m off again (after
   T. Dekker, "A floating-point technique for extending the available precision", 1971, section 5). NaN remains. */
INLINE float BODY(round_to)(double value, int precision, int least) {
    double size = double_of_bits(bits_of_double(value) & ~SIGN64);
    size = size > POWER(200) ? POWER(200) : size; /* overflows anyway */
    double power = double_of_bits(bits_of_double(size) & INFINITY64);
    power = power < POWER(least) ? POWER(least) : power;
    const double magic = power * (1.5 * POWER(53 - precision));
    const double rounded = (size + magic) - magic;
    return (float)double_of_bits(bits_of_double(rounded) | (bits_of_double(value) & SIGN64));
}

/* The bits of a type with `mantissa` stored bits, the exponent bias `bias` and the greatest finite number `greatest`
   (its bits). Subnormal numbers are read off 2^least + |x|, so that no step meets a subnormal float32. */
INLINE uint32_t BODY(pack)(float rounded, int mantissa, int bias, uint32_t greatest, uint32_t beyond, uint32_t nan,
                           uint32_t sign, int has_negative_zero, uint32_t *nonfinite) {
    const uint32_t bits = bits_of_float(rounded);
    const uint32_t magnitude = bits & ~SIGN32;
    const uint32_t subnormal = (int32_t)magnitude < (128 - bias) << 23 ? 1u : 0u;
    const float least = float_of_bits((uint32_t)(128 - bias) << 23);
    const float size = float_of_bits(magnitude);
    const uint32_t raised = bits_of_float(subnormal ? size + least : size);
    uint32_t packed = (raised >> (23 - mantissa)) - (((uint32_t)(127 - bias) + subnormal) << mantissa);
    const uint32_t over = (int32_t)packed > (int32_t)greatest ? 1u : 0u;
    *nonfinite |= over;
    packed = over ? beyond : packed;
    const uint32_t negative = bits & SIGN32 ? sign : 0;
    packed |= has_negative_zero || packed ? negative : 0;
    packed = over && beyond == nan ? nan : packed;
    return (int32_t)magnitude > (int32_t)INFINITY32 ? nan : packed;
}

/* Divide by `divisor`, round, store. All return whether something is not finite. */

static TARGET uint32_t BODY(store_float64)(const double *restrict sum, double divisor, void *out, size_t count) {
    loose_u64 *restrict to = out;
    uint64_t nonfinite = 0;
    for (size_t i = 0; i < count; i++) {
        const uint64_t bits = bits_of_double(sum[i] / divisor);
        const uint64_t magnitude = bits & ~SIGN64;
        nonfinite |= magnitude >= INFINITY64;
        to[i] = magnitude > INFINITY64 ? 0x7FF8000000000000u : bits;
    }
    return nonfinite != 0;
}

static TARGET uint32_t BODY(store_float32)(const double *restrict sum, double divisor, void *out, size_t count) {
    loose_u32 *restrict to = out;
    uint32_t nonfinite = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = bits_of_float((float)(sum[i] / divisor));
        const uint32_t magnitude = bits & ~SIGN32;
        nonfinite |= (int32_t)magnitude >= (int32_t)INFINITY32 ? 1u : 0u;
        to[i] = (int32_t)magnitude > (int32_t)INFINITY32 ? 0x7FC00000u : bits;
    }
    return nonfinite;
}

/* Two loops, since compilers do not vectorise one that goes from eight bytes to two. */
#define ROUND(precision, least)                                                                                        \
    float rounded[BLOCK];                                                                                              \
    for (size_t i = 0; i < count; i++)                                                                                 \
        rounded[i] = BODY(round_to)(sum[i] / divisor, precision, least)

static TARGET uint32_t BODY(store_bfloat16)(const double *restrict sum, double divisor, void *out, size_t count) {
    loose_u16 *restrict to = out;
    uint32_t nonfinite = 0;
    ROUND(8, -126);
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = bits_of_float(rounded[i]);
        const uint32_t magnitude = bits & ~SIGN32;
        nonfinite |= (int32_t)magnitude >= (int32_t)INFINITY32 ? 1u : 0u;
        to[i] = (uint16_t)(((int32_t)magnitude > (int32_t)INFINITY32 ? 0x7FC00000u : bits) >> 16);
    }
    return nonfinite;
}

#define STORING(type, word, mantissa, bias, greatest, beyond, nan, sign, has_negative_zero)                            \
    static TARGET uint32_t BODY(store_##type)(const double *restrict sum, double divisor, void *out, size_t count) {   \
        word *restrict to = out;                                                                                       \
        uint32_t nonfinite = 0;                                                                                        \
        ROUND(mantissa + 1, 1 - bias);                                                                                 \
        for (size_t i = 0; i < count; i++)                                                                             \
            to[i] = (word)BODY(pack)(rounded[i], mantissa, bias, greatest, beyond, nan, sign, has_negative_zero,       \
                                     &nonfinite);                                                                      \
        return nonfinite;                                                                                              \
    }

#ifdef HALF_LANES
static TARGET uint32_t BODY(store_float16)(const double *restrict sum, double divisor, void *out, size_t count) {
    loose_u16 *restrict to = out;
    uint16_t nonfinite = 0;
    size_t i = 0;
    ROUND(11, -14);
    for (; i + HALF_LANES <= count; i += HALF_LANES)
        BODY(floats_to_halves)((char *)out + 2 * i, rounded + i); /* exact: they are such numbers already */
    for (; i < count; i++) {
        uint32_t ignored = 0;
        to[i] = (uint16_t)BODY(pack)(rounded[i], 10, 15, 0x7BFF, 0x7C00, 0x7E00, 0x8000, 1, &ignored);
    }
    for (i = 0; i < count; i++) {
        const uint16_t bits = to[i], magnitude = bits & 0x7FFF;
        nonfinite |= (int16_t)magnitude >= 0x7C00 ? 1 : 0;
        to[i] = (int16_t)magnitude > 0x7C00 ? 0x7E00 : bits;
    }
    return nonfinite;
}
#else
STORING(float16, loose_u16, 10, 15, 0x7BFF, 0x7C00, 0x7E00, 0x8000, 1)
#endif
STORING(float8_e4m3fn, uint8_t, 3, 7, 0x7E, 0x7F, 0x7F, 0x80, 1)
STORING(float8_e4m3fnuz, uint8_t, 3, 8, 0x7F, 0x80, 0x80, 0x80, 0)
STORING(float8_e5m2, uint8_t, 2, 15, 0x7B, 0x7C, 0x7E, 0x80, 1)
STORING(float8_e5m2fnuz, uint8_t, 2, 16, 0x7F, 0x80, 0x80, 0x80, 0)
#undef STORING
#undef ROUND

static TARGET uint32_t BODY(store)(const double *sum, double divisor, int type, void *out, size_t count) {
    switch (type) {
    case FLOAT32:
        return BODY(store_float32)(sum, divisor, out, count);
    case BFLOAT16:
        return BODY(store_bfloat16)(sum, divisor, out, count);
    case FLOAT16:
        return BODY(store_float16)(sum, divisor, out, count);
    case FLOAT64:
        return BODY(store_float64)(sum, divisor, out, count);
    case FLOAT8_E4M3FN:
        return BODY(store_float8_e4m3fn)(sum, divisor, out, count);
    case FLOAT8_E4M3FNUZ:
        return BODY(store_float8_e4m3fnuz)(sum, divisor, out, count);
    case FLOAT8_E5M2:
        return BODY(store_float8_e5m2)(sum, divisor, out, count);
    default:
        return BODY(store_float8_e5m2fnuz)(sum, divisor, out, count);
    }
}

/* ------------------------------------------------------------------------------------------------ double-double */

/* The error of product = value * factor, by Dekker's splitting. */
INLINE double BODY(product_error)(double value, double factor, double product) {
    const double spread = value * DEKKER;
    const double value_high = spread - (spread - value);
    const double value_low = value - value_high;
    const double factor_spread = factor * DEKKER;
    const double factor_high = factor_spread - (factor_spread - factor);
    const double factor_low = factor - factor_high;
    return ((value_high * factor_high - product) + value_high * factor_low + value_low * factor_high) +
           value_low * factor_low;
}

/* The sum of weight * (scale * x) as high + low; see numpy_kernel.py, which does the same. */
static TARGET void BODY(pair_sum)(double *restrict high, double *restrict low, const void *const *raws,
                                  const uint8_t *types, const double *weights, size_t terms, size_t start,
                                  size_t count, double scale) {
    double values[BLOCK];
    for (size_t term = 0; term < terms; term++) {
        const double weight = weights[term];
        BODY(widen)(values, (const char *)raws[term] + start * sizes[types[term]], types[term], count);
        if (scale != 1)
            for (size_t i = 0; i < count; i++)
                values[i] *= scale;
        if (term == 0) {
            for (size_t i = 0; i < count; i++) {
                high[i] = weight == 1 ? values[i] : values[i] * weight;
                low[i] = weight == 1 ? 0 : BODY(product_error)(values[i], weight, high[i]);
            }
        } else {
            for (size_t i = 0; i < count; i++) {
                const double value = weight == 1 ? values[i] : values[i] * weight;
                const double total = high[i] + value;
                const double part = total - high[i];
                low[i] += (high[i] - (total - part)) + (value - part);
                if (weight != 1)
                    low[i] += BODY(product_error)(values[i], weight, value);
                high[i] = total;
            }
        }
    }
}

INLINE double BODY(pair_quotient)(double high, double low, double divisor) {
    double quotient = high, rest = low;
    if (divisor != 1) {
        quotient = high / divisor;
        const double product = quotient * divisor;
        rest = (((high - product) - BODY(product_error)(quotient, divisor, product)) + low) / divisor;
    }
    return rest == 0 ? quotient : quotient + rest;
}

static TARGET void BODY(pair_mean)(double *restrict mean, const void *const *raws, const uint8_t *types,
                                   const double *weights, size_t terms, size_t start, size_t count, double divisor) {
    double high[BLOCK], low[BLOCK];
    uint64_t lost = 0;
    BODY(pair_sum)(high, low, raws, types, weights, terms, start, count, 1);
    for (size_t i = 0; i < count; i++) {
        mean[i] = BODY(pair_quotient)(high[i], low[i], divisor);
        lost |= (bits_of_double(mean[i]) & ~SIGN64) >= INFINITY64;
    }
    if (!lost)
        return;
    /* NaN, infinity, or an overflow on the way: once more on a smaller scale. */
    BODY(pair_sum)(high, low, raws, types, weights, terms, start, count, POWER(-128));
    for (size_t i = 0; i < count; i++) {
        if ((bits_of_double(mean[i]) & ~SIGN64) < INFINITY64)
            continue;
        mean[i] = BODY(pair_quotient)(high[i], low[i], divisor) / POWER(-128);
        if (mean[i] != mean[i]) /* the error terms of infinity are NaN; the plain sum is not */
            mean[i] = (divisor == 1 ? high[i] : high[i] / divisor) / POWER(-128);
    }
}

/* -------------------------------------------------------------------------------------------------------- means */

static TARGET void BODY(add)(double *restrict sum, const void *raw, int type, double weight, size_t count, int first) {
    double values[BLOCK];
    switch (type) {
    case FLOAT32:
        (first ? BODY(set_float32) : BODY(add_float32))(sum, raw, weight, count);
        return;
    case BFLOAT16:
        (first ? BODY(set_bfloat16) : BODY(add_bfloat16))(sum, raw, weight, count);
        return;
    case FLOAT16:
        (first ? BODY(set_float16) : BODY(add_float16))(sum, raw, weight, count);
        return;
    case FLOAT64:
        (first ? BODY(set_float64) : BODY(add_float64))(sum, raw, weight, count);
        return;
    default:
        BODY(widen)(values, raw, type, count);
        (first ? BODY(set_float64) : BODY(add_float64))(sum, values, weight, count);
    }
}

static TARGET int BODY(mean)(const void *const *raws, const uint8_t *types, const double *weights, size_t terms,
                             size_t count, double divisor, int precise, int out_type, void *out) {
    double sum[BLOCK];
    uint32_t nonfinite = 0;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t length = count - start < BLOCK ? count - start : BLOCK;
        void *const to = (char *)out + start * sizes[out_type];
        if (precise) {
            BODY(pair_mean)(sum, raws, types, weights, terms, start, length, divisor);
            nonfinite |= BODY(store)(sum, 1, out_type, to, length);
            continue;
        }
        for (size_t term = 0; term < terms; term++)
            BODY(add)(sum, (const char *)raws[term] + start * sizes[types[term]], types[term], weights[term], length,
                      term == 0);
        nonfinite |= BODY(store)(sum, divisor, out_type, to, length);
    }
    return nonfinite != 0;
}

#undef INLINE
