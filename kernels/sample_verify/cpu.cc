#include "sample_verify.h"

#include <new>

#include "chain.h"
#include "cpu.h"
#include "row.h"

const edge::SampleFunctions edge::sample_portable = edge::FUNCTIONS;

namespace {

const edge::SampleFunctions &functions() noexcept {
#if defined(__x86_64__)
    if (edge::isa() >= edge::Isa::avx512) return edge::sample_avx512;
    if (edge::isa() >= edge::Isa::avx2) return edge::sample_avx2;
#endif
    return edge::sample_portable;
}

const edge_attribute ATTRIBUTES[] = {{"temperature", 1}, {"top_k", 0}, {"top_p", 1}, {"min_p", 1}, {nullptr, 0}};

const char *shape(const edge_tensor *inputs, int32_t input_count, const edge_value *, edge_tensor *outputs) {
    const char *wrong = edge::check_types(inputs, input_count);
    if (wrong != nullptr) return wrong;
    outputs[0].rank = 1, outputs[0].dtype = EDGE_INT64, outputs[0].shape[0] = inputs[0].shape[0];
    outputs[1].rank = 1, outputs[1].dtype = EDGE_INT64, outputs[1].shape[0] = 1;
    return nullptr;
}

const char *run(const edge_pool *, const edge_tensor *inputs, int32_t input_count, const edge_value *attributes,
                edge_tensor *outputs) {
    const char *wrong = edge::check_chain(inputs, input_count);
    if (wrong != nullptr) return wrong;
    const edge::Truncation truncation = {attributes[0].number, attributes[2].number, attributes[3].number,
                                         attributes[1].integer};
    if (!(truncation.temperature > 0) || std::isinf(truncation.temperature))
        return "temperature: expected a finite number above 0";
    edge::verify_chain(functions(), truncation, inputs, input_count, static_cast<int64_t *>(outputs[0].data),
                       static_cast<int64_t *>(outputs[1].data));
    return nullptr;
}

}  // namespace

extern "C" {

int32_t edge_sample_row(const void *logits, int32_t dtype, int64_t n, double temperature, int64_t top_k, double top_p,
                        double min_p, double *row) {
    try {
        return functions().row(logits, dtype, n, {temperature, top_p, min_p, top_k}, row) ? 0 : 1;
    } catch (const std::bad_alloc &) {
        return 2;
    }
}

int64_t edge_sample_draw(const void *logits, int32_t dtype, int64_t n, double temperature, int64_t top_k, double top_p,
                         double min_p, double u) {
    try {
        return functions().draw(logits, dtype, n, {temperature, top_p, min_p, top_k}, u);
    } catch (const std::bad_alloc &) {
        return -1;
    }
}

int64_t edge_sample_pick(const double *row, int64_t n, double u) {
    try {
        return functions().pick(row, n, u);
    } catch (const std::bad_alloc &) {
        return -1;
    }
}

void edge_sample_residual(const double *p, const double *q, int64_t n, double *left) {
    functions().residual(p, q, n, left);
}

const edge_kernel edge_kernel_sample_verify = {
    "sample_verify", 1, 3, 4, 2, ATTRIBUTES, shape, edge::guarded<run>, "fldd>ll dldd>ll flff>ll",
};
}
