// The table's row of edge::group_norm_silu: checks, how the work is split, and the loops for any processor.
#include "cpu.h"
#include "groups.h"
#include "pool.h"

namespace edge {
namespace {

constexpr int64_t LEAST_VALUES = 1 << 14;  // that are worth a thread

enum Input { X, WEIGHT, BIAS };
enum Attribute { GROUPS, EPS, SILU };

const edge_attribute ATTRIBUTES[] = {{"groups", 0}, {"eps", 1}, {"silu", 0}, {nullptr, 0}};

const char *shape(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out) {
    const int32_t dtype = in[X].dtype;
    if (dtype != EDGE_FLOAT32 && dtype != EDGE_BFLOAT16) return "x is float32 or bfloat16";
    if (in[X].rank < 2) return "x is [images, channels, ...]";
    for (const edge_tensor *vector : {in + WEIGHT, in + BIAS})
        if (vector->dtype != dtype || vector->rank != 1 || vector->shape[0] != in[X].shape[1])
            return "weight and bias are [channels] and of the dtype of x";
    const int64_t groups = attributes[GROUPS].integer;
    if (groups < 1 || in[X].shape[1] % groups != 0) return "groups divides the channels";
    copy_shape(in[X], out[0]);
    return nullptr;
}

group_norm_silu_run implementation() {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512) return group_norm_silu_avx512;
    if (isa() >= Isa::avx2) return group_norm_silu_avx2;
#endif
    return group_norm_silu_portable;
}

const char *run(const edge_pool *pool, const edge_tensor *in, int32_t count, const edge_value *attributes,
                edge_tensor *out) {
    edge_tensor unused;
    if (const char *wrong = shape(in, count, attributes, &unused)) return wrong;
    group_norm_silu_call call = {in + X, in + WEIGHT, in + BIAS, out[0].data, attributes[GROUPS].integer, 0, 1, 0, 0};
    call.channels = in[X].shape[1] / call.groups;
    for (int32_t axis = 2; axis < in[X].rank; ++axis) call.size *= in[X].shape[axis];
    call.eps = static_cast<float>(attributes[EPS].number), call.silu = attributes[SILU].integer != 0;
    if (call.channels * call.size == 0) return nullptr;
    const group_norm_silu_run one = implementation();
    const int64_t grain = LEAST_VALUES / (call.channels * call.size) + 1;
    parallel_for(pool, in[X].shape[0] * call.groups, grain, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) one(&call, unit / call.groups, unit % call.groups);
    });
    return nullptr;
}

}  // namespace
}  // namespace edge

extern "C" {

void group_norm_silu_portable(const group_norm_silu_call *call, int64_t n, int64_t g) { edge::normalize(*call, n, g); }

const edge_kernel edge_kernel_group_norm_silu = {
    "group_norm_silu", 1, 3, 3, 1, edge::ATTRIBUTES, edge::shape, edge::guarded<edge::run>, "fff>f EEE>E",
};
}
