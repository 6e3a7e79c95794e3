#include "dag_decode.h"

#include "cpu.h"
#include "decoders.h"
#include "paths.h"
#include "pool.h"
#include "tensors.h"

namespace edge {
namespace {

const edge_attribute ATTRIBUTES[] = {
    {"viterbi", 0}, {"emission_weight", 1}, {"length_power", 1}, {"longest", 1}, {nullptr, 0}};

edge_dag_function function() {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512) return dag_decode_avx512;
    if (isa() >= Isa::avx2) return dag_decode_avx2;
#endif
    return decode;
}

const char *const LINKS = "links: expected float32 [batch, vertices, vertices]";
const char *const EMISSIONS = "emissions: expected float32 [batch, vertices]";
const char *const LENGTHS = "lengths: expected int64 [batch]";

// What does not depend on sizes: engines ask for shapes before they know them.
const char *check_types(const edge_tensor *inputs) {
    if (inputs[0].rank != 3 || inputs[0].dtype != EDGE_FLOAT32) return LINKS;
    if (inputs[1].rank != 2 || inputs[1].dtype != EDGE_FLOAT32) return EMISSIONS;
    return inputs[2].rank != 1 || !is_integer(inputs[2]) ? LENGTHS : nullptr;
}

const char *check(const edge_tensor *inputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    const edge_tensor &links = inputs[0], &emissions = inputs[1], &lengths = inputs[2];
    if (links.shape[1] != links.shape[2]) return LINKS;
    if (emissions.shape[0] != links.shape[0] || emissions.shape[1] != links.shape[1]) return EMISSIONS;
    return lengths.shape[0] != links.shape[0] ? LENGTHS : nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t, const edge_value *, edge_tensor *outputs) {
    const char *wrong = check_types(inputs);
    if (wrong != nullptr) return wrong;
    copy_shape(inputs[1], outputs[0]);
    copy_shape(inputs[2], outputs[1]);
    copy_shape(inputs[2], outputs[2]);
    outputs[0].dtype = outputs[1].dtype = EDGE_INT64, outputs[2].dtype = EDGE_FLOAT32;
    return nullptr;
}

int64_t length_of(const edge_tensor *inputs, int64_t item) {
    return integer_at(inputs[2], item * inputs[2].strides[0]);
}

void decode_item(const edge_tensor *inputs, const edge_dag_settings &settings, int64_t item, edge_tensor *outputs) {
    const edge_tensor &links = inputs[0], &emissions = inputs[1];
    const edge_dag dag = {static_cast<const float *>(links.data) + item * links.strides[0],
                          static_cast<const float *>(emissions.data) + item * emissions.strides[0],
                          length_of(inputs, item),
                          links.strides[1],
                          links.strides[2],
                          emissions.strides[1]};
    const int64_t size = links.shape[1];
    int64_t *path = static_cast<int64_t *>(outputs[0].data) + item * size;
    int64_t *count = static_cast<int64_t *>(outputs[1].data) + item;
    std::fill(path, path + size, -1);
    function()(&dag, &settings, path, count, static_cast<float *>(outputs[2].data) + item);
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t, const edge_value *attributes,
                edge_tensor *outputs) {
    const char *wrong = check(inputs);
    if (wrong != nullptr) return wrong;
    const int64_t batch = inputs[0].shape[0];
    for (int64_t item = 0; item < batch; ++item)
        if (length_of(inputs, item) < 0 || length_of(inputs, item) > inputs[0].shape[1])
            return "lengths: expected 0 up to the number of vertices";
    const edge_dag_settings settings = {attributes[1].number, attributes[2].number, attributes[3].number,
                                        attributes[0].integer != 0};
    parallel_for(pool, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) decode_item(inputs, settings, item, outputs);
    });
    return nullptr;
}

}  // namespace
}  // namespace edge

extern "C" const edge_kernel edge_kernel_dag_decode = {
    "dag_decode", 1, 3, 3, 3, edge::ATTRIBUTES, edge::shape, edge::guarded<edge::run>, "ffl>llf",
};
