/* Sampling from rows of logits, and the test of a drafted chain, on raw pointers.
 *
 * Rows are dense. A distribution is n doubles. `dtype` is EDGE_FLOAT32 or EDGE_FLOAT64 of the logits; `top_k` 0,
 * `top_p` 1 and `min_p` 0 leave all tokens in. Uniform numbers are in [0, 1).
 */
#ifndef EDGE_SAMPLE_VERIFY_H
#define EDGE_SAMPLE_VERIFY_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `row` gets the distribution at the temperature, on the tokens that the truncations leave. 0, or 1 where the
 * largest of logits over temperature is no finite number: `row` is NaN then. 2: out of memory. */
EDGE_EXPORT int32_t edge_sample_row(const void *logits, int32_t dtype, int64_t n, double temperature,
                                        int64_t top_k, double top_p, double min_p, double *row);

/* The token whose interval of the cumulative sum of `row` contains `u` times its total; -1 where n is 0. */
EDGE_EXPORT int64_t edge_sample_pick(const double *row, int64_t n, double u);

/* As edge_sample_row and then edge_sample_pick, without writing the row; -1 for a row that is no distribution. */
EDGE_EXPORT int64_t edge_sample_draw(const void *logits, int32_t dtype, int64_t n, double temperature,
                                         int64_t top_k, double top_p, double min_p, double u);

/* `left` gets norm((p - q)+), or p where nothing is left. */
EDGE_EXPORT void edge_sample_residual(const double *p, const double *q, int64_t n, double *left);

extern const edge_kernel edge_kernel_sample_verify;

#ifdef __cplusplus
}
#endif
#endif
