// A row of activations to int8, in the order in which the kernel reads it. Internal linkage: each instruction set has
// its own.
#ifndef EDGE_LINEAR_NBITS_ACTIVATIONS_H
#define EDGE_LINEAR_NBITS_ACTIVATIONS_H

#include <cstring>

#include "int8_blocks.h"
#include "linear_nbits.h"

namespace edge {
namespace {

inline void quantize_row(const linear_nbits_call *call, const float *row, int64_t rows, int8_t *room, int32_t *quads,
                         float *steps, int32_t *sums) {
    const int32_t middle = call->zeros == nullptr ? 1 << (call->bits - 1) : 1;
    for (int64_t k = 0, b = 0; k < call->depth; k += call->block, ++b) {
        const Int8Block made = to_int8(row + k, call->block, room + k);
        steps[b * rows] = made.scale;
        sums[b * rows] = -made.sum * middle;
    }
    if (rows == 1) {
        std::memcpy(quads, room, call->depth);
        return;
    }
    for (int64_t i = 0; i < call->depth / 4; ++i) std::memcpy(quads + i * rows, room + 4 * i, 4);
}

}  // namespace
}  // namespace edge

#endif
