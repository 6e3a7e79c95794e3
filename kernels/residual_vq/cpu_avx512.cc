#include "functions.h"
#include "nearest.h"

void edge::residual_vq_avx512(const edge_codebooks *codebooks, int64_t rows, float *residual, int64_t stride,
                             int64_t *codes, float *total) {
    quantize(codebooks, rows, residual, stride, codes, total);
}
