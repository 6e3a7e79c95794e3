#include <immintrin.h>

#include "scale_add.h"

namespace edge::scale_add::avx2 {

void dense(const float *x, const float *y, float alpha, float *out, int64_t count) {
    const __m256 factor = _mm256_set1_ps(alpha);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < count; ++i) out[i] = x[i] + alpha * y[i];
}

}  // namespace edge::scale_add::avx2
