// edge::residual_vq_decode on NVIDIA GPUs: a thread for each number of the result, neighbours side by side. A code that
// there is not gives NaN: the host cannot see it without waiting for the device.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

enum Input { CODES, BOOKS };

__global__ void add_vectors(const int64_t *codes, const float *books, int64_t total, int64_t count, int64_t size,
                            int64_t width, float *to) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < total; i += gridDim.x * int64_t{blockDim.x}) {
        const int64_t row = i / width, d = i % width;
        float sum = 0;
        for (int64_t b = 0; b < count; ++b) {
            const int64_t code = codes[row * count + b];
            sum += code >= 0 && code < size ? books[(b * size + code) * width + d] : NAN;
        }
        to[i] = sum;
    }
}

const char *check(const edge_tensor *in) {
    if (in[BOOKS].rank != 3 || in[BOOKS].dtype != EDGE_FLOAT32) return "codebooks: expected float32 [books, codes, width]";
    if (in[CODES].rank < 1 || in[CODES].dtype != EDGE_INT64 ||
        in[CODES].shape[in[CODES].rank - 1] != in[BOOKS].shape[0])
        return "codes: expected int64 [..., books]";
    return nullptr;
}

struct Call {
    const int64_t *codes;
    const float *books;
};

Call plan(const edge_tensor *in, Room &room) { return {room.dense<int64_t>(in[CODES]), room.dense<float>(in[BOOKS])}; }

}  // namespace
}  // namespace edge

extern "C" {

size_t residual_vq_decode_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *residual_vq_decode_cuda(const edge_tensor *in, int32_t, const edge_value *, edge_tensor *out, void *workspace,
                                    void *stream) {
    using namespace edge;
    if (const char *wrong = check(in)) return wrong;
    const int64_t width = in[BOOKS].shape[2], total = row_count(in[CODES]) * width;
    if (total == 0) return nullptr;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    const Call call = plan(in, room);
    const unsigned blocks = static_cast<unsigned>(total < (1 << 22) ? ceil_of(total, 128) : 1 << 15);
    add_vectors<<<blocks, 128, 0, queue>>>(call.codes, call.books, total, in[BOOKS].shape[0], in[BOOKS].shape[1], width,
                                           static_cast<float *>(out[0].data));
    return last_failure();
}
}
