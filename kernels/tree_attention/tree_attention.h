// edge::tree_attention: attention of W new tokens, a chain or a tree, over L cached ones read in place.
//
// The arguments in C, shared by the file that every processor runs and those for one instruction set.
#ifndef EDGE_TREE_ATTENTION_H
#define EDGE_TREE_ATTENTION_H

#include "edge.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const edge_kernel edge_kernel_tree_attention;

// Rows of a [heads, rows, width] block: strides count elements.
typedef struct tree_attention_rows {
    const void *data;
    const float *scale; // of each row of int8, else NULL
    int64_t head_stride, row_stride, stride;
    int64_t scale_head_stride, scale_stride;
} tree_attention_rows;

typedef struct tree_attention_call {
    int64_t tokens, heads, groups, key_width, value_width, length, rotary; // groups: query heads per key head
    int32_t dtype;                                                         // of the cache
    float scale, softcap;                                                  // softcap 0: none
    int64_t window;                                                        // 0: none
    const edge_tensor *query, *key, *value, *mask, *positions, *cosine, *sine;
    tree_attention_rows past_keys, past_values;
    edge_tensor *output, *key_rows, *value_rows, *key_scales, *value_scales;
} tree_attention_call;

// One unit of work: rows [row, row + rows) of a key head (row = token * groups + query head within the group) over
// past [start, stop), and over the new tokens where `is_last`. `writes` says to put out the rows of the new keys and
// values too. Where `sums` is NULL the output is written, else what the parts are put together by: per row the weighted
// values, the sum of weights and the greatest score.
typedef struct tree_attention_part {
    int64_t head, row, rows, start, stop;
    int32_t is_last, writes;
    float *values, *sums, *peaks;
} tree_attention_part;

typedef void (*tree_attention_run)(const tree_attention_call *, const tree_attention_part *);

void tree_attention_portable(const tree_attention_call *call, const tree_attention_part *part);
void tree_attention_avx2(const tree_attention_call *call, const tree_attention_part *part);
void tree_attention_avx512(const tree_attention_call *call, const tree_attention_part *part);

#ifdef __cplusplus
}
#endif
#endif
