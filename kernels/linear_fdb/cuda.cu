// edge::linear_fdb on NVIDIA GPUs, for a few rows: activations to integers once, then four bits of a plane at a time
// become a mask of four bytes, under which dp4a adds up activations. See linear_fdb.h for the order of the planes.
//
// A unit of a tile is 32 weights of 16 columns in both planes, 128 bytes: eight threads take 16 each, which are the
// words of four columns of one plane.
#include "cuda/linear.cuh"

namespace edge {
namespace {

enum { X, PLANES, SCALES, BIAS };
constexpr int UNIT = 32, NEIGHBOURS = 2 * TILE / PART, QUADS = UNIT / 4;

// Bytes of 0 or 1 of the four bits of a word from bit 4 * j on.
__device__ int mask_of(unsigned word, int j) {
    return static_cast<int>((word >> (4 * j) & 15u) * 0x00204081u & 0x01010101u);
}

template <int ROWS>
__device__ void add_unit(const Linear &call, const uint4 &bits, int64_t tile, int64_t row, int k,
                         float (&total)[ROWS][PART]) {
    const int place = threadIdx.x % NEIGHBOURS * PART, block = call.block.of(k);  // 0 to 15: of the first plane
    unsigned words[PART];
    memcpy(words, &bits, sizeof bits);
    float scale[PART];
    load_scales(call, (tile * call.groups + call.group.of(k)) * 2 * TILE + place, scale);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (row + r >= call.rows) break;
        int quads[QUADS], sums[PART] = {};
        for (int i = 0; i < QUADS; i += 4) {
            const uint4 four = load_vector(call.q + (row + r) * call.depth + k + 4 * i);
            memcpy(quads + i, &four, sizeof four);
        }
#pragma unroll
        for (int j = 0; j < QUADS; ++j)
            for (int c = 0; c < PART; ++c) sums[c] = __dp4a(mask_of(words[c], j), quads[j], sums[c]);
        const float step = call.steps[(row + r) * call.blocks + block];
        for (int c = 0; c < PART; ++c) total[r][c] += static_cast<float>(sums[c]) * (scale[c] * step);
    }
}

// Block (tile, rows).
template <int ROWS>
__global__ void __launch_bounds__(THREADS) multiply(const Linear call) {
    const int64_t tile = blockIdx.x;
    const uint8_t *planes = call.weight + tile * 4 * call.depth + threadIdx.x % NEIGHBOURS * VECTOR;
    for (int64_t row = blockIdx.y * int64_t{ROWS}; row < call.rows; row += gridDim.y * int64_t{ROWS}) {
        float total[ROWS][PART] = {};
        for (int u = threadIdx.x / NEIGHBOURS; u < call.depth / UNIT; u += THREADS / NEIGHBOURS)
            add_unit<ROWS>(call, load_vector(planes + int64_t{u} * NEIGHBOURS * VECTOR), tile, row, u * UNIT, total);
        put_tile<ROWS>(call, tile, row, total);
    }
}

void start(const Linear &call, cudaStream_t stream) {
    if (call.rows == 1)
        multiply<1><<<grid_of(call, 1), THREADS, 0, stream>>>(call);
    else if (call.rows <= 4)
        multiply<4><<<grid_of(call, 4), THREADS, 0, stream>>>(call);
    else
        multiply<8><<<grid_of(call, 8), THREADS, 0, stream>>>(call);
}

const char *check_types(const edge_tensor *in) {
    if (in[X].dtype != EDGE_FLOAT32 || in[X].rank < 1) return "x is not float32 [..., K]";
    if (in[X].shape[in[X].rank - 1] > INT32_MAX / 16) return "on a GPU, K is at most 2^27";
    if (in[PLANES].dtype != EDGE_UINT8 || in[PLANES].rank != 2) return "planes are not uint8 [tiles, 4 * K]";
    if ((in[SCALES].dtype != EDGE_FLOAT32 && in[SCALES].dtype != EDGE_FLOAT16) || in[SCALES].rank != 4)
        return "scales are not float32 or float16 [tiles, K / group, 2, 16]";
    if (in[BIAS].dtype != EDGE_NONE && (in[BIAS].dtype != EDGE_FLOAT32 || in[BIAS].rank != 1))
        return "bias is not float32 [columns]";
    return nullptr;
}

const char *check(const edge_tensor *in, int64_t columns, int64_t group) {
    if (const char *wrong = check_types(in)) return wrong;
    const int64_t depth = in[X].shape[in[X].rank - 1], tiles = in[PLANES].shape[0];
    const edge_tensor &scales = in[SCALES];
    if (group < 1 || group % UNIT != 0) return "group is not a multiple of 32";
    if (depth % group != 0) return "group does not divide the last axis of x";
    if (in[PLANES].shape[1] != 4 * depth) return "planes are not uint8 [tiles, 4 * K]";
    if (columns < 0 || columns > tiles * TILE) return "planes have fewer than `columns` columns";
    if (scales.shape[0] != tiles || scales.shape[1] != depth / group || scales.shape[2] != 2 || scales.shape[3] != TILE)
        return "scales are not float32 or float16 [tiles, K / group, 2, 16]";
    return in[BIAS].dtype != EDGE_NONE && in[BIAS].shape[0] != columns ? "bias is not float32 [columns]" : nullptr;
}

struct Plan {
    Linear call;
    const float *x;
};

Plan plan(const edge_tensor *in, Room &room) {
    Plan made = {linear_of(in[X], in[SCALES], in[BIAS], room), room.dense<float>(in[X])};
    made.call.weight = room.dense<uint8_t>(in[PLANES]);
    return made;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t linear_fdb_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check_types(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *linear_fdb_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out,
                            void *workspace, void *stream) {
    using namespace edge;
    const int64_t group = attributes[1].integer;
    const int64_t columns = attributes[0].integer == 0 ? in[PLANES].shape[0] * TILE : attributes[0].integer;
    if (const char *wrong = check(in, columns, group)) return wrong;
    if (row_count(in[X]) == 0 || columns == 0) return nullptr;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Plan made = plan(in, room);
    made.call.output = static_cast<float *>(out[0].data);
    start_quantize(made.call, made.x, columns, group, UNIT, 63, queue);
    start(made.call, queue);
    return last_failure();
}
}
