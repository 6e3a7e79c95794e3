// The inner loops, for whichever instruction set the including file is compiled for. A part of the past goes by once,
// in blocks of 128 rows: scores of a block, the running softmax of Milakov and Gimelshein (2018), weighted values.
// Keys are packed transposed into the first-level cache as they come; values are read where they lie.
#ifndef EDGE_TREE_ATTENTION_BLOCKS_H
#define EDGE_TREE_ATTENTION_BLOCKS_H

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <type_traits>

#include "lanes.h"
#include "products.h"
#include "scratch.h"
#include "tensors.h"
#include "tree_attention.h"

namespace edge {
namespace {

constexpr int64_t BLOCK = 128;
static_assert(BLOCK % PANEL == 0, "a block is whole panels");

// Rows of one head.
template <class T>
struct Rows {
    const T *data;
    int64_t row_stride, stride;
    const float *scale;
    int64_t scale_stride;

    const T *at(int64_t row) const { return data + row * row_stride; }
};

// `to` [width rounded up to vectors] gets a row as floats, with zeros behind it.
template <class T>
inline void widen_row(const T *from, int64_t stride, int64_t width, float *to) {
    int64_t i = 0;
    if (stride == 1)
        for (; i + LANES <= width; i += LANES) store(to + i, load(from + i));
    for (; i < width; ++i) to[i] = value_of(from[i * stride]);
    for (; i % LANES != 0; ++i) to[i] = 0;
}

inline int64_t rounded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

// What a part works with: one allocation, cut up.
struct Workspace {
    int64_t key_width, value_width;  // rounded up to whole vectors
    float *queries, *scores, *values, *sums, *peaks, *keys, *packed, *row, *new_keys, *new_values;

    Workspace(const tree_attention_call &call, const tree_attention_part &part, Scratch &scratch) {
        key_width = rounded(call.key_width), value_width = rounded(call.value_width);
        const int64_t made = part.is_last ? call.tokens : 0;
        const int64_t sizes[] = {part.rows * key_width, part.rows * BLOCK,   part.rows * value_width, rounded(part.rows),
                                 rounded(part.rows),    BLOCK * key_width,   BLOCK * value_width,     LANES * key_width,
                                 made * key_width,      made * value_width};
        float **places[] = {&queries, &scores, &values, &sums, &peaks, &keys, &packed, &row, &new_keys, &new_values};
        int64_t total = 0;
        for (int64_t size : sizes) total += size + 16;
        float *next = scratch.get<float>(static_cast<size_t>(total));
        for (size_t i = 0; i < 10; ++i) {
            *places[i] = next;
            next += (sizes[i] + 15) / 16 * 16;
        }
    }
};

// [count keys, width] -> panels [width, PANEL], zeros behind the last key.
template <class T>
void pack_keys(const Rows<T> &rows, int64_t first, int64_t count, int64_t width, float *row, float *to) {
    const int64_t wide = rounded(width);
    for (int64_t j = 0; j < (count + PANEL - 1) / PANEL * PANEL; j += LANES) {
        float *panel = to + j / PANEL * PANEL * wide + j % PANEL;
        const int64_t there = std::min<int64_t>(LANES, count - j);
        const bool plain = rows.stride == 1 && wide == width && there == LANES;
        if (!plain)
            for (int64_t i = 0; i < there; ++i)
                widen_row(rows.at(first + j + i), rows.stride, width, row + i * wide);
        for (int64_t d = 0; d < wide; d += LANES) {
            Floats square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) {
                if (plain)
                    square[i] = load(rows.at(first + j + i) + d);
                else
                    square[i] = i < there ? load(row + i * wide + d) : Floats{};
            }
            transpose_by<1>(square);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) store(panel + (d + i) * PANEL, square[i]);
        }
    }
}

// Scores of `count` keys [rows, BLOCK].
template <class T>
void score(const tree_attention_call &call, const Rows<T> &keys, int64_t first, int64_t count, int64_t rows,
           const Workspace &work) {
    pack_keys(keys, first, count, call.key_width, work.row, work.keys);
    for (int64_t j = 0; j < count; j += PANEL)
        product<float>(rows, std::min<int64_t>(PANEL, rounded(count - j)), work.queries, work.key_width, work.keys + j * work.key_width, PANEL, work.key_width,
                work.scores + j, BLOCK, false);
}

