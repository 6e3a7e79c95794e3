#include "residual_vq.h"

#include "cpu.h"
#include "functions.h"
#include "nearest.h"
#include "pool.h"
#include "tensors.h"

namespace edge {
namespace {

constexpr int64_t GRAIN = 16;   // rows that are worth a thread
constexpr int64_t CHUNK = 256;  // rows that are worth turning a codebook around again
constexpr int64_t APART = 16;   // more than a row, so that rows of 4 KiB do not fall on the same lines of a cache

edge_residual_vq_function function() {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512) return residual_vq_avx512;
    if (isa() >= Isa::avx2) return residual_vq_avx2;
#endif
    return quantize;
}

const char *const BOOKS = "codebooks: expected float32 [books, codes, width]";

// What does not depend on sizes: engines ask for shapes before they know them.
const char *check_types(const edge_tensor *inputs) {
    if (inputs[0].rank < 1 || inputs[0].dtype != EDGE_FLOAT32) return "x: expected float32 [..., width]";
    return inputs[1].rank != 3 || inputs[1].dtype != EDGE_FLOAT32 ? BOOKS : nullptr;
}

const char *check(const edge_tensor *inputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    const edge_tensor &x = inputs[0], &books = inputs[1];
    if (books.shape[2] != x.shape[x.rank - 1]) return BOOKS;
    if (books.shape[0] > 0 && (books.shape[1] < 1 || books.shape[1] > INT32_MAX / 2))
        return "codebooks: expected 1 to 2^30 vectors in each";
    return nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    copy_shape(inputs[0], outputs[0]);
    copy_shape(inputs[0], outputs[1]);
    outputs[0].dtype = EDGE_INT64, outputs[0].shape[inputs[0].rank - 1] = inputs[1].shape[0];
    return nullptr;
}

// Row `index` of a tensor [..., width], dense.
void copy_row(const edge_tensor &x, int64_t index, float *to) {
    const float *from = static_cast<const float *>(x.data) + row_offset(x, index);
    const int64_t width = x.shape[x.rank - 1], step = x.strides[x.rank - 1];
    for (int64_t d = 0; d < width; ++d) to[d] = from[d * step];
}

// The codebooks as they lie, or a copy with dense vectors in `memory`.
edge_codebooks codebooks_of(const edge_tensor &tensor, Scratch &memory) {
    edge_codebooks books = {static_cast<const float *>(tensor.data), tensor.shape[0], tensor.shape[1], tensor.shape[2],
                            tensor.strides[0], tensor.strides[1]};
    if (tensor.strides[2] == 1 || tensor.shape[2] <= 1) return books;
    float *copy = memory.get<float>(count_of(tensor)), *to = copy;
    for (int64_t b = 0; b < books.books; ++b)
        for (int64_t c = 0; c < books.codes; ++c)
            for (int64_t d = 0; d < books.width; ++d)
                *to++ = books.data[b * tensor.strides[0] + c * tensor.strides[1] + d * tensor.strides[2]];
    books.data = copy, books.book_stride = books.codes * books.width, books.code_stride = books.width;
    return books;
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check(inputs);
    if (wrong != nullptr) return wrong;
    const edge_tensor &x = inputs[0];
    const int64_t width = x.shape[x.rank - 1];
    static thread_local Scratch copy;
    const edge_codebooks books = codebooks_of(inputs[1], copy);
    int64_t *codes = static_cast<int64_t *>(outputs[0].data);
    float *total = static_cast<float *>(outputs[1].data);
    parallel_for(pool, row_count(x), GRAIN, [&](int64_t begin, int64_t end) {
        static thread_local Scratch memory;
        for (int64_t row = begin; row < end; row += CHUNK) {
            const int64_t count = std::min(CHUNK, end - row), stride = width + APART;
            float *residual = memory.get<float>(count * stride);
            for (int64_t i = 0; i < count; ++i) copy_row(x, row + i, residual + i * stride);
            function()(&books, count, residual, stride, codes + row * books.books, total + row * width);
        }
    });
    return nullptr;
}

}  // namespace
}  // namespace edge

extern "C" const edge_kernel edge_kernel_residual_vq = {
    "residual_vq", 1, 2, 2, 2, nullptr, edge::shape, edge::guarded<edge::run>, "ff>lf",
};
