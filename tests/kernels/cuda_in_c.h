// CUDA's blocks, warps and shared memory in plain C++, so that CUDA code runs where there is no GPU: see
// test_cuda_on_cpu.py, which rewrites the few places that are no C++.
//
// The threads of a block are fibres of one thread of the processor. Each runs until it waits for others, in an order
// that is another one in each round, so that code which needs an order it did not ask for gives wrong numbers. Shared
// memory begins as garbage. Threads that wait for one another at different places, shuffles of part of a warp, vector
// loads off their alignment and blocks that no device takes are errors of the launch.
#ifndef EDGE_CUDA_IN_C_H
#define EDGE_CUDA_IN_C_H

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "tensors.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("edge_shared")))
extern "C" char __start_edge_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_edge_shared[] __attribute__((weak, visibility("hidden")));

using std::max;
using std::min;

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef const char *cudaError_t;
typedef struct Stream *cudaStream_t;
static const cudaError_t cudaSuccess = nullptr;

namespace cuda_in_c {

constexpr int WARP = 32, MOST = 1024;
constexpr size_t STACK = 1 << 16, SHARED = 48 << 10;
enum Wait { READY, FOR_WARP, FOR_BLOCK, DONE };

struct Fibre {
    jmp_buf at;
    ucontext_t first;
    char *stack = nullptr;
    bool runs = false;
    dim3 index;
    Wait wait = READY;
    int line = 0, phase = 0, value = 0, answer = 0;
};
static Fibre fibres[MOST];
static Fibre *current;
static jmp_buf scheduler;
static std::function<void()> body;
static const char *failure;
static uint64_t slots[MOST / WARP][2][WARP];
alignas(64) static char dynamic[SHARED];
static uint32_t chance = 1;

// A later launch does nothing, as after a fault of a device.
inline void fail(const char *what) {
    if (failure == nullptr) failure = what;
}

__attribute__((noinline)) void yield() {
    if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

inline void fibre_main() {
    for (;;) {
        body();
        current->wait = DONE;
        yield();
    }
}

__attribute__((noinline)) void resume(Fibre &fibre) {
    current = &fibre;
    threadIdx = fibre.index;
    if (_setjmp(scheduler) != 0) return;
    if (fibre.runs) _longjmp(fibre.at, 1);
    fibre.runs = true;
    getcontext(&fibre.first);
    if (fibre.stack == nullptr) fibre.stack = new char[STACK];
    fibre.first.uc_stack.ss_sp = fibre.stack;
    fibre.first.uc_stack.ss_size = STACK;
    fibre.first.uc_link = nullptr;
    makecontext(&fibre.first, fibre_main, 0);
    setcontext(&fibre.first);
}

inline void wait_for(Wait what, int line) {
    current->wait = what, current->line = line;
    yield();
}

inline int number() { return static_cast<int>(current - fibres); }

template <class T>
T shuffle(uint32_t mask, T value, int from, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move up to eight bytes");
    if (mask != ~0u) fail("a shuffle of part of a warp");
    auto &mine = slots[number() / WARP][current->phase ^= 1];
    memcpy(&mine[number() % WARP], &value, sizeof value);
    wait_for(FOR_WARP, line);
    memcpy(&value, &mine[from % WARP], sizeof value);
    return value;
}

inline int any_of_block(int value, int line) {
    current->value = value;
    wait_for(FOR_BLOCK, line);
    return current->answer;
}

// Lets [from, to) go on if all wait at one place; whether they did.
inline bool release(int from, int to, Wait what) {
    int any = 0;
    for (int i = from; i < to; ++i) {
        if (fibres[i].wait != what || fibres[i].line != fibres[from].line) return false;
        any |= fibres[i].value;
    }
    for (int i = from; i < to; ++i) fibres[i].wait = READY, fibres[i].answer = any;
    return true;
}

// One round of all that can run; whether anything went on.
inline bool run_round(int count, int &left) {
    bool moved = false;
    chance = chance * 1664525u + 1013904223u;
    int step = static_cast<int>(chance >> 8) % count | 1, at = static_cast<int>(chance >> 16) % count;
    while (std::gcd(step, count) != 1) step += 2;
    for (int i = 0; i < count; ++i, at = (at + step) % count) {
        if (fibres[at].wait != READY) continue;
        resume(fibres[at]);
        left -= fibres[at].wait == DONE;
        moved = true;
    }
    for (int first = 0; first < count; first += WARP) moved |= release(first, first + WARP, FOR_WARP);
    return release(0, count, FOR_BLOCK) || moved;
}

inline void run_block(int count) {
    for (int i = 0; i < count; ++i) {
        fibres[i].wait = READY, fibres[i].value = 0;
        fibres[i].index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    }
    memset(dynamic, 0xd5, sizeof dynamic);
    if (__start_edge_shared != nullptr) memset(__start_edge_shared, 0xd5, __stop_edge_shared - __start_edge_shared);
    for (int left = count; left > 0;) {
        if (run_round(count, left)) continue;
        fail("threads wait for one another at different places");
        for (int i = 0; i < count; ++i) fibres[i].runs = false, fibres[i].stack = nullptr;  // what ran there is lost
        return;
    }
}

struct Launch {
    dim3 grid, block;
    size_t shared;

    void operator()(std::function<void()> kernel) const {
        const uint64_t count = uint64_t{block.x} * block.y * block.z;
        if (count < 1 || count > MOST || count % WARP != 0) return fail("a block that no device takes, or of part of a warp");
        if (shared > SHARED) return fail("more shared memory than a block has without asking");
        if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) return fail("a grid that no device takes");
        body = kernel, gridDim = grid, blockDim = block;
        for (unsigned z = 0; z < grid.z; ++z)
            for (unsigned y = 0; y < grid.y; ++y)
                for (unsigned x = 0; x < grid.x && failure == nullptr; ++x)
                    blockIdx = dim3(x, y, z), run_block(static_cast<int>(count));
    }
};

inline Launch launch(dim3 grid, dim3 block, size_t shared, cudaStream_t) { return {grid, block, shared}; }

}  // namespace cuda_in_c

