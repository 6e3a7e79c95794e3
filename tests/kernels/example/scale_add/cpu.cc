#include "scale_add.h"

#include <cstring>

#include "cpu.h"
#include "edge.h"
#include "pool.h"
#include "tensors.h"

namespace edge::scale_add {
namespace portable {

void dense(const float *x, const float *y, float alpha, float *out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = x[i] + alpha * y[i];
}

}  // namespace portable

namespace {

const char *shape(const edge_tensor *inputs, int32_t input_count, const edge_value *, edge_tensor *outputs) {
    if (inputs[0].dtype != EDGE_FLOAT32) return "x must be float32";
    if (is_given(inputs, input_count, 1)) {
        if (inputs[1].dtype != EDGE_FLOAT32 || inputs[1].rank != inputs[0].rank) return "y must be like x";
        for (int32_t axis = 0; axis < inputs[0].rank; ++axis)
            if (inputs[0].shape[axis] != inputs[1].shape[axis]) return "y must have the shape of x";
    }
    copy_shape(inputs[0], outputs[0]);
    return nullptr;
}

// The offset of element `index`, counted in row-major order.
int64_t offset(const edge_tensor &tensor, int64_t index) {
    int64_t found = 0;
    for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
        found += index % tensor.shape[axis] * tensor.strides[axis];
        index /= tensor.shape[axis];
    }
    return found;
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t input_count, const edge_value *attributes,
                edge_tensor *outputs) {
    const float alpha = static_cast<float>(attributes[0].number);
    const float *x = static_cast<const float *>(inputs[0].data);
    float *out = static_cast<float *>(outputs[0].data);
    const bool both = is_given(inputs, input_count, 1);
    const float *y = both ? static_cast<const float *>(inputs[1].data) : nullptr;
    const bool simple = both && is_dense(inputs[0]) && is_dense(inputs[1]);
#if defined(__x86_64__)
    const auto dense = isa() >= Isa::avx2 ? avx2::dense : portable::dense;
#else
    const auto dense = portable::dense;
#endif
    parallel_for(pool, count_of(outputs[0]), 16, [&](int64_t begin, int64_t end) {
        if (simple) return dense(x + begin, y + begin, alpha, out + begin, end - begin);
        for (int64_t i = begin; i < end; ++i)
            out[i] = x[offset(inputs[0], i)] + (both ? alpha * y[offset(inputs[1], i)] : 0.0f);
    });
    return nullptr;
}

const edge_attribute ATTRIBUTES[] = {{"alpha", 1}, {nullptr, 0}};

}  // namespace
}  // namespace edge::scale_add

extern "C" const edge_kernel edge_kernel_scale_add = {
    "scale_add", 1, 1, 2, 1, edge::scale_add::ATTRIBUTES, edge::scale_add::shape, edge::scale_add::run, "ff>f",
};
