// The parts of sampling that pass over a whole row: its maxima, its weights, their sum, a token by inversion.
#ifndef EDGE_SAMPLE_WEIGHTS_H
#define EDGE_SAMPLE_WEIGHTS_H

#include <algorithm>
#include <cmath>
#include <limits>

#include "doubles.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr int64_t CHUNK = 64;   // logits that share a maximum, by which most are passed over
constexpr int64_t BLOCK = 512;  // weights that share a sum, when one is looked for

inline int64_t chunks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// `tops` gets the largest of each chunk; the largest of all is returned, NaN where any is.
template <class T>
double peak(const T *x, int64_t n, T *tops) {
    constexpr int64_t WIDE = WIDTH * 8 / sizeof(T);
    typedef T Wide __attribute__((vector_size(WIDTH * 8)));
    const T lowest = -std::numeric_limits<T>::infinity();
    Wide total = Wide{}, largest = Wide{} + lowest;  // `total` becomes NaN by a NaN, or by both infinities
    int64_t chunk = 0;
    for (; (chunk + 1) * CHUNK <= n; ++chunk) {
        Wide top = Wide{} + lowest;
        for (int64_t i = chunk * CHUNK; i < (chunk + 1) * CHUNK; i += WIDE) {
            Wide v;
            std::memcpy(&v, x + i, sizeof v);
            top = v > top ? v : top;
            total += v * T(0x1p-20);
        }
        tops[chunk] = lowest;
        for (int64_t i = 0; i < WIDE; ++i) tops[chunk] = top[i] > tops[chunk] ? top[i] : tops[chunk];
        largest = top > largest ? top : largest;
    }
    T found = lowest;
    bool bad = false;
    for (int64_t i = 0; i < WIDE; ++i) found = largest[i] > found ? largest[i] : found, bad |= std::isnan(total[i]);
    if (chunk * CHUNK < n) tops[chunk] = lowest;
    for (int64_t i = chunk * CHUNK; i < n; ++i) {
        tops[chunk] = std::max(tops[chunk], x[i]), found = std::max(found, x[i]);
        bad |= std::isnan(x[i]);
    }
    if (!bad) return found;
    // minus infinity bans a token, so both infinities together only look like a NaN
    for (int64_t i = 0; i < n; ++i)
        if (std::isnan(x[i])) return std::numeric_limits<double>::quiet_NaN();
    return found;
}

// row[i] = exp(x[i] / temperature - largest); returns the sum.
template <class T>
double weigh(const T *x, int64_t n, const Divisor &temperature, double largest, double *row) {
    Doubles sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int64_t j = 0; j < 4; ++j) {
            const Doubles weight = exponential(over(load(x + i + j * WIDTH), temperature) - largest);
            store(row + i + j * WIDTH, weight);
            sums[j] += weight;
        }
    double total = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < n; i += WIDTH) {
        const int64_t count = std::min(WIDTH, n - i);
        const Doubles some = load_some(x + i, count, -std::numeric_limits<double>::infinity());
        const Doubles weight = exponential(over(some, temperature) - largest);
        for (int64_t j = 0; j < count; ++j) row[i + j] = weight[j], total += weight[j];
    }
    return total;
}

inline void divide(double *row, int64_t n, double by) {
    const Divisor divisor(by);
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) store(row + i, over(load(row + i), divisor));
    for (; i < n; ++i) row[i] /= by;
}

inline double sum(const double *row, int64_t n) {
    Doubles sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int64_t j = 0; j < 4; ++j) sums[j] += load(row + i + j * WIDTH);
    double total = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < n; ++i) total += row[i];
    return total;
}

// As NumPy's searchsorted(cumsum, u * total, side="right"), and the last of positive weight behind the end.
inline int64_t scan(const double *row, int64_t n, double before, double wanted) {
    int64_t last = -1;
    for (int64_t i = 0; i < n; ++i) {
        if (!(row[i] > 0)) continue;
        before += row[i];
        last = i;
        if (before > wanted) return i;
    }
    return last;
}

inline int64_t pick(const double *row, int64_t n, double u) {
    if (n <= 0) return -1;
    static thread_local Scratch memory;
    const int64_t blocks = chunks_of(n, BLOCK);
    double *sums = memory.get<double>(blocks), total = 0;
    for (int64_t b = 0; b < blocks; ++b) total += sums[b] = sum(row + b * BLOCK, std::min(BLOCK, n - b * BLOCK));
    double before = 0;
    int64_t chosen = -1;
    for (int64_t b = 0; b < blocks; ++b) {
        if (sums[b] > 0) chosen = b;
        if (before + sums[b] > u * total) break;
        before += sums[b];
    }
    if (chosen < 0) return n - 1;
    before = 0;
    for (int64_t b = 0; b < chosen; ++b) before += sums[b];
    const int64_t start = chosen * BLOCK;
    return start + scan(row + start, std::min(BLOCK, n - start), before, u * total);
}

}  // namespace
}  // namespace edge

#endif
