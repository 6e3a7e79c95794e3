// What each instruction set offers.
#ifndef EDGE_DAG_FORWARD_FUNCTIONS_H
#define EDGE_DAG_FORWARD_FUNCTIONS_H

#include "dag_forward.h"

namespace edge {

void dag_forward_avx2(const edge_dag_target *, const edge_dag_result *);
void dag_forward_avx512(const edge_dag_target *, const edge_dag_result *);

}  // namespace edge

#endif
