/* Paths through the graph of a Directed Acyclic Transformer, on raw pointers. */
#ifndef EDGE_DAG_DECODE_H
#define EDGE_DAG_DECODE_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One graph of `n` vertices. `links[j * row + k * column]` is the log-probability of going from j to k > j;
 * `emissions[k * emission_step]` that of a vertex's best token. */
typedef struct edge_dag {
    const float *links, *emissions;
    int64_t n, row, column, emission_step;
} edge_dag;

typedef struct edge_dag_settings {
    double emission_weight, length_power, longest;
    int32_t viterbi;
} edge_dag_settings;

/* `path` gets `*count` <= n vertices. */
typedef void (*edge_dag_function)(const edge_dag *dag, const edge_dag_settings *settings, int64_t *path,
                                  int64_t *count, float *score);

extern const edge_kernel edge_kernel_dag_decode;

#ifdef __cplusplus
}
#endif
#endif