// Scales of int8 keys, the cap, and nothing to see behind the last key.
template <class T>
void finish_scores(const tree_attention_call &call, const Rows<T> &keys, int64_t first, int64_t count, int64_t rows,
                   float *scores) {
    const float nothing = -std::numeric_limits<float>::infinity();
    for (int64_t m = 0; m < rows; ++m, scores += BLOCK) {
        if (keys.scale != nullptr)
            for (int64_t j = 0; j < count; ++j) scores[j] *= keys.scale[(first + j) * keys.scale_stride];
        if (call.softcap > 0)
            for (int64_t j = 0; j < count; j += LANES) {
                const Floats twice = exponential(load(scores + j) * (2 / call.softcap));
                store(scores + j, call.softcap - 2 * call.softcap / (twice + 1.0f));
            }
        for (int64_t j = count; j < rounded(count); ++j) scores[j] = nothing;
    }
}

// Scores become weights below the running peak; what was summed below an older one is scaled down.
inline void weigh(float *scores, int64_t count, float *peak, float *sum, float *values, int64_t width) {
    Floats top = all(*peak);
    for (int64_t j = 0; j < count; j += LANES) top = greater(load(scores + j), top);
    const float now = greatest_of(top);
    if (now != *peak) {
        const float factor = exponential(all(*peak - now))[0];
        *sum *= factor;
        for (int64_t d = 0; d < width; d += LANES) store(values + d, load(values + d) * factor);
        *peak = now;
    }
    Floats total{};
    for (int64_t j = 0; j < count; j += LANES) {
        const Floats weight = exponential(load(scores + j) - now);
        store(scores + j, weight);
        total += weight;
    }
    *sum += sum_of(total);
}

// Adds the weighted values of a block. They are read where they lie if a row is whole vectors, and if they are floats or
// one tile has all rows; else they are widened before.
template <class T>
void add_values(const Rows<T> &rows, int64_t first, int64_t count, int64_t width, int64_t heads, const Workspace &work) {
    if (rows.scale != nullptr)
        for (int64_t m = 0; m < heads; ++m)
            for (int64_t j = 0; j < count; ++j)
                work.scores[m * BLOCK + j] *= rows.scale[(first + j) * rows.scale_stride];
    const int64_t wide = work.value_width;
    if (rows.stride == 1 && width == wide && (std::is_same<T, float>::value || heads <= TILE_ROWS)) {
        product(heads, wide, work.scores, BLOCK, rows.at(first), rows.row_stride, count, work.values, wide, true);
        return;
    }
    for (int64_t j = 0; j < count; ++j) widen_row(rows.at(first + j), rows.stride, width, work.packed + j * wide);
    product<float>(heads, wide, work.scores, BLOCK, work.packed, wide, count, work.values, wide, true);
}

// One block: `hide(scores)` puts -infinity where a row must not look.
template <class T, class Hide>
void attend_block(const tree_attention_call &call, const Rows<T> &keys, const Rows<T> &values, int64_t first,
                  int64_t count, int64_t rows, const Workspace &work, const Hide &hide) {
    score(call, keys, first, count, rows, work);
    finish_scores(call, keys, first, count, rows, work.scores);
    hide(work.scores);
    for (int64_t m = 0; m < rows; ++m)
        weigh(work.scores + m * BLOCK, count, work.peaks + m, work.sums + m, work.values + m * work.value_width,
              work.value_width);
    add_values(values, first, count, call.value_width, rows, work);
}

inline int64_t position(const tree_attention_call &call, int64_t token) {
    return integer_at(*call.positions, token * call.positions->strides[0]);
}

// The first row of the past that a token sees. Positions come from outside: no sum of them may overflow.
inline int64_t first_seen(const tree_attention_call &call, int64_t token) {
    const int64_t at = position(call, token);
    return call.window > 0 && at >= call.window ? at - call.window + 1 : 0;
}

template <class T>
Rows<T> rows_of(const tree_attention_rows &block, int64_t head) {
    const float *scale = block.scale == nullptr ? nullptr : block.scale + head * block.scale_head_stride;
    return {static_cast<const T *>(block.data) + head * block.head_stride, block.row_stride, block.stride, scale,
            block.scale_stride};
}

