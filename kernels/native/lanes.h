// Vectors as wide as the instruction set that a file is compiled for, by the compilers' own vector types (GCC,
// Clang): one text for SSE2, NEON, AVX2 and AVX-512. All has internal linkage, as in pool.h.
#ifndef EDGE_LANES_H
#define EDGE_LANES_H

#include <cstdint>
#include <cstring>
#include <utility>

#include "edge.h"
#include "tensors.h"

#if defined(__AVX2__)
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 takes its own _mm512_undefined for a mistake
#endif
#include <immintrin.h>
#endif

namespace edge {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
struct Bf16 {
    uint16_t bits;
};

template <class V, class T>
inline V load_as(const T *from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline Floats load(const float *from) { return load_as<Floats>(from); }

inline Floats load(const Bf16 *from) {
    return (Floats)(__builtin_convertvector(load_as<Halves>(from), Words) << 16);
}

inline Floats load(const int8_t *from) {
#if defined(__AVX512F__)  // what GCC 12 makes of the conversion is ten times slower
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#elif defined(__AVX2__)
    int64_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
#else
    Ints values;
    for (int i = 0; i < LANES; ++i) values[i] = from[i];
    return __builtin_convertvector(values, Floats);
#endif
}

inline float value_of(float value) { return value; }
inline float value_of(Bf16 value) { return from_bf16(value.bits); }
inline float value_of(int8_t value) { return value; }

inline void store(float *to, Floats value) { std::memcpy(to, &value, sizeof value); }

template <int... I>
inline Floats all(float value, std::integer_sequence<int, I...>) {
    return Floats{(static_cast<void>(I), value)...};
}
inline Floats all(float value) { return all(value, std::make_integer_sequence<int, LANES>()); }

// `b` where either is NaN, as the instruction does.
template <class V>
inline V greater(V a, V b) {
    return a > b ? a : b;
}

// Lane i of the result is lane i ^ S.
template <int S, class V, int... I>
inline V crossed(V v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ S)...);
}

// All lanes together, by halves.
template <int S = LANES / 2, class V>
inline auto sum_of(V v) {
    if constexpr (S == 0)
        return v[0];
    else
        return sum_of<S / 2>(v + crossed<S>(v, std::make_integer_sequence<int, LANES>()));
}

template <int S = LANES / 2, class V>
inline auto greatest_of(V v) {
    if constexpr (S == 0)
        return v[0];
    else
        return greatest_of<S / 2>(greater(v, crossed<S>(v, std::make_integer_sequence<int, LANES>())));
}

// e to the power of x: 0 below -86, infinity above 88.8, NaN for NaN; relative error below 2e-7 between.
// Range reduction by ln 2 in two parts and the polynomial of Cephes' expf.
inline Floats exponential(Floats x) {
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats capped = x > 89.0f ? all(89.0f) : x;
    const Floats bounded = capped < -87.0f ? all(-87.0f) : capped;
    const Floats shifted = bounded * 1.44269504f + magic;
    const Floats n = shifted - magic;
    const Floats r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // twice 2^(n - 1), for 2^128 is no float
    const Words power = (Words)shifted - (Words)magic + 126u;
    const Floats whole = (p + p) * (Floats)(power << 23);
    return x < -86.0f ? Floats{} : whole;
}

}  // namespace
}  // namespace edge

#endif
