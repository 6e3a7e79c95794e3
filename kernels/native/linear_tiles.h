// The edges of a linear kernel's tile, 16 columns of its output, in vectors of the instruction set at hand: scales in,
// sums out. `Call` is a kernel's own; all have `scales`, `half`, `bias`, `output` and `columns`. Internal linkage.
#ifndef EDGE_LINEAR_TILES_H
#define EDGE_LINEAR_TILES_H

#include <cstdint>

#include "lanes.h"
#include "tensors.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edge {
namespace {

constexpr int64_t LINEAR_TILE = 16;

template <class Call>
inline float scale_at(const Call *call, int64_t index) {
    return call->half ? from_fp16(static_cast<const uint16_t *>(call->scales)[index])
                      : static_cast<const float *>(call->scales)[index];
}

// As many scales as a vector has lanes.
template <class Call>
inline Floats scales_at(const Call *call, int64_t index) {
    if (!call->half) return load(static_cast<const float *>(call->scales) + index);
    const uint16_t *from = static_cast<const uint16_t *>(call->scales) + index;
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(load_as<__m256i>(from));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtph_ps(load_as<__m128i>(from));
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
    Floats found;
    for (int i = 0; i < LANES; ++i) found[i] = from_fp16(from[i]);
    return found;
#endif
}

// Puts `count` columns of a row out, plus the bias; what lies past the last column is not written.
template <class Call>
inline void put(const Call *call, int64_t row, int64_t column, const float *total, int64_t count) {
    float *y = call->output + row * call->columns + column;
    for (int64_t n = 0; n < count && column + n < call->columns; ++n)
        y[n] = total[n] + (call->bias == nullptr ? 0.0f : call->bias[column + n]);
}

template <class Call>
inline void put(const Call *call, int64_t row, int64_t column, Floats total) {
    float made[LANES];
    store(made, total);
    put(call, row, column, made, LANES);
}

#if defined(__AVX512F__)
// R rows of C tiles.
template <int R, int C, class Call>
[[gnu::always_inline]] inline void put_tiles(const Call *call, int64_t row, int64_t tile, const __m512 (&total)[C][R]) {
    for (int c = 0; c < C; ++c) {
        const int64_t column = (tile + c) * LINEAR_TILE, left = call->columns - column;
        const __mmask16 kept = left >= LANES ? 0xffff : static_cast<__mmask16>((1u << (left > 0 ? left : 0)) - 1);
        const __m512 bias = call->bias ? _mm512_maskz_loadu_ps(kept, call->bias + column) : _mm512_setzero_ps();
        for (int r = 0; r < R; ++r)
            _mm512_mask_storeu_ps(call->output + (row + r) * call->columns + column, kept,
                                  _mm512_add_ps(total[c][r], bias));
    }
}
#endif

}  // namespace
}  // namespace edge

#endif
