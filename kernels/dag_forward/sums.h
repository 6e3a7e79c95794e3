// Forward, backward, posterior and expected states. Every file that includes it is compiled for one instruction
// set; all has internal linkage. States are kept near 0, each row with what was taken off it.
#ifndef EDGE_DAG_SUMS_H
#define EDGE_DAG_SUMS_H

#include <algorithm>
#include <cmath>
#include <limits>

#include "dag_forward.h"
#include "lanes.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr float NONE = -std::numeric_limits<float>::infinity();

constexpr int64_t TILE = 2 * LANES;  // numbers of an expected state that are summed in registers
constexpr int TOKENS = 4;            // for so many tokens at once

inline bool is_infinite(float x) { return std::fabs(x) == -NONE; }

inline Floats unless_infinite(Floats x) {
    const Floats size = x < 0.0f ? -x : x;
    return size == -NONE ? Floats{} : x;
}

// The same, in a register: the compiler would load it again for each use.
inline Floats held(Floats v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

// The natural logarithm of sums of exponentials: minus infinity for 0, NaN and infinity as they are, and else for
// normal numbers within 2e-7. Mantissa in [sqrt(1/2), sqrt(2)) and the polynomial of Cephes' logf.
inline Floats logarithm(Floats x) {
    const Words bits = (Words)x;
    const Words shifted = bits - 0x3f3504f3u;  // the exponent counts from sqrt(1/2)
    const Floats exponent = __builtin_convertvector((Ints)shifted >> 23, Floats);
    const Floats m = (Floats)((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const Floats square = m * m;
    Floats p = all(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    Floats found = m * square * p + exponent * -2.12194440e-4f - 0.5f * square;
    found = found + m + exponent * 0.693359375f;
    found = x < -NONE ? found : x;
    return x == 0.0f ? all(NONE) : found;
}

class PathSums {
  public:
    explicit PathSums(const edge_dag_target &target) : t_(target), width_((t_.n + LANES - 1) / LANES * LANES) {
        static thread_local Scratch edges, match, forward, backward, taken;
        edges_ = edges.get<float>(t_.n * width_);
        match_ = match.get<float>(t_.m * width_);
        forward_ = forward.get<float>(t_.m * width_);
        backward_ = backward.get<float>(t_.m * width_);
        taken_ = taken.get<double>(2 * t_.m);
        load_inputs();
    }

    void run(const edge_dag_result &result) {
        double *const before = taken_, *const behind = taken_ + t_.m;
        std::fill(forward_, forward_ + width_, NONE);
        forward_[0] = match_[0];
        before[0] = settle(forward_);
        for (int64_t i = 1; i < t_.m; ++i) {
            step_forward(i);
            before[i] = before[i - 1] + settle(forward_ + i * width_);
        }
        const int64_t end = t_.m - 1;
        std::fill(backward_ + end * width_, backward_ + t_.m * width_, NONE);
        backward_[end * width_ + t_.n - 1] = 0.0f;
        behind[end] = 0;
        for (int64_t i = end - 1; i >= 0; --i) {
            step_backward(i);
            behind[i] = behind[i + 1] + settle(backward_ + i * width_);
        }
        const double total = before[end] + static_cast<double>(forward_[end * width_ + t_.n - 1]);
        *result.total = static_cast<float>(total);
        for (int64_t i = 0; i < t_.m; ++i) posterior(i, before[i] + behind[i] - total, result);
        if (t_.hidden != nullptr) expected(result);
    }

  private:
    // Dense copies, with no link where there is none to read and no emission behind the graph.
    void load_inputs() {
        for (int64_t j = 0; j < t_.n; ++j) {
            float *row = edges_ + j * width_;
            std::fill(row, row + width_, NONE);
            const float *from = t_.links + j * t_.link_row;
            for (int64_t k = j + 1; k < t_.n; ++k) row[k] = from[k * t_.link_column];
        }
        for (int64_t i = 0; i < t_.m; ++i) {
            float *row = match_ + i * width_;
            std::fill(row, row + width_, NONE);
            const float *from = t_.match + i * t_.match_row;
            for (int64_t k = 0; k < t_.n; ++k) row[k] = from[k * t_.match_column];
        }
    }

    // Takes the largest off a row and returns it; 0 where that is no number.
    double settle(float *row) const {
        float largest = NONE;
        for (int64_t k = 0; k < width_; ++k) largest = row[k] > largest ? row[k] : largest;
        if (is_infinite(largest)) return 0;
        for (int64_t k = 0; k < width_; k += LANES) store(row + k, load(row + k) - largest);
        return static_cast<double>(largest);
    }

    // Down the columns of links, LANES of them at a time: token i can be at vertex i or later.
    void step_forward(int64_t i) {
        const float *before = forward_ + (i - 1) * width_;
        float *to = forward_ + i * width_;
        for (int64_t k = 0; k < width_; k += LANES) {
            const int64_t end = std::min(k + LANES, t_.n);
            const float *column = edges_ + k;
            Floats peak = all(NONE), total{};
            for (int64_t j = i - 1; j < end; ++j) peak = greater(load(column + j * width_) + before[j], peak);
            peak = unless_infinite(peak);
            for (int64_t j = i - 1; j < end; ++j)
                total += exponential(load(column + j * width_) + (before[j] - peak));
            store(to + k, logarithm(total) + peak + load(match_ + i * width_ + k));
        }
        std::fill(to, to + std::min(i, width_), NONE);
    }

    // Along the rows of links.
    void step_backward(int64_t i) {
        static thread_local Scratch memory;
        float *behind = memory.get<float>(width_), *to = backward_ + i * width_;
        for (int64_t k = 0; k < width_; k += LANES)
            store(behind + k, load(match_ + (i + 1) * width_ + k) + load(backward_ + (i + 1) * width_ + k));
        std::fill(to, to + width_, NONE);
        for (int64_t j = 0; j < t_.n; ++j) {
            const float *row = edges_ + j * width_;
            const int64_t start = (j + 1) / LANES * LANES;
            Floats peaks = all(NONE), total{};
            for (int64_t k = start; k < width_; k += LANES) peaks = greater(load(row + k) + load(behind + k), peaks);
            float peak = greatest_of(peaks);
            if (is_infinite(peak)) peak = 0;
            for (int64_t k = start; k < width_; k += LANES)
                total += exponential(load(row + k) + load(behind + k) - peak);
            to[j] = sum_of(total);
            peaks_[j & (LANES - 1)] = peak;
            if ((j & (LANES - 1)) == LANES - 1 || j == t_.n - 1) finish(to + j / LANES * LANES, j & (LANES - 1));
        }
    }

    // Sums to logarithms, for the `last` + 1 vertices of a block.
    void finish(float *to, int64_t last) const {
        Floats peak{};
        for (int64_t lane = 0; lane <= last; ++lane) peak[lane] = peaks_[lane];
        const Floats sums = load(to);
        const Floats found = logarithm(sums) + peak;
        for (int64_t lane = 0; lane <= last; ++lane) to[lane] = found[lane];
    }

    void posterior(int64_t i, double taken, const edge_dag_result &result) const {
        float *to = result.posterior + i * result.size;
        std::fill(to, to + result.size, 0.0f);
        if (*result.total == NONE) return;
        const float offset = static_cast<float>(taken);
        for (int64_t k = 0; k < t_.n; k += LANES) {
            const Floats sum = load(forward_ + i * width_ + k) + load(backward_ + i * width_ + k);
            const Floats found = exponential(sum + offset);
            const int64_t count = std::min<int64_t>(LANES, t_.n - k);
            std::memcpy(to + k, &found, static_cast<size_t>(count) * sizeof(float));
        }
    }

    // posterior [m, n] times hidden [n, width], without vertices where no token can be.
    void expected(const edge_dag_result &result) const {
        static thread_local Scratch indices, rows;
        int64_t *used = indices.get<int64_t>(t_.n), count = 0;
        for (int64_t j = 0; j < t_.n; ++j) {
            bool any = false;
            for (int64_t i = 0; i < t_.m; ++i) any |= !(result.posterior[i * result.size + j] == 0.0f);
            if (any) used[count++] = j;
        }
        const int64_t padded = (t_.width + TILE - 1) / TILE * TILE;
        float *dense = rows.get<float>(count * padded);
        for (int64_t u = 0; u < count; ++u) {
            const float *from = t_.hidden + used[u] * t_.hidden_row;
            for (int64_t d = 0; d < padded; ++d)
                dense[u * padded + d] = d < t_.width ? from[d * t_.hidden_column] : 0.0f;
        }
        for (int64_t d = 0; d < padded; d += TILE)
            for (int64_t i = 0; i < t_.m; i += TOKENS) tile(result, i, d, used, count, dense + d, padded);
    }

    // Expected states of TOKENS tokens, TILE numbers of each.
    void tile(const edge_dag_result &result, int64_t i, int64_t d, const int64_t *used, int64_t count,
              const float *rows, int64_t stride) const {
        Floats sums[TOKENS][2] = {};
        const float *weights[TOKENS];
        const int64_t tokens = std::min<int64_t>(TOKENS, t_.m - i);
        for (int64_t r = 0; r < TOKENS; ++r) weights[r] = result.posterior + (i + std::min(r, tokens - 1)) * result.size;
        for (int64_t u = 0; u < count; ++u) {
            const Floats a = held(load(rows + u * stride)), b = held(load(rows + u * stride + LANES));
            for (int r = 0; r < TOKENS; ++r) {
                const float weight = weights[r][used[u]];
                sums[r][0] += weight * a, sums[r][1] += weight * b;
            }
        }
        const size_t bytes = static_cast<size_t>(std::min(TILE, t_.width - d)) * sizeof(float);
        for (int64_t r = 0; r < tokens; ++r) std::memcpy(result.expected + (i + r) * t_.width + d, sums[r], bytes);
    }

    const edge_dag_target &t_;
    int64_t width_;
    float *edges_, *match_, *forward_, *backward_;
    float peaks_[LANES] = {};
    double *taken_;
};

inline void sum_paths(const edge_dag_target *target, const edge_dag_result *result) {
    PathSums(*target).run(*result);
}

}  // namespace
}  // namespace edge

#endif
