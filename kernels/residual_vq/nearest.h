// The nearest vectors of a codebook, and from stage to stage. Every file that includes it is compiled for one
// instruction set; all has internal linkage.
#ifndef EDGE_RESIDUAL_VQ_NEAREST_H
#define EDGE_RESIDUAL_VQ_NEAREST_H

#include <algorithm>
#include <limits>

#include "lanes.h"
#include "residual_vq.h"
#include "scratch.h"

namespace edge {
namespace {

constexpr int64_t BLOCK = 2 * LANES;           // vectors of the codebook that are compared side by side
constexpr int ROWS = LANES >= 16 ? 8 : 4;      // with so many rows at once
constexpr int64_t FEW = 3;                     // rows for which turning the codebook around does not pay
constexpr int64_t AHEAD = 8;                   // vectors that are fetched before they are needed
constexpr float NONE = -std::numeric_limits<float>::infinity();

// The same, in a register: the compiler would load it again for each use.
inline Floats held(Floats v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__x86_64__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

// One step of turning LANES vectors of LANES numbers around: exchange by S between the halves of a pair.
template <int S, int... I>
inline void exchange(Floats &a, Floats &b, std::integer_sequence<int, I...>) {
    const Floats low = __builtin_shufflevector(a, b, ((I & S) != 0 ? LANES + I - S : I)...);
    b = __builtin_shufflevector(a, b, ((I & S) != 0 ? LANES + I : I + S)...);
    a = low;
}

template <int S = LANES / 2>
inline void transpose(Floats *v) {
    for (int i = 0; i < LANES; ++i)
        if ((i & S) == 0) exchange<S>(v[i], v[i | S], std::make_integer_sequence<int, LANES>());
    if constexpr (S > 1) transpose<S / 2>(v);
}

class Stage {
  public:
    Stage(const edge_codebooks &books, int64_t book)
        : vectors_(books.data + book * books.book_stride), stride_(books.code_stride), codes_(books.codes),
          width_(books.width) {}

    // The code of the nearest vector, for each of `rows` rows.
    void nearest(const float *residual, int64_t row_stride, int64_t rows, int64_t *found, int64_t step) {
        row_stride_ = row_stride;
        if (rows < FEW) return by_row(residual, rows, found, step);
        static thread_local Scratch panels, places, values;
        panel_ = panels.get<float>(width_ * BLOCK);
        best_ = values.get<float>(rows * LANES);
        place_ = places.get<int32_t>(rows * LANES);
        std::fill(best_, best_ + rows * LANES, NONE);
        std::fill(place_, place_ + rows * LANES, std::numeric_limits<int32_t>::max());
        for (int64_t code = 0; code < codes_; code += BLOCK) {
            load_panel(code);
            compare_all<ROWS>(residual, 0, rows, code);
        }
        for (int64_t row = 0; row < rows; ++row) found[row * step] = first_best(best_ + row * LANES, place_ + row * LANES);
    }

  private:
    const float *vector(int64_t code) const { return vectors_ + code * stride_; }

    // BLOCK vectors turned around, so that one number of all is together, and half their squared lengths; behind the
    // codebook's end an infinite length.
    void load_panel(int64_t code) {
        for (int64_t half = 0; half < BLOCK; half += LANES) {
            Floats squares{};
            for (int64_t d = 0; d < width_; d += LANES) {
                const int64_t count = std::min<int64_t>(LANES, width_ - d);
                Floats v[LANES];
                for (int64_t i = 0; i < LANES; ++i) {
                    v[i] = part(code + half + i, d, count);
                    __builtin_prefetch(vector(std::min(code + BLOCK + half + i, codes_ - 1)) + d);
                }
                transpose(v);
                for (int64_t i = 0; i < count; ++i) {
                    store(panel_ + (d + i) * BLOCK + half, v[i]);
                    squares += v[i] * v[i];
                }
            }
            Floats halves = squares * 0.5f;
            for (int64_t i = 0; i < LANES; ++i)
                if (code + half + i >= codes_) halves[i] = -NONE;
            (half == 0 ? halves_[0] : halves_[1]) = halves;
        }
    }

    Floats part(int64_t code, int64_t d, int64_t count) const {
        Floats v{};
        if (code >= codes_) return v;
        if (count == LANES) return load(vector(code) + d);
        for (int64_t i = 0; i < count; ++i) v[i] = vector(code)[d + i];
        return v;
    }

    template <int R>
    void compare_all(const float *residual, int64_t row, int64_t rows, int64_t code) {
        for (; row + R <= rows; row += R) compare<R>(residual + row * row_stride_, row, code);
        if constexpr (R > 1) compare_all<R / 2>(residual, row, rows, code);
    }

    // r . c - |c|^2 / 2 of R rows with the panel, against the best so far of each lane; the first of equals stays.
    template <int R>
    void compare(const float *rows, int64_t row, int64_t code) {
        Floats dots[R][2] = {};
        for (int64_t d = 0; d < width_; ++d) {
            const Floats a = held(load(panel_ + d * BLOCK)), b = held(load(panel_ + d * BLOCK + LANES));
            for (int r = 0; r < R; ++r) {
                const float value = rows[r * row_stride_ + d];
                dots[r][0] += value * a, dots[r][1] += value * b;
            }
        }
        Ints lanes;
        for (int i = 0; i < LANES; ++i) lanes[i] = static_cast<int32_t>(code) + i;
        for (int r = 0; r < R; ++r) {
            float *best = best_ + (row + r) * LANES;
            int32_t *place = place_ + (row + r) * LANES;
            Floats value = load(best);
            Ints where = load_as<Ints>(place);
            for (int half = 0; half < 2; ++half) {
                const Floats score = dots[r][half] - halves_[half];
                where = score > value ? lanes + half * LANES : where;
                value = score > value ? score : value;
            }
            store(best, value);
            std::memcpy(place, &where, sizeof where);
        }
    }

    static int64_t first_best(const float *best, const int32_t *place) {
        int lane = 0;
        for (int i = 1; i < LANES; ++i)
            if (best[i] > best[lane] || (best[i] == best[lane] && place[i] < place[lane])) lane = i;
        return best[lane] == NONE ? 0 : place[lane];
    }

    // Few rows: along the vectors as they lie, one row after the other.
    void by_row(const float *residual, int64_t rows, int64_t *found, int64_t step) const {
        for (int64_t row = 0; row < rows; ++row) {
            float best = NONE;
            int64_t place = 0;
            for (int64_t code = 0; code < codes_; code += 4) score_four(residual + row * row_stride_, code, best, place);
            found[row * step] = place;
        }
    }

    void score_four(const float *row, int64_t code, float &best, int64_t &place) const {
        const float *c[4], *ahead[4];
        for (int64_t i = 0; i < 4; ++i) {
            c[i] = vector(std::min(code + i, codes_ - 1));
            ahead[i] = vector(std::min(code + i + AHEAD, codes_ - 1));
        }
        Floats dots[4] = {}, squares[4] = {};
        int64_t d = 0;
        for (; d + LANES <= width_; d += LANES) {
            const Floats r = load(row + d);
            for (int i = 0; i < 4; ++i) {
                const Floats v = held(load(c[i] + d));
                __builtin_prefetch(ahead[i] + d);
                dots[i] += r * v, squares[i] += v * v;
            }
        }
        for (int i = 0; i < 4; ++i) {
            float dot = sum_of(dots[i] - squares[i] * 0.5f);
            for (int64_t e = d; e < width_; ++e) dot += row[e] * c[i][e] - 0.5f * c[i][e] * c[i][e];
            if (code + i < codes_ && dot > best) best = dot, place = code + i;
        }
    }

    const float *vectors_;
    int64_t stride_, codes_, width_, row_stride_ = 0;
    Floats halves_[2] = {};
    float *panel_ = nullptr, *best_ = nullptr;
    int32_t *place_ = nullptr;
};

inline void quantize(const edge_codebooks *books, int64_t rows, float *residual, int64_t stride, int64_t *codes,
                     float *total) {
    const int64_t width = books->width;
    std::fill(total, total + rows * width, 0.0f);
    for (int64_t book = 0; book < books->books; ++book) {
        Stage(*books, book).nearest(residual, stride, rows, codes + book, books->books);
        for (int64_t row = 0; row < rows; ++row) {
            const float *chosen =
                books->data + book * books->book_stride + codes[row * books->books + book] * books->code_stride;
            float *left = residual + row * stride, *sum = total + row * width;
            for (int64_t d = 0; d < width; ++d) left[d] -= chosen[d], sum[d] += chosen[d];
        }
    }
}

}  // namespace
}  // namespace edge

#endif
