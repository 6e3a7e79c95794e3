// What each instruction set offers.
#ifndef EDGE_RESIDUAL_VQ_FUNCTIONS_H
#define EDGE_RESIDUAL_VQ_FUNCTIONS_H

#include "residual_vq.h"

namespace edge {

void residual_vq_avx2(const edge_codebooks *, int64_t rows, float *residual, int64_t stride, int64_t *codes,
                     float *total);
void residual_vq_avx512(const edge_codebooks *, int64_t rows, float *residual, int64_t stride, int64_t *codes,
                       float *total);

}  // namespace edge

#endif
