// The inner loops, for whichever instruction set the including file is compiled for. A group goes by twice: once for
// its statistics, and, while it is still in the second-level cache, once to be written.
#ifndef EDGE_GROUP_NORM_SILU_GROUPS_H
#define EDGE_GROUP_NORM_SILU_GROUPS_H

#include <algorithm>
#include <cmath>

#include "group_norm_silu.h"
#include "lanes.h"
#include "scratch.h"
#include "tensors.h"

namespace edge {
namespace {

constexpr int64_t PIECE = 2048;  // values whose statistics are taken at once: they fit the first-level cache
constexpr int64_t STRIP = 64;    // positions that are moved at once where channels lie closest

inline void put(float *to, float value) { *to = value; }
inline void put(Bf16 *to, float value) { to->bits = to_bf16(value); }
inline void put(float *to, Floats value) { store(to, value); }
inline void put(Bf16 *to, Floats value) {
    const Words bits = (Words)value;
    const Words even = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Words kept = value == value ? even : Words{} + 0x7fc0u;
    const Halves halves = __builtin_convertvector(kept, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// Count, mean and sum of squares about it, put together by Chan, Golub and LeVeque (1979).
struct Moments {
    double count = 0, mean = 0, squares = 0;

    void add(double more, double its_mean, double its_squares) {
        const double total = count + more, apart = its_mean - mean;
        squares += its_squares + apart * apart * count * more / total;
        mean += apart * more / total;
        count = total;
    }
};

// About the first value, so that values which are all alike give exactly 0.
template <class T>
inline void add_piece(const T *x, int64_t count, Moments &moments) {
    const float pivot = value_of(x[0]);
    const int64_t whole = count / (4 * LANES) * (4 * LANES);
    Floats sums[4] = {}, squares[4] = {};
    for (int64_t i = 0; i < whole; i += 4 * LANES)
        for (int k = 0; k < 4; ++k) sums[k] += load(x + i + k * LANES) - pivot;
    double sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int64_t i = whole; i < count; ++i) sum += value_of(x[i]) - pivot;
    const double shift = sum / static_cast<double>(count);
    const float mean = static_cast<float>(pivot + shift);
    for (int64_t i = 0; i < whole; i += 4 * LANES)
        for (int k = 0; k < 4; ++k) {
            const Floats apart = load(x + i + k * LANES) - mean;
            squares[k] += apart * apart;
        }
    double square = sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (int64_t i = whole; i < count; ++i) {
        const float apart = value_of(x[i]) - mean;
        square += static_cast<double>(apart) * apart;
    }
    const double error = pivot + shift - mean;  // of the mean that was used
    moments.add(static_cast<double>(count), pivot + shift, square - error * error * static_cast<double>(count));
}

template <bool SILU, class V>
inline V activated(V value) {
    if constexpr (!SILU) return value;
    return value / (exponential(-value) + 1.0f);
}

template <bool SILU, class T>
inline void write_channel(const T *x, int64_t count, float mean, float factor, float bias, T *y) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) put(y + i, activated<SILU>((load(x + i) - mean) * factor + bias));
    for (; i < count; ++i) {
        const Floats value = all((value_of(x[i]) - mean) * factor + bias);
        put(y + i, activated<SILU>(value)[0]);
    }
}

// One stride for all positions of a channel; -1 where there is none.
inline int64_t spatial_stride(const edge_tensor &x) {
    int64_t stride = 1, expected = 0;
    for (int32_t axis = x.rank - 1; axis >= 2; --axis) {
        if (x.shape[axis] == 1) continue;
        if (expected == 0)
            stride = x.strides[axis];
        else if (x.strides[axis] != expected)
            return -1;
        expected = x.strides[axis] * x.shape[axis];
    }
    return stride;
}

// Where position `i` of a channel lies.
inline int64_t offset_of(const edge_tensor &x, int64_t i) {
    return offset_in_axes(x, i, 2, x.rank);
}

// A group with its channels one behind the other: where it lies, or a copy.
template <class T>
const T *channels_of(const group_norm_silu_call &call, const T *x) {
    const int64_t stride = spatial_stride(*call.x), apart = call.x->strides[1];
    if (stride == 1 && (apart == call.size || call.channels == 1)) return x;
    static thread_local Scratch scratch;
    T *copy = scratch.get<T>(static_cast<size_t>(call.channels * call.size));
    for (int64_t first = 0; first < call.size; first += STRIP)
        for (int64_t c = 0; c < call.channels; ++c)
            for (int64_t i = first; i < std::min(first + STRIP, call.size); ++i)
                copy[c * call.size + i] = x[c * apart + (stride < 0 ? offset_of(*call.x, i) : i * stride)];
    return copy;
}

template <class T>
float at(const edge_tensor &vector, int64_t channel) {
    return value_of(static_cast<const T *>(vector.data)[channel * vector.strides[0]]);
}

template <class T>
void normalize_as(const group_norm_silu_call &call, int64_t n, int64_t g) {
    const int64_t count = call.channels * call.size, first = g * call.channels;
    const T *x = static_cast<const T *>(call.x->data) + n * call.x->strides[0] + first * call.x->strides[1];
    x = channels_of(call, x);
    Moments moments;
    for (int64_t i = 0; i < count; i += PIECE) add_piece(x + i, std::min(PIECE, count - i), moments);
    const float mean = static_cast<float>(moments.mean);
    const double scale = 1 / std::sqrt(std::max(moments.squares, 0.0) / static_cast<double>(count) + call.eps);
    T *y = static_cast<T *>(call.output) + (n * call.groups + g) * count;
    for (int64_t c = 0; c < call.channels; ++c, x += call.size, y += call.size) {
        const float factor = static_cast<float>(scale * at<T>(*call.weight, first + c));
        const float bias = at<T>(*call.bias, first + c);
        if (call.silu)
            write_channel<true>(x, call.size, mean, factor, bias, y);
        else
            write_channel<false>(x, call.size, mean, factor, bias, y);
    }
}

inline void normalize(const group_norm_silu_call &call, int64_t n, int64_t g) {
    if (call.x->dtype == EDGE_FLOAT32)
        normalize_as<float>(call, n, g);
    else
        normalize_as<Bf16>(call, n, g);
}

}  // namespace
}  // namespace edge

#endif
