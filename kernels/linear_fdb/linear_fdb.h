// edge::linear_fdb: rows of floats times a matrix of two binary planes, each with a scale for each group of weights.
//
// The layout serves all instruction sets. A tile is 16 columns, a unit 32 neighbouring weights of a column: a word of
// which bit k is weight k. A tile is its units one after another, each 16 words (one a column) of the first plane and
// then 16 of the second. A row's activations are turned once into what an instruction set adds up under such masks
// ("tables").
#ifndef EDGE_LINEAR_FDB_H
#define EDGE_LINEAR_FDB_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const edge_kernel edge_kernel_linear_fdb;

#define LINEAR_FDB_UNIT 32
#define LINEAR_FDB_LIMIT 63 /* of the activations' integers: sums of 4, less the smallest one, fit a byte */

typedef struct linear_fdb_call {
    int64_t rows, columns, depth; /* M, N, K */
    int64_t group, block;         /* weights, and activations, that share a scale; `block` divides `group` */
    int32_t half;                 /* the scales are float16 */
    const uint8_t *planes;        /* [tiles][depth / 32][2][16] words */
    const void *scales;           /* [tiles][depth / group][2][16] */
    const float *bias;            /* [columns], or NULL */
    float *output;                /* [rows][columns] */
    const uint8_t *tables;        /* [rows][depth / 32] tables */
    const float *steps;           /* [rows][depth / block]: the scales of the activations */
    const int32_t *lows;          /* [rows][depth / block]: the sums of the negative ones */
} linear_fdb_call;

typedef struct linear_fdb_code {
    int64_t table_bytes; /* of a unit; a multiple of 32 */
    /* The tables of `units` units of integers. */
    void (*make_tables)(const int8_t *q, int64_t units, uint8_t *tables);
    /* A block of activations to integers; gives its scale. */
    float (*quantize)(const float *x, int64_t count, int8_t *q);
    /* Tiles [start, stop) of the output. */
    void (*run)(const linear_fdb_call *call, int64_t start, int64_t stop);
} linear_fdb_code;

extern const linear_fdb_code linear_fdb_portable;
extern const linear_fdb_code linear_fdb_avx2;
extern const linear_fdb_code linear_fdb_avx512; /* needs VBMI too */
extern const linear_fdb_code linear_fdb_neon;

#ifdef __cplusplus
}
#endif
#endif
