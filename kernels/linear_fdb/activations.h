// Activations of `edge::linear_fdb`: to int8, and into tables. Internal linkage: each instruction set has its own.
#ifndef EDGE_LINEAR_FDB_ACTIVATIONS_H
#define EDGE_LINEAR_FDB_ACTIVATIONS_H

#include <cstring>

#include "int8_blocks.h"
#include "linear_fdb.h"
#include "linear_tiles.h"

namespace edge {
namespace {

constexpr int64_t UNIT = LINEAR_FDB_UNIT;

inline float quantize(const float *x, int64_t count, int8_t *q) { return to_int8(x, count, q, LINEAR_FDB_LIMIT).scale; }

// Tables for code that takes one bit of each byte at a time: for bit j the activations j, 8 + j, 16 + j, 24 + j.
constexpr int64_t BY_BIT = 32;  // bytes of a unit

inline void order_by_bit(const int8_t *q, int64_t units, uint8_t *tables) {
    for (int64_t u = 0; u < units; ++u)
        for (int j = 0; j < 8; ++j)
            for (int s = 0; s < 4; ++s) std::memcpy(tables + u * BY_BIT + 4 * j + s, q + u * UNIT + 8 * s + j, 1);
}

}  // namespace
}  // namespace edge

#endif
