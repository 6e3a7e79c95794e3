// What each instruction set offers: the functions of sample_verify.h.
#ifndef EDGE_SAMPLE_FUNCTIONS_H
#define EDGE_SAMPLE_FUNCTIONS_H

#include "edge.h"

namespace edge {

struct Truncation {
    double temperature, top_p, min_p;
    int64_t top_k;
};

struct SampleFunctions {
    bool (*row)(const void *logits, int32_t dtype, int64_t n, const Truncation &truncation, double *row);
    int64_t (*draw)(const void *logits, int32_t dtype, int64_t n, const Truncation &truncation, double u);
    int64_t (*pick)(const double *row, int64_t n, double u);
    void (*residual)(const double *p, const double *q, int64_t n, double *left);
};

extern const SampleFunctions sample_portable, sample_avx2, sample_avx512;

}  // namespace edge

#endif