inline cudaError_t cudaGetLastError() {
    const char *found = cuda_in_c::failure;
    cuda_in_c::failure = nullptr;
    return found;
}
inline const char *cudaGetErrorString(cudaError_t error) { return error; }

#define __syncthreads() ::cuda_in_c::wait_for(::cuda_in_c::FOR_BLOCK, __LINE__)
#define __syncthreads_or(value) ::cuda_in_c::any_of_block((value) != 0, __LINE__)
#define __syncwarp() ::cuda_in_c::wait_for(::cuda_in_c::FOR_WARP, __LINE__)
#define __shfl_sync(mask, value, from) ::cuda_in_c::shuffle(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, step) \
    ::cuda_in_c::shuffle(mask, value, ::cuda_in_c::number() % ::cuda_in_c::WARP ^ (step), __LINE__)

// Only of shared memory here, where threads take turns.
template <class T>
T atomicAdd(T *to, T value) {
    *to += value;
    return *to - value;
}

inline int __dp4a(int a, int b, int c) {
    for (int shift = 0; shift < 32; shift += 8) c += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
    return c;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }

// Copies of vectors, which a device moves only from and to their alignment.
inline void copy_vector(void *to, const void *from, size_t size) {
    __asm__("" : "+r"(to), "+r"(from));  // so that the compiler takes nothing for granted
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size != 0)
        ::cuda_in_c::fail("a vector off its alignment");
    memcpy(to, from, size);
}

struct alignas(8) uint2 {
    unsigned x, y;
    uint2() = default;
    uint2(const uint2 &other) { copy_vector(this, &other, sizeof *this); }
    uint2 &operator=(const uint2 &other) { return copy_vector(this, &other, sizeof *this), *this; }
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
    uint4() = default;
    uint4(const uint4 &other) { copy_vector(this, &other, sizeof *this); }
    uint4 &operator=(const uint4 &other) { return copy_vector(this, &other, sizeof *this), *this; }
};

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return edge::from_bf16(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {edge::to_bf16(x)}; }
inline float __half2float(__half x) { return edge::from_fp16(x.bits); }

#endif
