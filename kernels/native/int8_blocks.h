// Activations on an int8 grid, a scale for each block: what the linear kernels multiply. Internal linkage, as in pool.h.
//
// scale = max |x| / 127 (or another limit) and q = x * (1 / scale), rounded half to even, each step in float32: any
// machine gets the same integers. A block below 2^-118, whose scale would be no normal number, counts as zeros. A block
// with a NaN or an infinity has the scale NaN, which makes the row NaN.
#ifndef EDGE_INT8_BLOCKS_H
#define EDGE_INT8_BLOCKS_H

#include <cmath>
#include <cstdint>
#include <cstring>

#include "edge.h"
#include "lanes.h"
#include "scratch.h"
#include "tensors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge {
namespace {

constexpr int64_t BLOCK_STEP = 16, BLOCK_MOST = 128;

// How many activations share a scale where `group` weights do: the largest multiple of `step` up to 128 that divides it.
inline int64_t block_of(int64_t group, int64_t step) {
    for (int64_t block = BLOCK_MOST; block >= step; block -= step)
        if (group % block == 0) return block;
    return 0;
}

inline Ints rounded(Floats value) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtps_epi32((__m256)value);
#elif defined(__x86_64__)
    return (Ints)_mm_cvtps_epi32((__m128)value);
#elif defined(__aarch64__)
    return (Ints)vcvtnq_s32_f32((float32x4_t)value);
#else
    Ints found;
    for (int i = 0; i < LANES; ++i) found[i] = static_cast<int32_t>(std::nearbyint(value[i]));
    return found;
#endif
}

// The values, which fit, as bytes.
inline void store_bytes(int8_t *to, Ints value) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8((__m512i)value));
#elif defined(__AVX2__)
    const __m128i halves =
        _mm_packs_epi32(_mm256_castsi256_si128((__m256i)value), _mm256_extracti128_si256((__m256i)value, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packs_epi16(halves, halves));
#else
    for (int i = 0; i < LANES; ++i) to[i] = static_cast<int8_t>(value[i]);
#endif
}

struct Int8Block {
    float scale;
    int32_t sum;
};

inline Int8Block to_int8(const float *x, int64_t count, int8_t *q, float limit = 127.0f) {
    Ints most = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Ints bits = load_as<Ints>(x + i) & 0x7fffffff;
        most = greater(bits, most);
    }
    const int32_t peak = greatest_of(most);
    constexpr int32_t INFINITE = 0x7f800000, SMALL = (127 - 118) << 23;
    if (peak >= INFINITE || peak < SMALL) {
        for (int64_t i = 0; i < count; ++i) q[i] = 0;
        return {peak >= INFINITE ? std::nanf("") : 0.0f, 0};
    }
    float largest;
    std::memcpy(&largest, &peak, 4);
    const float scale = largest / limit;
    const Floats inverse = all(1.0f / scale);
    Ints total = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Ints value = rounded(load(x + i) * inverse);
        store_bytes(q + i, value);
        total += value;
    }
    return {scale, sum_of(total)};
}

// Row `row` of [..., K], dense: in place where it is, else copied to `room`, which has K places.
inline const float *row_of(const edge_tensor &tensor, int64_t row, float *room) {
    const float *data = static_cast<const float *>(tensor.data) + row_offset(tensor, row);
    const int64_t depth = tensor.shape[tensor.rank - 1], stride = tensor.strides[tensor.rank - 1];
    if (stride == 1 || depth < 2) return data;
    for (int64_t k = 0; k < depth; ++k) room[k] = data[k * stride];
    return room;
}

// The values of `tensor` in row-major order: in place where they are, else copied to `room`.
inline const void *dense(const edge_tensor &tensor, int64_t bytes, Scratch &room) {
    if (is_dense(tensor)) return tensor.data;
    const int64_t count = count_of(tensor);
    char *to = room.get<char>(static_cast<size_t>(count * bytes));
    for (int64_t i = 0; i < count; ++i) {
        int64_t rest = i, offset = 0;
        for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
            offset += rest % tensor.shape[axis] * tensor.strides[axis];
            rest /= tensor.shape[axis];
        }
        std::memcpy(to + i * bytes, static_cast<const char *>(tensor.data) + offset * bytes, bytes);
    }
    return to;
}

}  // namespace
}  // namespace edge

#endif
