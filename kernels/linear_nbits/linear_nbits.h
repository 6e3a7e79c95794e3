// edge::linear_nbits: rows of floats times a matrix of 2-, 3-, 4- or 8-bit integers, one scale for each group of them.
//
// The layout serves all instruction sets. A tile is 16 columns; a quad is 4 neighbouring weights of a column; a vector
// of 64 bytes has a quad of each column of its tile, one weight a byte, as VNNI, AMX and NEON's dot products want them.
// Packed, as `packing.py` does it, a unit of such vectors is
//   8 bits   1 vector  -> 1 vector
//   4 bits   2 vectors -> 1 vector: bits 0-3 the first, bits 4-7 the second
//   2 bits   4 vectors -> 1 vector: bits 0-1 the first, and so on
//   3 bits   8 vectors -> 3 vectors: the lower two bits of each as with 2 bits, then bit j of a byte: the third bit of j
// The units of a tile follow one another, and so do the tiles.
#ifndef EDGE_LINEAR_NBITS_H
#define EDGE_LINEAR_NBITS_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const edge_kernel edge_kernel_linear_nbits;

#define LINEAR_NBITS_ROWS 8 /* that share one pass over a tile's weights */

typedef struct linear_nbits_call {
    int64_t rows, columns, depth; /* M, N, K */
    int64_t group, block;         /* weights, and activations, that share a scale; `block` divides `group` */
    int32_t bits, half;           /* half: the scales are float16 */
    const uint8_t *weight;        /* [tiles][2 * bits * depth] */
    const void *scales;           /* [tiles][depth / group][16] */
    const uint8_t *zeros;         /* [tiles][depth / group][16], or NULL: all 2^(bits - 1) */
    const float *bias;            /* [columns], or NULL */
    float *output;                /* [rows][columns] */
    /* Activations. Rows are in parts of 8, the last of what is left: part p starts at p * 8 * depth / 4 of `quads`,
     * and at p * 8 * depth / block of the others; quad i of its row r is at i * R + r, R being its rows. */
    const int32_t *quads; /* 4 int8 */
    const float *steps;   /* the blocks' scales */
    const int32_t *sums;  /* minus the sums of the blocks' integers; times 2^(bits - 1) where there are no zeros */
} linear_nbits_call;

/* Tiles [start, stop) of the output. */
typedef void (*linear_nbits_run)(const linear_nbits_call *call, int64_t start, int64_t stop);

typedef struct linear_nbits_code {
    /* A row to its place in `quads`, `steps`, `sums`: `room` has `depth` bytes, `rows` is that of its part. */
    void (*quantize)(const linear_nbits_call *call, const float *row, int64_t rows, int8_t *room, int32_t *quads,
                     float *steps, int32_t *sums);
    linear_nbits_run run;
} linear_nbits_code;

extern const linear_nbits_code linear_nbits_portable;
extern const linear_nbits_code linear_nbits_avx2;
extern const linear_nbits_code linear_nbits_avx512;
extern const linear_nbits_code linear_nbits_amx;
extern const linear_nbits_code linear_nbits_neon;

#ifdef __cplusplus
}
#endif
#endif
