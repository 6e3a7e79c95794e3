#include "decoders.h"
#include "paths.h"

void edge::dag_decode_avx2(const edge_dag *dag, const edge_dag_settings *settings, int64_t *path, int64_t *count,
                         float *score) {
    decode(dag, settings, path, count, score);
}
