// A call's activations: to int8, in the order in which the kernel reads them, and where they lie. Internal linkage: each
// instruction set has its own.
#ifndef EDGE_LINEAR_NBITS_ACTIVATIONS_H
#define EDGE_LINEAR_NBITS_ACTIVATIONS_H

#include <cstring>

#include "int8_blocks.h"
#include "linear_nbits.h"
#include "linear_tiles.h"

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

// How many rows the part has that begins at row `part`.
inline int64_t rows_of(const linear_nbits_call *call, int64_t part) {
    const int64_t left = call->rows - part;
    return left < LINEAR_NBITS_ROWS ? left : LINEAR_NBITS_ROWS;
}

// Where a row's values begin: its first quad in `quads`, its first block in `steps` and `sums`. Its next ones are `rows`
// further, those of the next row of its part 1.
struct Place {
    int64_t row, rows, quad, block;
};

inline Place place_of(const linear_nbits_call *call, int64_t row) {
    const int64_t part = row / LINEAR_NBITS_ROWS * LINEAR_NBITS_ROWS, r = row - part;
    return {row, rows_of(call, part), part * (call->depth / 4) + r, part * (call->depth / call->block) + r};
}

// Calls `body(part, rows)` for the parts of a call.
template <class Body>
inline void by_parts(const linear_nbits_call *call, const Body &body) {
    for (int64_t part = 0; part < call->rows; part += LINEAR_NBITS_ROWS) body(part, rows_of(call, part));
}

// A number that templates take from an argument.
template <int N>
struct Constant {
    static constexpr int VALUE = N;
};

// Calls `body` with the bits of the weights as a `Constant`.
template <class Body>
inline void by_bits(const linear_nbits_call *call, const Body &body) {
    switch (call->bits) {
        case 2: return body(Constant<2>{});
        case 3: return body(Constant<3>{});
        case 4: return body(Constant<4>{});
        default: return body(Constant<8>{});
    }
}

}  // namespace
}  // namespace edge

#endif
