// Which tokens top-k, top-p and min-p leave, without sorting a row.
#ifndef EDGE_SAMPLE_TRUNCATION_H
#define EDGE_SAMPLE_TRUNCATION_H

#include "weights.h"

namespace edge {
namespace {

constexpr int64_t SORTED = 256;       // up to so many weights are put in order; of more the wanted part is found first
constexpr double ROUNDING = 1e-12;  // the share of top-p by which sums of probabilities may be off

// A type of this file, so that what the standard library makes with it has internal linkage, too.
struct Greater {
    template <class T>
    bool operator()(T a, T b) const { return a > b; }
};

// Calls `body(i)` for all i of each chunk that has an x[i] >= bound.
template <class T, class Body>
inline void near_bound(int64_t n, const T *tops, T bound, const Body &body) {
    for (int64_t chunk = 0; chunk * CHUNK < n; ++chunk) {
        if (!(tops[chunk] >= bound)) continue;
        const int64_t end = std::min(n, (chunk + 1) * CHUNK);
        for (int64_t i = chunk * CHUNK; i < end; ++i) body(i);
    }
}

// The k-th largest, 1 <= k <= n. The k-th largest top of a chunk is a lower bound of it.
template <class T>
T kth_largest(const T *x, int64_t n, const T *tops, int64_t k) {
    static thread_local Scratch memory;
    T *buffer = memory.get<T>(n + 1), bound = -std::numeric_limits<T>::infinity();
    const int64_t chunks = chunks_of(n, CHUNK);
    if (k <= chunks) {
        std::copy(tops, tops + chunks, buffer);
        std::nth_element(buffer, buffer + k - 1, buffer + chunks, Greater());
        bound = buffer[k - 1];
    }
    int64_t count = 0;
    near_bound(n, tops, bound, [&](int64_t i) {
        buffer[count] = x[i];
        count += x[i] >= bound;
    });
    std::nth_element(buffer, buffer + k - 1, buffer + count, Greater());
    return buffer[k - 1];
}

// The tokens that are left, in the order of the row.
struct Left {
    double *weights;
    int64_t *indices;
    int64_t count;
};

// Keeps what `keep(weight)` says and divides by the sum of it.
template <class Keep>
inline void filter(Left &left, const Keep &keep) {
    int64_t count = 0;
    for (int64_t i = 0; i < left.count; ++i) {
        const double weight = left.weights[i];
        left.weights[count] = weight, left.indices[count] = left.indices[i];
        count += keep(weight);
    }
    left.count = count;
    divide(left.weights, count, sum(left.weights, count));
}

// What a nucleus is made of: weights above `least`, and the first `ties` that equal it.
struct Cut {
    double least;
    int64_t ties;
};

// The end of the nucleus among `w`, which are put in order and lie behind the weight `before`.
inline Cut sorted_cut(double *w, int64_t n, double before, double mass) {
    std::sort(w, w + n, Greater());
    int64_t count = 0;
    for (; count < n; ++count) {
        before += w[count];
        if (!(before - w[count] < mass)) break;
    }
    if (count == 0) return {std::numeric_limits<double>::infinity(), 0};
    const double least = w[count - 1];
    return {least, std::count(w, w + count, least)};
}

// Quickselect by weight, which moves `w` about; they lie behind the weight `before`.
inline Cut selected_cut(double *w, int64_t n, double before, double mass) {
    while (n > SORTED) {
        const double a = w[0], b = w[n / 2], c = w[n - 1];
        const double pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        double *const same = std::partition(w, w + n, [=](double x) { return x > pivot; });
        double *const below = std::partition(same, w + n, [=](double x) { return x == pivot; });
        const double above = before + sum(w, same - w);
        const double through = above + pivot * static_cast<double>(below - same);
        if (above >= mass) {
            n = same - w;
        } else if (through >= mass || below == w + n) {
            const double ties = std::ceil((mass - above) / pivot);
            return {pivot, ties < static_cast<double>(below - same) ? static_cast<int64_t>(ties) : below - same};
        } else {
            n -= below - w, w = below, before = through;
        }
    }
    return sorted_cut(w, n, before, mass);
}

// Which sixteenth of an octave a weight is in, counted down from 1; all below 2^-64 are in the last one.
constexpr int64_t BUCKETS = 1025;
inline int64_t bucket_of(double weight) {
    int64_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return std::min<int64_t>(std::max<int64_t>((int64_t{0x3ff} << 4) - (bits >> 48), 0), BUCKETS - 1);
}

// The fewest largest of `w` before which less than `mass` lies. `some` has room for n + 1.
inline Cut nucleus(const double *w, int64_t n, double mass, double *some) {
    if (n <= 4 * BUCKETS) {
        std::copy(w, w + n, some);
        return selected_cut(some, n, 0, mass);
    }
    double sums[BUCKETS] = {}, before = 0;
    for (int64_t i = 0; i < n; ++i) sums[bucket_of(w[i])] += w[i];
    int64_t bucket = 0, count = 0;
    while (bucket < BUCKETS - 1 && before + sums[bucket] < mass) before += sums[bucket++];
    for (int64_t i = 0; i < n; ++i) {
        some[count] = w[i];
        count += bucket_of(w[i]) == bucket;
    }
    return selected_cut(some, count, before, mass);
}

inline void keep_nucleus(Left &left, double mass, Scratch &memory) {
    double *some = memory.get<double>(left.count + 1);
    const Cut cut = nucleus(left.weights, left.count, mass * (1 - ROUNDING), some);
    int64_t ties = cut.ties;
    filter(left, [&](double weight) { return weight > cut.least || (weight == cut.least && ties-- > 0); });
}

inline void keep_likely(Left &left, double share) {
    const double largest = left.count == 0 ? 0 : *std::max_element(left.weights, left.weights + left.count);
    filter(left, [=](double weight) { return !(weight < share * largest); });
}

}  // namespace
}  // namespace edge

#endif