template <class T>
void attend_past(const tree_attention_call &call, const tree_attention_part &part, const Workspace &work) {
    const Rows<T> keys = rows_of<T>(call.past_keys, part.head), values = rows_of<T>(call.past_values, part.head);
    for (int64_t first = part.start; first < part.stop; first += BLOCK) {
        const int64_t count = std::min(BLOCK, part.stop - first);
        attend_block(call, keys, values, first, count, part.rows, work, [&](float *scores) {
            if (call.window <= 0) return;
            for (int64_t m = 0; m < part.rows; ++m) {
                const int64_t begin = first_seen(call, (part.row + m) / call.groups) - first;
                std::fill_n(scores + m * BLOCK, std::min(std::max<int64_t>(begin, 0), count),
                            -std::numeric_limits<float>::infinity());
            }
        });
    }
}

inline bool sees(const tree_attention_call &call, int64_t token, int64_t other) {
    const edge_tensor &mask = *call.mask;
    const bool seen = static_cast<const uint8_t *>(mask.data)[token * mask.strides[0] + other * mask.strides[1]] != 0;
    if (!seen || call.window <= 0) return seen;
    const int64_t at = position(call, token), from = position(call, other);
    int64_t back;
    return __builtin_sub_overflow(at, from, &back) ? at < from : back < call.window;
}

inline void attend_new(const tree_attention_call &call, const tree_attention_part &part, const Workspace &work) {
    const Rows<float> keys{work.new_keys, work.key_width, 1, nullptr, 0};
    const Rows<float> values{work.new_values, work.value_width, 1, nullptr, 0};
    for (int64_t first = 0; first < call.tokens; first += BLOCK) {
        const int64_t count = std::min(BLOCK, call.tokens - first);
        attend_block(call, keys, values, first, count, part.rows, work, [&](float *scores) {
            for (int64_t m = 0; m < part.rows; ++m)
                for (int64_t j = 0; j < count; ++j)
                    if (!sees(call, (part.row + m) / call.groups, first + j))
                        scores[m * BLOCK + j] = -std::numeric_limits<float>::infinity();
        });
    }
}

// Row of a [tokens, heads, width] tensor.
inline const float *row_at(const edge_tensor &tensor, int64_t token, int64_t head) {
    return static_cast<const float *>(tensor.data) + token * tensor.strides[0] + head * tensor.strides[1];
}

// A row as floats, its first `rotary` values turned by the token's angles: the two halves are the coordinates
// (RoFormer, equation 34, in the order of the dimensions that Llama has).
inline void turned_row(const tree_attention_call &call, const edge_tensor &tensor, int64_t token, int64_t head,
                       int64_t width, float *to) {
    const float *from = row_at(tensor, token, head);
    const int64_t stride = tensor.strides[2], half = call.rotary / 2;
    widen_row(from, stride, width, to);
    if (half == 0) return;
    const edge_tensor &c = *call.cosine, &s = *call.sine;
    const float *cosine = static_cast<const float *>(c.data) + token * c.strides[0];
    const float *sine = static_cast<const float *>(s.data) + token * s.strides[0];
    for (int64_t i = 0; i < half; ++i) {
        const float x = from[i * stride], y = from[(i + half) * stride];
        to[i] = x * cosine[i * c.strides[1]] - y * sine[i * s.strides[1]];
        to[i + half] = y * cosine[(i + half) * c.strides[1]] + x * sine[(i + half) * s.strides[1]];
    }
}

