/* The sum over the paths of a Directed Acyclic Transformer's graph, on raw pointers. */
#ifndef EDGE_DAG_FORWARD_H
#define EDGE_DAG_FORWARD_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One graph of `n` vertices and one target of `m` tokens. Offsets, in elements, of `links[j, k]` are
 * j * link_row + k * link_column, of `match[i, k]` i * match_row + k * match_column, and so on. */
typedef struct edge_dag_target {
    const float *links, *match, *hidden; /* hidden [n, width] may be NULL */
    int64_t n, m, width;
    int64_t link_row, link_column, match_row, match_column, hidden_row, hidden_column;
} edge_dag_target;

/* Where results go; rows are dense. `posterior` [m, size] and `expected` [m, width] are filled whole, the columns
 * of `posterior` behind the graph with zeros. */
typedef struct edge_dag_result {
    float *total, *posterior, *expected;
    int64_t size;
} edge_dag_result;

typedef void (*edge_dag_forward_function)(const edge_dag_target *target, const edge_dag_result *result);

extern const edge_kernel edge_kernel_dag_forward;

#ifdef __cplusplus
}
#endif
#endif
