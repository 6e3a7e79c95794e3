// The decoders. Every file that includes it is compiled for one instruction set; all has internal linkage.
#ifndef EDGE_DAG_PATHS_H
#define EDGE_DAG_PATHS_H

#include <algorithm>
#include <cmath>
#include <limits>

#include "dag_decode.h"
#include "lanes.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr int64_t WIDE = 2 * LANES;  // vertices of a block
constexpr int STEPS = 4;             // lengths of path that share a loaded link

inline float link(const edge_dag &dag, int64_t j, int64_t k) { return dag.links[j * dag.row + k * dag.column]; }

// From vertex to vertex, to the best next one, the first of equals; a NaN is taken for the best, as PyTorch does.
inline void step_by_step(const edge_dag &dag, const float *weighted, int64_t *path, int64_t *count, float *score) {
    const int64_t last = dag.n - 1;
    int64_t at = 0, steps = 0;
    float total = weighted[0];
    path[steps++] = 0;
    while (at < last) {
        int64_t best = at + 1;
        float value = link(dag, at, best) + weighted[best];
        for (int64_t k = at + 2; k < dag.n; ++k) {
            const float other = link(dag, at, k) + weighted[k];
            if (other > value || (std::isnan(other) && !std::isnan(value))) value = other, best = k;
        }
        total = total + link(dag, at, best) + (best < last ? weighted[best] : 0.0f);
        path[steps++] = at = best;
    }
    *count = steps, *score = total;
}

class Viterbi {
  public:
    Viterbi(const edge_dag &dag, const edge_dag_settings &settings, const float *weighted)
        : dag_(dag), settings_(settings), weighted_(weighted), last_(dag.n - 1) {
        const double most = std::floor(static_cast<double>(dag.n) * settings.longest);
        steps_ = std::min<int64_t>(std::max<int64_t>(most >= 1 ? static_cast<int64_t>(std::min(most, 1e15)) : 1, 1),
                                   std::max<int64_t>(dag.n - 2, 0));
        width_ = (dag.n + WIDE - 1) / WIDE * WIDE;
    }

    void run(int64_t *path, int64_t *count, float *score) {
        static thread_local Scratch states, panel, ending;
        state_ = states.get<float>((steps_ + 1) * width_);
        panel_ = panel.get<float>(dag_.n * WIDE);
        ending_ = ending.get<float>(width_);
        std::fill(state_, state_ + (steps_ + 1) * width_, NONE);
        for (int64_t k = 1; k < last_; ++k) state(1)[k] = (link(dag_, 0, k) + weighted_[0]) + weighted_[k];
        bool usable = true;
        for (int64_t k = 0; k < dag_.n; ++k) usable &= weighted_[k] < -NONE;
        for (int64_t from = 0; from < dag_.n; from += WIDE) {
            usable &= load_panel(from);
            fill_block(from);
        }
        path[0] = 0, path[1] = last_, *count = 2;
        *score = usable ? weighted_[0] + link(dag_, 0, last_) : std::numeric_limits<float>::quiet_NaN();
        if (usable) trace(path, count, score);
    }

  private:
    float *state(int64_t t) { return state_ + (t - 1) * width_; }

    // Links into the vertices of a block, from all vertices before its end; none where there is no inner edge.
    // Whether all are log-probabilities: no NaN and no plus infinity.
    bool load_panel(int64_t from) {
        const int64_t end = std::min(from + WIDE, dag_.n);
        bool usable = true;
        for (int64_t j = 0; j < end; ++j) {
            float *row = panel_ + j * WIDE;
            for (int64_t k = from; k < from + WIDE; ++k) row[k - from] = NONE;
            for (int64_t k = std::max(from, j + 1); k < end; ++k) {
                const float value = link(dag_, j, k);
                usable &= value < -NONE;
                row[k - from] = k < last_ && j > 0 ? value : NONE;
            }
        }
        return usable;
    }

