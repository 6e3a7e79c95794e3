// Small helpers on edge_tensor. Internal linkage, as in pool.h.
#ifndef EDGE_TENSORS_H
#define EDGE_TENSORS_H

#include <cstdint>
#include <cstring>

#include "edge.h"

namespace edge {
namespace {

inline int64_t count_of(const edge_tensor &tensor) {
    int64_t count = 1;
    for (int32_t axis = 0; axis < tensor.rank; ++axis) count *= tensor.shape[axis];
    return count;
}

// Of a tensor [..., width] with at least one axis: its rows, and where one begins, in elements.
inline int64_t row_count(const edge_tensor &tensor) {
    int64_t count = 1;
    for (int32_t axis = 0; axis + 1 < tensor.rank; ++axis) count *= tensor.shape[axis];
    return count;
}

// Where position `index` of the axes from `from` to before `to` lies, in elements.
inline int64_t offset_in_axes(const edge_tensor &tensor, int64_t index, int32_t from, int32_t to) {
    int64_t offset = 0;
    for (int32_t axis = to - 1; axis >= from; --axis) {
        offset += index % tensor.shape[axis] * tensor.strides[axis];
        index /= tensor.shape[axis];
    }
    return offset;
}

inline int64_t row_offset(const edge_tensor &tensor, int64_t row) {
    return offset_in_axes(tensor, row, 0, tensor.rank - 1);
}

// Whether an optional input was given.
inline bool is_given(const edge_tensor *inputs, int32_t input_count, int32_t index) {
    return index < input_count && inputs[index].dtype != EDGE_NONE;
}

// Dense and row-major from axis `from` on; axes of size 1 have no stride to speak of.
inline bool is_dense(const edge_tensor &tensor, int32_t from = 0) {
    int64_t expected = 1;
    for (int32_t axis = tensor.rank - 1; axis >= from; --axis) {
        if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
        expected *= tensor.shape[axis];
    }
    return true;
}

// `to` gets the rank, shape and dtype of `from`.
inline void copy_shape(const edge_tensor &from, edge_tensor &to) {
    to.rank = from.rank;
    to.dtype = from.dtype;
    std::memcpy(to.shape, from.shape, sizeof to.shape);
}

// OpenVINO's CPU plugin hands over int64 as int32.
inline bool is_integer(const edge_tensor &tensor) { return tensor.dtype == EDGE_INT64 || tensor.dtype == EDGE_INT32; }

// The integer at an offset, counted in elements.
inline int64_t integer_at(const edge_tensor &tensor, int64_t offset) {
    return tensor.dtype == EDGE_INT32 ? static_cast<const int32_t *>(tensor.data)[offset]
                                      : static_cast<const int64_t *>(tensor.data)[offset];
}

// bfloat16 and float16 by their bits, rounded to nearest even as PyTorch does; NaN stays NaN.
inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float from_fp16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 0x1f, mantissa = half & 0x3ff;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        const float value = static_cast<float>(mantissa) * 0x1p-24f;  // zero and denormals, exact
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t to_fp16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00;
    if (bits >= 0x477ff000u) return sign | 0x7c00;  // rounds to 65536 or more
    if (bits < 0x38800000u) {                       // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;  // the sum's last place is 2^-24, and it is rounded as wanted
        std::memcpy(&bits, &magnitude, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
    }
    bits += 0xfffu + (bits >> 13 & 1);
    return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}

}  // namespace
}  // namespace edge

#endif
