#include "dag_forward.h"

#include "cpu.h"
#include "functions.h"
#include "pool.h"
#include "sums.h"
#include "tensors.h"

namespace edge {
namespace {

enum Input { LINKS, MATCH, LENGTHS, TARGET_LENGTHS, HIDDEN };

edge_dag_forward_function function() {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512) return dag_forward_avx512;
    if (isa() >= Isa::avx2) return dag_forward_avx2;
#endif
    return sum_paths;
}

const char *const EXPECTED[] = {
    "links: expected float32 [batch, vertices, vertices]", "match: expected float32 [batch, tokens, vertices]",
    "lengths: expected int64 [batch]", "target_lengths: expected int64 [batch]",
    "hidden: expected float32 [batch, vertices, width]"};

// What does not depend on sizes: engines ask for shapes before they know them.
const char *check_types(const edge_tensor *inputs, int32_t input_count) {
    for (int32_t i = LINKS; i <= HIDDEN; ++i) {
        if (!is_given(inputs, input_count, i)) continue;
        const bool counts = i == LENGTHS || i == TARGET_LENGTHS;
        if (inputs[i].rank != (counts ? 1 : 3) || !(counts ? is_integer(inputs[i]) : inputs[i].dtype == EDGE_FLOAT32))
            return EXPECTED[i];
    }
    return nullptr;
}

const char *check(const edge_tensor *inputs, int32_t input_count) {
    const char *wrong = check_types(inputs, input_count);
    if (wrong != nullptr) return wrong;
    const int64_t batch = inputs[LINKS].shape[0], size = inputs[LINKS].shape[1];
    for (int32_t i = LINKS; i <= HIDDEN; ++i)
        if (is_given(inputs, input_count, i) && inputs[i].shape[0] != batch) return EXPECTED[i];
    if (inputs[LINKS].shape[2] != size) return EXPECTED[LINKS];
    if (inputs[MATCH].shape[2] != size) return EXPECTED[MATCH];
    return is_given(inputs, input_count, HIDDEN) && inputs[HIDDEN].shape[1] != size ? EXPECTED[HIDDEN] : nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t input_count, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check_types(inputs, input_count);
    if (wrong != nullptr) return wrong;
    outputs[0].rank = 1, outputs[0].dtype = EDGE_FLOAT32, outputs[0].shape[0] = inputs[LINKS].shape[0];
    copy_shape(inputs[MATCH], outputs[1]);
    copy_shape(inputs[MATCH], outputs[2]);
    outputs[2].shape[2] = is_given(inputs, input_count, HIDDEN) ? inputs[HIDDEN].shape[2] : 0;
    return nullptr;
}

int64_t number(const edge_tensor &tensor, int64_t item) {
    return integer_at(tensor, item * tensor.strides[0]);
}

const float *item_of(const edge_tensor &tensor, int64_t item) {
    return static_cast<const float *>(tensor.data) + item * tensor.strides[0];
}

void run_item(const edge_tensor *inputs, bool with_hidden, int64_t item, edge_tensor *outputs) {
    const edge_tensor &links = inputs[LINKS], &match = inputs[MATCH], &hidden = inputs[HIDDEN];
    const int64_t most = match.shape[1], size = match.shape[2], width = outputs[2].shape[2];
    edge_dag_target target = {item_of(links, item), item_of(match, item), nullptr, number(inputs[LENGTHS], item),
                              number(inputs[TARGET_LENGTHS], item), width,
                              links.strides[1], links.strides[2], match.strides[1], match.strides[2], 0, 0};
    if (with_hidden)
        target.hidden = item_of(hidden, item), target.hidden_row = hidden.strides[1],
        target.hidden_column = hidden.strides[2];
    const edge_dag_result result = {static_cast<float *>(outputs[0].data) + item,
                                    static_cast<float *>(outputs[1].data) + item * most * size,
                                    static_cast<float *>(outputs[2].data) + item * most * width, size};
    *result.total = NONE;
    const bool some = target.n > 0 && target.m > 0;
    const int64_t done = some ? target.m : 0;
    if (some) function()(&target, &result);
    std::fill(result.posterior + done * size, result.posterior + most * size, 0.0f);
    if (with_hidden) std::fill(result.expected + done * width, result.expected + most * width, 0.0f);
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t input_count, const edge_value *,
                edge_tensor *outputs) {
    const char *wrong = check(inputs, input_count);
    if (wrong != nullptr) return wrong;
    const int64_t batch = inputs[LINKS].shape[0];
    for (int64_t item = 0; item < batch; ++item) {
        const int64_t n = number(inputs[LENGTHS], item), m = number(inputs[TARGET_LENGTHS], item);
        if (n < 0 || n > inputs[LINKS].shape[1]) return "lengths: expected 0 up to the number of vertices";
        if (m < 0 || m > inputs[MATCH].shape[1]) return "target_lengths: expected 0 up to the number of tokens";
    }
    const bool with_hidden = is_given(inputs, input_count, HIDDEN);
    parallel_for(pool, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) run_item(inputs, with_hidden, item, outputs);
    });
    return nullptr;
}

}  // namespace
}  // namespace edge

extern "C" const edge_kernel edge_kernel_dag_forward = {
    "dag_forward", 1, 4, 5, 3, nullptr, edge::shape, edge::guarded<edge::run>, "ffllf>fff",
};
