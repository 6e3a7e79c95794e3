// Runs a kernel on the cases that come in, for processors that are emulated: see test_aarch64.py.
//
// In: int32 number of tensors and of attributes; the attributes; each tensor as edge_tensor, int64 bytes, the bytes.
// Out: int32 0, then each output as edge_tensor, int64 bytes, the bytes; or int32 length and text of a refusal.
#include <cstdio>
#include <cstring>
#include <vector>

#include "edge.h"

extern "C" const edge_kernel *const *edge_kernels(int32_t *count) noexcept;

namespace {

const int64_t SIZES[] = {4, 2, 2, 1, 1, 4, 8, 1, 8};

template <class T>
bool read(T *to, size_t count) { return std::fread(to, sizeof(T), count, stdin) == count; }

template <class T>
void write(const T *from, size_t count) { std::fwrite(from, sizeof(T), count, stdout); }

bool refused(const char *message) {
    if (message == nullptr) return false;
    const int32_t length = static_cast<int32_t>(std::strlen(message));
    write(&length, 1);
    write(message, length);
    return true;
}

int64_t allocate(edge_tensor &tensor, std::vector<char> &room) {
    int64_t count = 1;
    for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
        tensor.strides[axis] = count;
        count *= tensor.shape[axis];
    }
    room.assign(static_cast<size_t>(count * SIZES[tensor.dtype]) + 1, 77);
    tensor.data = room.data();
    return count * SIZES[tensor.dtype];
}

void run(const edge_kernel &kernel, const std::vector<edge_tensor> &inputs, const std::vector<edge_value> &attributes) {
    std::vector<edge_tensor> outputs(kernel.outputs);
    std::vector<std::vector<char>> rooms(kernel.outputs);
    std::vector<int64_t> bytes(kernel.outputs);
    const int32_t count = static_cast<int32_t>(inputs.size());
    if (refused(kernel.shape(inputs.data(), count, attributes.data(), outputs.data()))) return;
    for (size_t i = 0; i < outputs.size(); ++i) bytes[i] = allocate(outputs[i], rooms[i]);
    const edge_pool pool{nullptr, 3, [](void *, int32_t tasks, void (*task)(void *, int32_t), void *argument) {
                             for (int32_t i = 0; i < tasks; ++i) task(argument, i);
                         }};
    if (refused(kernel.run(&pool, inputs.data(), count, attributes.data(), outputs.data()))) return;
    const int32_t good = 0;
    write(&good, 1);
    for (size_t i = 0; i < outputs.size(); ++i) {
        write(&outputs[i], 1);
        write(&bytes[i], 1);
        write(rooms[i].data(), static_cast<size_t>(bytes[i]));
    }
}

}  // namespace

int main() {
    int32_t kernels = 0, counts[2];
    const edge_kernel &kernel = *edge_kernels(&kernels)[0];
    while (read(counts, 2)) {
        std::vector<edge_value> attributes(counts[1] + 1);
        std::vector<edge_tensor> inputs(counts[0]);
        std::vector<std::vector<char>> rooms(counts[0]);
        if (!read(attributes.data(), counts[1])) return 1;
        for (int32_t i = 0; i < counts[0]; ++i) {
            int64_t bytes;
            if (!read(&inputs[i], 1) || !read(&bytes, 1)) return 1;
            rooms[i].resize(bytes + 1);
            if (!read(rooms[i].data(), bytes)) return 1;
            inputs[i].data = rooms[i].data();
        }
        run(kernel, inputs, attributes);
    }
    return 0;
}
