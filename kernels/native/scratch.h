// Scratch memory that grows and stays: declare `static thread_local edge::Scratch name;` where it is used.
#ifndef EDGE_SCRATCH_H
#define EDGE_SCRATCH_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "edge.h"

namespace edge {
namespace {

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { std::free(data_); }

    // Room for `count` values, aligned to 64 bytes; what was in it is lost when it grows.
    template <class T>
    T *get(size_t count) {
        if (count > SIZE_MAX / 2 / sizeof(T)) throw std::bad_alloc();
        const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        if (bytes > bytes_) {
            std::free(data_);
            bytes_ = 0;
            data_ = std::aligned_alloc(64, bytes);
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return static_cast<T *>(data_);
    }

  private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
};

// A kernel's `run` for its row of the table: where memory runs out it says so, for no exception leaves the library.
template <const char *(*RUN)(const edge_pool *, const edge_tensor *, int32_t, const edge_value *, edge_tensor *)>
const char *guarded(const edge_pool *pool, const edge_tensor *inputs, int32_t count, const edge_value *attributes,
                    edge_tensor *outputs) {
    try {
        return RUN(pool, inputs, count, attributes, outputs);
    } catch (const std::bad_alloc &) {
        return "out of memory";
    }
}

}  // namespace
}  // namespace edge

#endif
