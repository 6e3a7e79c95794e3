/* Residual vector quantization, on raw pointers. */
#ifndef EDGE_RESIDUAL_VQ_H
#define EDGE_RESIDUAL_VQ_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Codebooks [books, codes, width], the vectors dense. */
typedef struct edge_codebooks {
    const float *data;
    int64_t books, codes, width;
    int64_t book_stride, code_stride;
} edge_codebooks;

/* `residual` [rows, width], rows `stride` apart, comes in as the vectors and leaves as what is left of them. `codes`
 * [rows, books] and `total` [rows, width] are filled; both are dense. */
typedef void (*edge_residual_vq_function)(const edge_codebooks *codebooks, int64_t rows, float *residual,
                                          int64_t stride, int64_t *codes, float *total);

extern const edge_kernel edge_kernel_residual_vq;

#ifdef __cplusplus
}
#endif
#endif
