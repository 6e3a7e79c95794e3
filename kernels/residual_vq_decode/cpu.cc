#include "residual_vq_decode.h"

#include <atomic>
#include <vector>

#include "pool.h"
#include "scratch.h"
#include "tensors.h"

// Reading the vectors is all that there is to do: no instruction set would make it faster.
void edge_sum_vectors(const float *const *vectors, int64_t books, int64_t width, float *total) {
    std::fill(total, total + width, 0.0f);
    for (int64_t b = 0; b < books; ++b)
        for (int64_t d = 0; d < width; ++d) total[d] += vectors[b][d];
}

namespace edge {
namespace {

constexpr int64_t GRAIN = 64;  // rows that are worth a thread

const char *const CODES = "codes: expected int64 [..., books]";

// What does not depend on sizes: engines ask for shapes before they know them.
const char *check_types(const edge_tensor *inputs) {
    if (inputs[1].rank != 3 || inputs[1].dtype != EDGE_FLOAT32)
        return "codebooks: expected float32 [books, codes, width]";
    return inputs[0].rank < 1 || !is_integer(inputs[0]) ? CODES : nullptr;
}

const char *check(const edge_tensor *inputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    return inputs[0].shape[inputs[0].rank - 1] != inputs[1].shape[0] ? CODES : nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    copy_shape(inputs[0], outputs[0]);
    outputs[0].dtype = EDGE_FLOAT32, outputs[0].shape[inputs[0].rank - 1] = inputs[1].shape[2];
    return nullptr;
}

// Sums rows [begin, end); whether all codes are there.
bool sum_rows(const edge_tensor *inputs, int64_t begin, int64_t end, float *total) {
    const edge_tensor &codes = inputs[0], &books = inputs[1];
    const int64_t count = books.shape[0], width = books.shape[2], step = codes.strides[codes.rank - 1];
    std::vector<const float *> vectors(static_cast<size_t>(count));
    std::vector<float> dense(books.strides[2] == 1 || width <= 1 ? 0 : static_cast<size_t>(count * width));
    for (int64_t row = begin; row < end; ++row) {
        const int64_t picked = row_offset(codes, row);
        for (int64_t b = 0; b < count; ++b) {
            const int64_t code = integer_at(codes, picked + b * step);
            if (code < 0 || code >= books.shape[1]) return false;
            const float *from = static_cast<const float *>(books.data) + b * books.strides[0] + code * books.strides[1];
            if (!dense.empty()) {
                float *copy = dense.data() + b * width;
                for (int64_t d = 0; d < width; ++d) copy[d] = from[d * books.strides[2]];
                from = copy;
            }
            vectors[static_cast<size_t>(b)] = from;
        }
        edge_sum_vectors(vectors.data(), count, width, total + row * width);
    }
    return true;
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check(inputs);
    if (wrong != nullptr) return wrong;
    std::atomic<bool> valid{true};
    parallel_for(pool, row_count(inputs[0]), GRAIN, [&](int64_t begin, int64_t end) {
        if (!sum_rows(inputs, begin, end, static_cast<float *>(outputs[0].data))) valid = false;
    });
    return valid ? nullptr : "codes: expected 0 up to the size of a codebook - 1";
}

}  // namespace
}  // namespace edge

extern "C" const edge_kernel edge_kernel_residual_vq_decode = {
    "residual_vq_decode", 1, 2, 2, 1, nullptr, edge::shape, edge::guarded<edge::run>, "lf>f",
};
