// What the CUDA code of kernels shares: tensors as the engine hands them over, memory to work in, sums and maxima over
// warps and blocks. Internal linkage: each kernel is a library of its own.
//
// Code wants its tensors dense, row-major and aligned to VECTOR bytes, as TensorRT's are. Others are copied first, by
// `Room::dense`.
#ifndef EDGE_CUDA_TENSORS_CUH
#define EDGE_CUDA_TENSORS_CUH

#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "tensors.h"

namespace edge {
namespace {

constexpr int WARP = 32;
constexpr size_t VECTOR = 16;  // bytes that a thread loads at once

inline int64_t size_of(int32_t dtype) {
    constexpr int64_t SIZES[] = {4, 2, 2, 1, 1, 4, 8, 1, 8};
    return SIZES[dtype];
}

__host__ __device__ inline int64_t ceil_of(int64_t count, int64_t by) { return (count + by - 1) / by; }

inline bool is_usable(const edge_tensor &tensor) {
    return is_dense(tensor) && reinterpret_cast<uintptr_t>(tensor.data) % VECTOR == 0;
}

// Elements are moved by their bytes.
template <class T>
__global__ void copy_dense(const edge_tensor from, int64_t count, T *to) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * int64_t{blockDim.x}) {
        int64_t rest = i, offset = 0;
        for (int32_t axis = from.rank - 1; axis >= 0; --axis) {
            offset += rest % from.shape[axis] * from.strides[axis];
            rest /= from.shape[axis];
        }
        to[i] = static_cast<const T *>(from.data)[offset];
    }
}

template <class T>
void start_copy(const edge_tensor &from, int64_t count, void *to, cudaStream_t stream) {
    const unsigned blocks = static_cast<unsigned>(count < (1 << 20) ? ceil_of(count, 256) : 4096);
    copy_dense<T><<<blocks, 256, 0, stream>>>(from, count, static_cast<T *>(to));
}

// The workspace of a call, piece by piece. Without memory it only counts, so that one function says both how much is
// needed and where it lies.
class Room {
  public:
    explicit Room(void *memory = nullptr, cudaStream_t stream = nullptr)
        : memory_(static_cast<char *>(memory)), stream_(stream) {}

    template <class T>
    T *take(int64_t count) {
        void *const found = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
        return static_cast<T *>(found);
    }

    // The values of a tensor, where they lie or copied.
    template <class T>
    const T *dense(const edge_tensor &tensor) {
        const int64_t count = count_of(tensor);
        if (count == 0 || is_usable(tensor)) return static_cast<const T *>(tensor.data);
        T *const to = take<T>(count);
        if (memory_ != nullptr) start_copy<T>(tensor, count, to, stream_);
        return to;
    }

    size_t used() const { return used_; }

  private:
    char *memory_;
    cudaStream_t stream_;
    size_t used_ = 0;
};

inline const char *last_failure() {
    const cudaError_t failure = cudaGetLastError();
    return failure == cudaSuccess ? nullptr : cudaGetErrorString(failure);
}

__device__ inline uint4 load_vector(const void *from) { return *static_cast<const uint4 *>(from); }

// Quotients by a number that the compiler does not know: a product, where that is exact for all up to `most`.
struct Divisor {
    unsigned by, magic;

    Divisor() = default;
    Divisor(int64_t by_, int64_t most) : by(static_cast<unsigned>(by_)), magic(0) {
        if (by_ > 1 && most < (int64_t{1} << 32) / by_) magic = static_cast<unsigned>(((int64_t{1} << 32) + by_ - 1) / by_);
    }
    __device__ int of(int value) const {
        const unsigned x = static_cast<unsigned>(value);
        return static_cast<int>(magic != 0 ? __umulhi(x, magic) : x / by);
    }
};

// Over the threads of a warp: all get the result, and in an order that is always the same.
template <class T>
__device__ T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

template <class T>
__device__ T warp_most(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(~0u, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// Over the threads of a block, WARPS warps of them.
template <int WARPS, class T>
__device__ T block_sum(T x) {
    __shared__ T found[WARPS];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = x;
    __syncthreads();
    x = found[0];
    for (int i = 1; i < WARPS; ++i) x += found[i];
    return x;
}

template <int WARPS, class T>
__device__ T block_most(T x) {
    __shared__ T found[WARPS];
    x = warp_most(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = x;
    __syncthreads();
    x = found[0];
    for (int i = 1; i < WARPS; ++i) x = found[i] > x ? found[i] : x;
    return x;
}

}  // namespace
}  // namespace edge

#endif
