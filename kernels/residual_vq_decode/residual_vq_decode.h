/* Vectors of codes, on raw pointers. */
#ifndef EDGE_RESIDUAL_VQ_DECODE_H
#define EDGE_RESIDUAL_VQ_DECODE_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* total[d] = the sum over the `books` vectors of vectors[b][d]; returns nothing, `total` is dense. */
void edge_sum_vectors(const float *const *vectors, int64_t books, int64_t width, float *total);

extern const edge_kernel edge_kernel_residual_vq_decode;

#ifdef __cplusplus
}
#endif
#endif
