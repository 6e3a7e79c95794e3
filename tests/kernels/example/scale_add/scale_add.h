// x + alpha * y over `count` dense values.
#ifndef EDGE_SCALE_ADD_H
#define EDGE_SCALE_ADD_H

#include <cstdint>

namespace edge::scale_add {
namespace portable {
void dense(const float *x, const float *y, float alpha, float *out, int64_t count);
}
namespace avx2 {
void dense(const float *x, const float *y, float alpha, float *out, int64_t count);
}
}  // namespace edge::scale_add

#endif
