// Small matrix products in registers, and transposes, for whichever instruction set the including file is compiled for.
#ifndef EDGE_TREE_ATTENTION_PRODUCTS_H
#define EDGE_TREE_ATTENTION_PRODUCTS_H

#include <algorithm>
#include <cstdint>
#include <utility>

#include "lanes.h"

namespace edge {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_VECTORS = 4;  // 24 sums, 4 columns and a broadcast in 32 registers
#else
constexpr int TILE_VECTORS = 2;  // 12 sums, 2 columns and a broadcast in 16 registers
#endif
constexpr int TILE_ROWS = 6;
constexpr int PANEL = TILE_VECTORS * LANES;

// c [R, N vectors] = a [R, depth] times b [depth, N vectors], onto what is there if `add`.
template <class T, int R, int N>
void tile(const float *a, int64_t lda, const T *b, int64_t ldb, int64_t depth, float *c, int64_t ldc, bool add) {
    Floats sums[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sums[r][n] = add ? load(c + r * ldc + n * LANES) : Floats{};
    for (int64_t k = 0; k < depth; ++k, b += ldb) {
        Floats columns[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) columns[n] = load(b + n * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Floats value = all(a[r * lda + k]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums[r][n] += value * columns[n];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) store(c + r * ldc + n * LANES, sums[r][n]);
}

template <class T>
using Tile = void (*)(const float *, int64_t, const T *, int64_t, int64_t, float *, int64_t, bool);

template <class T, int N>
inline Tile<T> tile_of(int64_t rows) {
    static const Tile<T> tiles[TILE_ROWS] = {tile<T, 1, N>, tile<T, 2, N>, tile<T, 3, N>,
                                             tile<T, 4, N>, tile<T, 5, N>, tile<T, 6, N>};
    return tiles[rows - 1];
}

template <class T>
inline Tile<T> tile_of(int64_t rows, int64_t vectors) {
    if (vectors == 1) return tile_of<T, 1>(rows);
    if (vectors == 2) return tile_of<T, 2>(rows);
    if constexpr (TILE_VECTORS == 2) return nullptr;
    return vectors == 3 ? tile_of<T, 3>(rows) : tile_of<T, 4>(rows);
}

// As `tile`, for any number of rows and whole vectors of columns; tiles are as even as can be.
template <class T>
void product(int64_t rows, int64_t columns, const float *a, int64_t lda, const T *b, int64_t ldb, int64_t depth,
             float *c, int64_t ldc, bool add) {
    const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t column = 0; column < columns; column += PANEL) {
        const int64_t vectors = std::min<int64_t>(TILE_VECTORS, (columns - column) / LANES);
        for (int64_t t = 0, row = 0; t < tiles; ++t) {
            const int64_t count = (rows - row) / (tiles - t);
            tile_of<T>(count, vectors)(a + row * lda, lda, b + column, ldb, depth, c + row * ldc + column, ldc, add);
            row += count;
        }
    }
}

// Lane i of the result is lane i of `a` where bit S of i is 0, else lane i - S of `b`; `High`: from lane i + S of `a`,
// else lane i of `b`. All S in turn transpose a square.
template <int S, bool High, int... I>
inline Floats exchange(Floats a, Floats b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & S) ? LANES + I - (High ? 0 : S) : I + (High ? S : 0))...);
}

template <int S>
inline void transpose_by(Floats *rows) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if (i & S) continue;
        const Floats a = rows[i], b = rows[i + S];
        rows[i] = exchange<S, false>(a, b, lanes);
        rows[i + S] = exchange<S, true>(a, b, lanes);
    }
    if constexpr (S * 2 < LANES) transpose_by<S * 2>(rows);
}

}  // namespace
}  // namespace edge

#endif
