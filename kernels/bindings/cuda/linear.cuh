// What the linear kernels share on a GPU: activations to int8, and the sums of a tile of 16 columns.
//
// A block of threads takes a tile and some rows, and its threads split the weights along K. Each loads 16 bytes, which
// are four columns: those of its place among four neighbours. So a warp reads a line after the other, each once.
#ifndef EDGE_CUDA_LINEAR_CUH
#define EDGE_CUDA_LINEAR_CUH

#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int TILE = 16, PART = 4;  // columns of a tile, and of a thread
constexpr int THREADS = 256, WARPS = THREADS / WARP;

struct Linear {
    const int8_t *q;     // activations [rows, depth]
    const float *steps;  // [rows, blocks]
    const uint8_t *weight;
    const void *scales;
    const float *bias;
    float *output;
    int64_t rows, columns;
    int depth, groups, blocks;
    Divisor group, block;
    bool half;
};

// How many activations share a step: the largest multiple of `step` up to 128 that divides the group.
inline int64_t block_of(int64_t group, int64_t step) {
    int64_t block = 128 / step * step;
    while (block > 0 && group % block != 0) block -= step;
    return block;
}

// Each warp takes a block of activations: step = max |x| / limit, q = x / step, rounded half to even, each step in
// float32. Blocks below 2^-118 count as zeros; the step of one with a NaN or an infinity is NaN.
__global__ void quantize(const float *x, int64_t blocks, int block, float limit, int8_t *q, float *steps) {
    constexpr int INFINITE = 0x7f800000, SMALL = (127 - 118) << 23;
    const int64_t at = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / WARP;
    const int lane = threadIdx.x % WARP;
    if (at >= blocks) return;
    x += at * block, q += at * block;
    int most = 0;
    for (int i = lane; i < block; i += WARP) most = max(most, __float_as_int(x[i]) & 0x7fffffff);
    most = warp_most(most);
    const bool used = most >= SMALL && most < INFINITE;
    const float step = __int_as_float(most) / limit, inverse = 1.0f / step;
    for (int i = lane; i < block; i += WARP) q[i] = used ? static_cast<int8_t>(rintf(x[i] * inverse)) : 0;
    if (lane == 0) steps[at] = used ? step : most >= INFINITE ? NAN : 0.0f;
}

// The scales of a thread's columns.
__device__ inline void load_scales(const Linear &call, int64_t place, float (&scale)[PART]) {
    if (call.half) {
        const uint2 bits = *reinterpret_cast<const uint2 *>(static_cast<const __half *>(call.scales) + place);
        __half values[PART];
        memcpy(values, &bits, sizeof bits);
        for (int j = 0; j < PART; ++j) scale[j] = __half2float(values[j]);
    } else {
        const uint4 bits = load_vector(static_cast<const float *>(call.scales) + place);
        memcpy(scale, &bits, sizeof bits);
    }
}

// Adds up what the threads of a block have of rows [row, row + ROWS) of a tile, and writes it.
template <int ROWS>
__device__ void put_tile(const Linear &call, int64_t tile, int64_t row, const float (&total)[ROWS][PART]) {
    __shared__ float sums[WARPS][ROWS][TILE];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int r = 0; r < ROWS; ++r)
        for (int j = 0; j < PART; ++j) {
            float sum = total[r][j];
            for (int step = WARP / 2; step >= TILE / PART; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
            if (lane < TILE / PART) sums[warp][r][PART * lane + j] = sum;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TILE; i += THREADS) {
        const int r = i / TILE, n = i % TILE;
        const int64_t column = tile * TILE + n;
        if (row + r >= call.rows || column >= call.columns) continue;
        float sum = sums[0][r][n];
        for (int w = 1; w < WARPS; ++w) sum += sums[w][r][n];
        call.output[(row + r) * call.columns + column] = call.bias == nullptr ? sum : sum + call.bias[column];
    }
    __syncthreads();
}

// The fields of a call but for its weight, and its activations as integers; without memory in `room` only what is taken
// there. `bias` may be of no dtype.
inline Linear linear_of(const edge_tensor &x, const edge_tensor &scales, const edge_tensor &bias, Room &room) {
    Linear call = {};
    call.rows = row_count(x), call.depth = static_cast<int>(x.shape[x.rank - 1]);
    call.half = scales.dtype == EDGE_FLOAT16;
    if (call.half)
        call.scales = room.dense<__half>(scales);
    else
        call.scales = room.dense<float>(scales);
    if (bias.dtype != EDGE_NONE) call.bias = room.dense<float>(bias);
    call.q = room.take<int8_t>(call.rows * call.depth);
    call.steps = room.take<float>(call.rows * call.depth / 16);
    return call;
}

// What the attributes say, and the activations.
inline void start_quantize(Linear &call, const float *x, int64_t columns, int64_t group, int64_t step, float limit,
                           cudaStream_t stream) {
    const int64_t block = block_of(group, step), count = call.rows * (call.depth / block);
    call.columns = columns, call.groups = static_cast<int>(call.depth / group), call.blocks = static_cast<int>(call.depth / block);
    call.group = Divisor(group, call.depth), call.block = Divisor(block, call.depth);
    if (count == 0) return;
    quantize<<<static_cast<unsigned>(ceil_of(count, WARPS)), THREADS, 0, stream>>>(
        x, count, static_cast<int>(block), limit, const_cast<int8_t *>(call.q), const_cast<float *>(call.steps));
}

// Blocks for the tiles and the rows.
inline dim3 grid_of(const Linear &call, int rows) {
    const int64_t parts = ceil_of(call.rows, rows);
    return dim3(static_cast<unsigned>(ceil_of(call.columns, TILE)), static_cast<unsigned>(parts < 65535 ? parts : 65535));
}

}  // namespace
}  // namespace edge

#endif
