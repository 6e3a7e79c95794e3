// What each instruction set offers.
#ifndef EDGE_DAG_DECODERS_H
#define EDGE_DAG_DECODERS_H

#include "dag_decode.h"

namespace edge {

void dag_decode_avx2(const edge_dag *, const edge_dag_settings *, int64_t *path, int64_t *count, float *score);
void dag_decode_avx512(const edge_dag *, const edge_dag_settings *, int64_t *path, int64_t *count, float *score);

}  // namespace edge

#endif
