/* The C ABI of all kernels: raw pointers, no header of any engine.
 *
 * A kernel is one row of a table (`edge_kernel`). Each engine has one binding that walks the table, so a
 * new kernel needs no code per engine. Everything here is plain C, and what is passed in belongs to the caller.
 */
#ifndef EDGE_H
#define EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE_ABI_VERSION 1
#define EDGE_MAX_RANK 8
#define EDGE_EXPORT __attribute__((visibility("default"))) /* nothing else leaves the library */

typedef enum edge_dtype {
    EDGE_NONE = -1, /* an optional input that was not given */
    EDGE_FLOAT32 = 0,
    EDGE_FLOAT16 = 1,
    EDGE_BFLOAT16 = 2,
    EDGE_INT8 = 3,
    EDGE_UINT8 = 4,
    EDGE_INT32 = 5,
    EDGE_INT64 = 6,
    EDGE_BOOL = 7,
    EDGE_FLOAT64 = 8
} edge_dtype;

/* `strides` counts elements, not bytes. `data` may be unaligned for AVX but is aligned to its own type. */
typedef struct edge_tensor {
    void *data;
    int64_t shape[EDGE_MAX_RANK];
    int64_t strides[EDGE_MAX_RANK];
    int32_t rank;
    int32_t dtype; /* edge_dtype */
} edge_tensor;

/* An attribute, in the order in which the kernel's specification lists them. */
typedef union edge_value {
    int64_t integer; /* also booleans */
    double number;
} edge_value;

/* The engine's own threads. `run` calls `task(argument, i)` once for each i in [0, tasks), in any order and
 * possibly side by side, and returns when all are done. */
typedef struct edge_pool {
    void *self;
    int32_t threads; /* how many may run side by side; at least 1 */
    void (*run)(void *self, int32_t tasks, void (*task)(void *argument, int32_t index), void *argument);
} edge_pool;

/* Each returns NULL, or a message with static storage that says what was expected.
 * `shape` sets rank, shape and dtype of the outputs (not data, not strides) from those of the inputs.
 * `run` fills outputs, which the caller allocated, dense and row-major, by what `shape` said. */
typedef const char *(*edge_shape_function)(const edge_tensor *inputs, int32_t input_count,
                                           const edge_value *attributes, edge_tensor *outputs);
typedef const char *(*edge_run_function)(const edge_pool *pool, const edge_tensor *inputs, int32_t input_count,
                                         const edge_value *attributes, edge_tensor *outputs);

typedef struct edge_attribute {
    const char *name;
    int32_t is_number; /* 0: integer, 1: number */
} edge_attribute;

typedef struct edge_kernel {
    const char *name; /* without the domain: "linear_nbits" for edge::linear_nbits */
    int32_t version;
    int32_t min_inputs; /* inputs past these are optional, from the end */
    int32_t max_inputs;
    int32_t outputs;
    const edge_attribute *attributes; /* ends with a NULL name; NULL where there are none */
    edge_shape_function shape;
    edge_run_function run;
    /* The dtypes that it takes and gives, for engines that want to know before they see a shape: one letter for
     * each of the max_inputs inputs, '>', one for each output; alternatives are separated by spaces, as in
     * "fB>f eB>e". Letters: f float32, e float16, E bfloat16, b int8, B uint8, i int32, l int64, ? bool, d float64. */
    const char *types;
} edge_kernel;

#ifdef __cplusplus
}
#endif
#endif