// The row as the cache will hold it: rounded in place, and put out.
inline void keep_row(int32_t dtype, float *row, int64_t width, void *to, int64_t index, float *scale) {
    float used = 1;
    if (dtype == EDGE_FLOAT32 && to != nullptr) std::memcpy(static_cast<float *>(to) + index * width, row, width * 4);
    if (dtype == EDGE_BFLOAT16)
        for (int64_t i = 0; i < width; ++i) {
            const uint16_t bits = to_bf16(row[i]);
            if (to != nullptr) static_cast<uint16_t *>(to)[index * width + i] = bits;
            row[i] = from_bf16(bits);
        }
    if (dtype == EDGE_INT8) {
        float most = 0;
        for (int64_t i = 0; i < width; ++i)
            if (!(std::fabs(row[i]) <= most || std::isnan(most))) most = std::fabs(row[i]);
        used = most / 127;
        for (int64_t i = 0; i < width; ++i) {
            const float steps = row[i] / used + 12582912.0f - 12582912.0f;  // to the nearest, ties to even
            const float kept = std::fabs(steps) <= 127 ? steps : 0;  // of 0 / 0 and infinities too
            if (to != nullptr) static_cast<int8_t *>(to)[index * width + i] = static_cast<int8_t>(kept);
            row[i] = kept * used;
        }
    }
    if (scale != nullptr) scale[index] = used;
}

inline void make_rows(const tree_attention_call &call, const tree_attention_part &part, const Workspace &work) {
    for (int64_t token = 0; token < call.tokens; ++token) {
        float *key = work.new_keys + token * work.key_width, *value = work.new_values + token * work.value_width;
        const int64_t index = part.head * call.tokens + token;
        const bool writes = part.writes != 0;
        turned_row(call, *call.key, token, part.head, call.key_width, key);
        widen_row(row_at(*call.value, token, part.head), call.value->strides[2], call.value_width, value);
        keep_row(call.dtype, key, call.key_width, writes ? call.key_rows->data : nullptr, index,
                 writes ? static_cast<float *>(call.key_scales->data) : nullptr);
        keep_row(call.dtype, value, call.value_width, writes ? call.value_rows->data : nullptr, index,
                 writes ? static_cast<float *>(call.value_scales->data) : nullptr);
    }
}

inline bool sees_any(const tree_attention_call &call, int64_t token) {
    if (call.length > first_seen(call, token)) return true;
    for (int64_t other = 0; other < call.tokens; ++other)
        if (sees(call, token, other)) return true;
    return false;
}

// The mean of values; 0 for a token that sees nothing.
inline void put_out(const tree_attention_call &call, int64_t head, int64_t row, const float *values, float sum) {
    const int64_t token = row / call.groups, query = head * call.groups + row % call.groups;
    float *to = static_cast<float *>(call.output->data) +
                (token * call.heads * call.groups + query) * call.value_width;
    const bool blind = sum == 0 && !sees_any(call, token);
    for (int64_t d = 0; d < call.value_width; ++d) to[d] = blind ? 0 : values[d] / sum;
}

inline void hand_over(const tree_attention_call &call, const tree_attention_part &part, const Workspace &work) {
    for (int64_t m = 0; m < part.rows; ++m) {
        const float *values = work.values + m * work.value_width;
        if (part.sums == nullptr) {
            put_out(call, part.head, part.row + m, values, work.sums[m]);
            continue;
        }
        std::memcpy(part.values + m * call.value_width, values, static_cast<size_t>(call.value_width) * 4);
        part.sums[m] = work.sums[m];
        part.peaks[m] = work.peaks[m];
    }
}

inline void attend(const tree_attention_call &call, const tree_attention_part &part) {
    static thread_local Scratch scratch;
    const Workspace work(call, part, scratch);
    for (int64_t m = 0; m < part.rows; ++m) {
        float *query = work.queries + m * work.key_width;
        const int64_t row = part.row + m, head = part.head * call.groups + row % call.groups;
        turned_row(call, *call.query, row / call.groups, head, call.key_width, query);
        for (int64_t d = 0; d < call.key_width; ++d) query[d] *= call.scale;
    }
    std::fill_n(work.values, part.rows * work.value_width, 0.0f);
    std::fill_n(work.sums, part.rows, 0.0f);
    std::fill_n(work.peaks, part.rows, -FLT_MAX);
    if (call.dtype == EDGE_FLOAT32) attend_past<float>(call, part, work);
    if (call.dtype == EDGE_BFLOAT16) attend_past<Bf16>(call, part, work);
    if (call.dtype == EDGE_INT8) attend_past<int8_t>(call, part, work);
    if (part.is_last) {
        make_rows(call, part, work);
        attend_new(call, part, work);
    }
    hand_over(call, part, work);
}

}  // namespace
}  // namespace edge

#endif
