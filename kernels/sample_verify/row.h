// From one row of logits to a distribution, and from that to a token. Every file that includes it is compiled for
// one instruction set; all has internal linkage.
#ifndef EDGE_SAMPLE_ROW_H
#define EDGE_SAMPLE_ROW_H

#include "functions.h"
#include "truncation.h"

namespace edge {
namespace {

constexpr double LIKELY = 1e-4;  // tokens at least this likely mostly hold what top-p asks for

struct Buffers {
    Scratch tops, row, weights, indices, copy;
};

template <class T>
class Sampler {
  public:
    Sampler(const void *logits, int64_t n, const Truncation &truncation, Buffers &buffers)
        : x_(static_cast<const T *>(logits)), n_(n), by_(truncation), temperature_(truncation.temperature),
          buffers_(buffers), tops_(buffers.tops.get<T>(chunks_of(n, CHUNK) + 1)) {}

    // Whether there is a distribution. It is in `row` where `dense`, or else in `left`.
    bool run(double *row) {
        const double top = peak(x_, n_, tops_);
        largest_ = top / by_.temperature;
        const bool usable = std::isfinite(by_.temperature) && std::isfinite(temperature_.reciprocal);
        if (n_ == 0 || !std::isfinite(largest_) || !usable) return false;
        const bool top_k = by_.top_k > 0 && by_.top_k < n_, top_p = by_.top_p < 1, min_p = by_.min_p > 0;
        dense = !(top_k || top_p || min_p);
        if (top_k) {
            only_top_k();
        } else {
            total_ = weigh(x_, n_, temperature_, largest_, row);
            if (dense) divide(row, n_, total_);
        }
        // what is under the second bound sums up to less than half of what top-p may leave out
        if (!top_k && top_p && only_above(row, LIKELY) < by_.top_p)
            only_above(row, (1 - by_.top_p) / 2 / static_cast<double>(n_));
        if (top_p) keep_nucleus(left, by_.top_p, buffers_.copy);
        if (!top_k && !top_p && min_p) only_above(row, by_.min_p / total_);
        if (min_p) keep_likely(left, by_.min_p);
        return true;
    }

    Left left{nullptr, nullptr, 0};
    bool dense = true;

  private:
    void make_room(int64_t count) {
        left.weights = buffers_.weights.get<double>(count), left.indices = buffers_.indices.get<int64_t>(count);
    }

    // The tokens that score at least what the k-th does, where scores are compared at the temperature.
    void only_top_k() {
        make_room(n_ + 1);
        const double kth = static_cast<double>(kth_largest(x_, n_, tops_, by_.top_k));
        const double least = kth / by_.temperature;
        const T near = static_cast<T>(kth - std::fabs(kth) * 1e-15);
        near_bound(n_, tops_, near, [&](int64_t i) {
            left.weights[left.count] = static_cast<double>(x_[i]), left.indices[left.count] = i;
            left.count += x_[i] >= near && static_cast<double>(x_[i]) / by_.temperature >= least;
        });
        const double total = weigh(left.weights, left.count, temperature_, largest_, left.weights);
        divide(left.weights, left.count, total);
    }

    // The tokens of probability `bound` or more, not renormalised; returns their sum. Chunks without one are passed
    // over.
    double only_above(double *row, double bound) {
        make_room(n_ + 1);
        left.count = 0;
        const double least = bound * total_;
        const double score = (largest_ + std::log(least)) * by_.temperature;
        const T near = static_cast<T>(score - std::fabs(score) * 1e-6 - 1e-300);
        near_bound(n_, tops_, near, [&](int64_t i) {
            left.weights[left.count] = row[i], left.indices[left.count] = i;
            left.count += row[i] >= least * (1 - 1e-12);
        });
        divide(left.weights, left.count, total_);
        return sum(left.weights, left.count);
    }

    const T *x_;
    int64_t n_;
    Truncation by_;
    Divisor temperature_;
    Buffers &buffers_;
    T *tops_;
    double largest_ = 0, total_ = 0;
};

inline Buffers &buffers() {
    static thread_local Buffers mine;
    return mine;
}

template <class T>
bool row_of(const void *logits, int64_t n, const Truncation &truncation, double *row) {
    Sampler<T> sampler(logits, n, truncation, buffers());
    if (!sampler.run(row)) {
        std::fill(row, row + n, std::numeric_limits<double>::quiet_NaN());
        return false;
    }
    if (sampler.dense) return true;
    std::fill(row, row + n, 0.0);
    const Left &left = sampler.left;
    for (int64_t i = 0; i < left.count; ++i) row[left.indices[i]] = left.weights[i];
    return true;
}

template <class T>
int64_t draw_of(const void *logits, int64_t n, const Truncation &truncation, double u) {
    Buffers &mine = buffers();
    double *row = mine.row.get<double>(n);
    Sampler<T> sampler(logits, n, truncation, mine);
    if (!sampler.run(row)) return -1;
    if (sampler.dense) return pick(row, n, u);
    const int64_t place = pick(sampler.left.weights, sampler.left.count, u);
    return place < 0 ? -1 : sampler.left.indices[place];
}

inline void residual(const double *p, const double *q, int64_t n, double *left) {
    const Doubles zero{};
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const Doubles more = load(p + i) - load(q + i);
        store(left + i, more > zero ? more : zero);
    }
    for (; i < n; ++i) left[i] = std::max(p[i] - q[i], 0.0);
    const double total = sum(left, n);
    if (total > 0) return divide(left, n, total);
    std::memmove(left, p, static_cast<size_t>(n) * sizeof *p);
}

constexpr SampleFunctions FUNCTIONS = {
    [](const void *logits, int32_t dtype, int64_t n, const Truncation &truncation, double *row) {
        return dtype == EDGE_FLOAT32 ? row_of<float>(logits, n, truncation, row)
                                     : row_of<double>(logits, n, truncation, row);
    },
    [](const void *logits, int32_t dtype, int64_t n, const Truncation &truncation, double u) {
        return dtype == EDGE_FLOAT32 ? draw_of<float>(logits, n, truncation, u)
                                     : draw_of<double>(logits, n, truncation, u);
    },
    pick,
    residual,
};

}  // namespace
}  // namespace edge

#endif
