// What `cpu.cc` of the linear kernels share: the steps before and after their tiles. Internal linkage, as in pool.h.
#ifndef EDGE_LINEAR_H
#define EDGE_LINEAR_H

#include <algorithm>
#include <cstdint>

#include "int8_blocks.h"
#include "linear_tiles.h"
#include "pool.h"
#include "scratch.h"
#include "tensors.h"

namespace edge {
namespace {

// Columns of the output: the attribute's, or where it is 0 all that the packed tiles hold.
inline int64_t columns_of(const edge_tensor &packed, const edge_value &columns) {
    return columns.integer == 0 ? packed.shape[0] * LINEAR_TILE : columns.integer;
}

inline bool is_bias(const edge_tensor &bias, int64_t columns) {
    return bias.dtype == EDGE_FLOAT32 && bias.rank == 1 && bias.shape[0] == columns;
}

// The output is x with another last axis.
inline void set_shape(const edge_tensor &x, int64_t columns, edge_tensor &output) {
    copy_shape(x, output);
    output.shape[x.rank - 1] = columns;
}

struct LinearRooms {
    Scratch scales, bias;
};

// The fields that all linear calls have; `step` is what blocks are multiples of. `bias` may be NULL.
template <class Call>
void describe(Call &call, const edge_tensor &x, int64_t columns, int64_t group, int64_t step, const edge_tensor &scales,
              const edge_tensor *bias, const edge_tensor &output, LinearRooms &rooms) {
    call.rows = row_count(x), call.columns = columns, call.depth = x.shape[x.rank - 1];
    call.group = group, call.block = block_of(group, step);
    call.half = scales.dtype == EDGE_FLOAT16;
    call.output = static_cast<float *>(output.data);
    if (call.rows == 0 || call.columns == 0) return;
    call.scales = dense(scales, call.half ? 2 : 4, rooms.scales);
    if (bias != nullptr) call.bias = static_cast<const float *>(dense(*bias, 4, rooms.bias));
}

// `code.run` for all tiles of the output, spread over the threads.
template <class Code, class Call>
void run_tiles(const edge_pool *pool, const Code &code, const Call &call) {
    const int64_t tiles = (call.columns + LINEAR_TILE - 1) / LINEAR_TILE, work = call.rows * call.depth * LINEAR_TILE;
    edge_pool parts = pool == nullptr ? edge_pool{nullptr, 1, nullptr} : *pool;
    if (parts.threads > 1) parts.threads *= 4;  // parts: a thread that is held up keeps the others waiting for less
    parallel_for(&parts, tiles, 4 + (1 << 18) / std::max<int64_t>(work, 1),
                 [&](int64_t start, int64_t stop) { code.run(&call, start, stop); });
}

}  // namespace
}  // namespace edge

#endif
