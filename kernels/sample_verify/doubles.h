// Doubles, as many at a time as the instruction set that a file is compiled for has, by the compilers' own vector
// types; the exponential function and exact quotients. All has internal linkage, as in pool.h.
#ifndef EDGE_SAMPLE_DOUBLES_H
#define EDGE_SAMPLE_DOUBLES_H

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace edge {
namespace {

#if defined(__AVX512F__)
constexpr int64_t WIDTH = 8;
#elif defined(__AVX__)
constexpr int64_t WIDTH = 4;
#else
constexpr int64_t WIDTH = 2;
#endif
typedef double Doubles __attribute__((vector_size(WIDTH * 8)));
typedef uint64_t Bits __attribute__((vector_size(WIDTH * 8)));
typedef float Singles __attribute__((vector_size(WIDTH * 4)));

inline Doubles load(const double *from) {
    Doubles value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Doubles load(const float *from) {
    Singles value;
    std::memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, Doubles);
}

// The first `count` values, the rest `filler`.
template <class T>
inline Doubles load_some(const T *from, int64_t count, double filler) {
    Doubles value = Doubles{} + filler;
    for (int64_t i = 0; i < count; ++i) value[i] = static_cast<double>(from[i]);
    return value;
}

inline void store(double *to, Doubles value) { std::memcpy(to, &value, sizeof value); }

inline double sum_of(Doubles v) {
    double total = 0;
    for (int64_t i = 0; i < WIDTH; ++i) total += v[i];
    return total;
}

// Division by one number for many: with FMA, the quotient by its reciprocal and one correction by the remainder
// is the correctly rounded one (Markstein, IBM Journal of Research and Development 34, 1990).
struct Divisor {
    double value, reciprocal;
    explicit Divisor(double by) : value(by), reciprocal(1.0 / by) {}
};

inline Doubles over(Doubles x, const Divisor &d) {
#if defined(__FMA__) || defined(__aarch64__)
    const Doubles quotient = x * d.reciprocal;
    const Doubles remainder = x - quotient * d.value;  // contracted to one rounding
    return quotient + remainder * d.reciprocal;
#else
    return x / d.value;
#endif
}

// e to the power of x for x <= 0, within 1 ulp; 0 below -746, and for NaN, which minus infinity over d becomes.
// Range reduction by ln 2 in two parts; a minimax polynomial for (e^r - 1 - r) / r^2 of degree 9.
inline Doubles exponential(Doubles x) {
    const Doubles low = Doubles{} - 746.0;
#if defined(__AVX512F__)
    const Doubles bounded = (Doubles)_mm512_maskz_max_pd(0xff, (__m512d)x, (__m512d)low);
#else
    const Doubles bounded = x > low ? x : low;
#endif
    const Doubles magic = Doubles{} + 0x1.8p52;  // adding it rounds to an integer
    const Doubles shifted = bounded * 0x1.71547652b82fep+0 + magic;
    const Doubles n = shifted - magic;
    const Doubles r = (bounded - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
    Doubles p = Doubles{} + 0x1.af38a9b0ec855p-26;
    p = p * r + 0x1.289185613a3d6p-22;
    p = p * r + 0x1.71de0dae63bb3p-19;
    p = p * r + 0x1.a019b90d2ae7ap-16;
    p = p * r + 0x1.a01a01a7c41d5p-13;
    p = p * r + 0x1.6c16c1788bd90p-10;
    p = p * r + 0x1.11111111109b3p-7;
    p = p * r + 0x1.5555555553d63p-5;
    p = p * r + 0x1.5555555555556p-3;
    p = p * r + 0x1.0000000000001p-1;
    p = p * (r * r) + r + 1.0;
#if defined(__AVX512F__)
    return (Doubles)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)n);
#else
    // 2^n in two factors, for down to 2^-1076 the result is denormal; n >= -1076
    const Bits power = (Bits)shifted - (Bits)magic;
    const Bits half = (power + 2048) >> 1;
    return p * (Doubles)((half - 1) << 52) * (Doubles)((power - half + 2047) << 52);
#endif
}

}  // namespace
}  // namespace edge

#endif
