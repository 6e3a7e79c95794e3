// edge::group_norm_silu: mean and variance of a group of channels, affine, SiLU.
#ifndef EDGE_GROUP_NORM_SILU_H
#define EDGE_GROUP_NORM_SILU_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const edge_kernel edge_kernel_group_norm_silu;

// `size` values a channel, `channels` channels a group; image `n` and group `g` are one unit of work.
typedef struct group_norm_silu_call {
    const edge_tensor *x, *weight, *bias;
    void *output; // dense
    int64_t groups, channels, size;
    float eps;
    int32_t silu;
} group_norm_silu_call;

typedef void (*group_norm_silu_run)(const group_norm_silu_call *, int64_t n, int64_t g);

void group_norm_silu_portable(const group_norm_silu_call *call, int64_t n, int64_t g);
void group_norm_silu_avx2(const group_norm_silu_call *call, int64_t n, int64_t g);
void group_norm_silu_avx512(const group_norm_silu_call *call, int64_t n, int64_t g);

#ifdef __cplusplus
}
#endif
#endif