    // All lengths of path that end in a block. Vertices before the block are done, for all lengths.
    void fill_block(int64_t from) {
        for (int64_t t = 2; t <= steps_; t += STEPS) from_before(from, t);
        const int64_t end = std::min(from + WIDE, dag_.n);
        for (int64_t t = 2; t <= steps_; ++t) {
            float *to = state(t) + from;
            const float *before = state(t - 1);
            Floats a = load(to), b = load(to + LANES);
            for (int64_t j = from; j < end; ++j) {
                const float *row = panel_ + j * WIDE;
                a = greater(load(row) + before[j], a), b = greater(load(row + LANES) + before[j], b);
            }
            store(to, a + load(weighted_ + from)), store(to + LANES, b + load(weighted_ + from + LANES));
        }
    }

    // The best ways into the block from vertices before it, for up to STEPS lengths from `t` on.
    void from_before(int64_t from, int64_t t) {
        Floats best[STEPS][2];
        for (auto &pair : best) pair[0] = pair[1] = all(NONE);
        const int64_t count = std::min<int64_t>(STEPS, steps_ - t + 1);
        const float *before[STEPS];
        for (int64_t i = 0; i < STEPS; ++i) before[i] = state(t - 1 + std::min(i, count - 1));
        for (int64_t j = t - 1; j < from; ++j) {
            const Floats a = load(panel_ + j * WIDE), b = load(panel_ + j * WIDE + LANES);
            for (int i = 0; i < STEPS; ++i) {
                best[i][0] = greater(a + before[i][j], best[i][0]);
                best[i][1] = greater(b + before[i][j], best[i][1]);
            }
        }
        for (int64_t i = 0; i < count; ++i)
            store(state(t + i) + from, best[i][0]), store(state(t + i) + from + LANES, best[i][1]);
    }

    // The first j in [1, last) with the largest from[j] + link(j, to).
    int64_t best_before(const float *from, int64_t to, float *value) const {
        int64_t best = 0;
        *value = NONE;
        for (int64_t j = 1; j < to; ++j) {
            const float other = from[j] + link(dag_, j, to);
            if (other > *value) *value = other, best = j;
        }
        return best;
    }

    // The best length, and back from the end.
    void trace(int64_t *path, int64_t *count, float *score) {
        for (int64_t j = 1; j < last_; ++j) ending_[j] = link(dag_, j, last_);
        int64_t length = 0;
        float best = NONE;
        for (int64_t t = 1; t <= steps_; ++t) {
            float found = NONE;
            const float *from = state(t);
            for (int64_t j = 1; j < last_; ++j) found = std::max(found, from[j] + ending_[j]);
            const float scaled = found / static_cast<float>(std::pow(static_cast<double>(t), settings_.length_power));
            if (scaled > best) best = scaled, length = t, *score = found;
        }
        if (length == 0) return;
        *count = length + 2;
        path[length + 1] = last_;
        float value;
        for (int64_t t = length, to = last_; t >= 1; --t) path[t] = to = best_before(state(t), to, &value);
    }

    const edge_dag &dag_;
    const edge_dag_settings &settings_;
    const float *weighted_;
    int64_t last_, steps_, width_;
    float *state_ = nullptr, *panel_ = nullptr, *ending_ = nullptr;
};

inline void decode(const edge_dag *dag, const edge_dag_settings *settings, int64_t *path, int64_t *count, float *score) {
    static thread_local Scratch memory;
    float *weighted = memory.get<float>(dag->n + WIDE);
    std::fill(weighted, weighted + dag->n + WIDE, 0.0f);
    const float weight = static_cast<float>(settings->emission_weight);
    if (weight != 0)
        for (int64_t k = 0; k < dag->n; ++k) weighted[k] = weight * dag->emissions[k * dag->emission_step];
    *count = 0, *score = 0;
    if (dag->n == 0) return;
    if (dag->n == 1) {
        path[0] = 0, *count = 1, *score = weighted[0];
    } else if (settings->viterbi) {
        Viterbi(*dag, *settings, weighted).run(path, count, score);
    } else {
        step_by_step(*dag, weighted, path, count, score);
    }
}

}  // namespace
}  // namespace edge

#endif
