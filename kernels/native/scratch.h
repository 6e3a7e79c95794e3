// Scratch memory that grows and stays: declare `static thread_local edge::Scratch name;` where it is used.
#ifndef EDGE_SCRATCH_H
#define EDGE_SCRATCH_H

#include <cstddef>
#include <cstdlib>
#include <new>

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

}  // namespace
}  // namespace edge

#endif
