// edge::linear_nbits on NVIDIA GPUs, for a few rows: activations to int8 once, then products of four bytes (dp4a) with
// weights that stay packed until they are in registers. See linear_nbits.h for their order.
#include "cuda/linear.cuh"

namespace edge {
namespace {

enum { X, WEIGHT, SCALES, ZEROS, BIAS };

// The vectors of one unit, for four columns; `get(j, column)` is the four weights of quad j, each in a byte. Weights of
// 8 bits are less by 128.
template <int BITS>
struct Unit {
    static constexpr int QUADS = 8 / BITS, VECTORS = 1;
    unsigned words[PART];
    __device__ void load(const uint8_t *from) {
        const uint4 bits = load_vector(from);
        memcpy(words, &bits, sizeof bits);
    }
    __device__ int get(int j, int column) const {
        if (BITS == 8) return static_cast<int>(words[column] ^ 0x80808080u);
        return static_cast<int>(words[column] >> (BITS * j) & (BITS == 4 ? 0x0f0f0f0fu : 0x03030303u));
    }
};

template <>
struct Unit<3> {
    static constexpr int QUADS = 8, VECTORS = 3;
    unsigned words[VECTORS][PART];
    __device__ void load(const uint8_t *from) {
        for (int v = 0; v < VECTORS; ++v) {
            const uint4 bits = load_vector(from + v * 4 * TILE);
            memcpy(words[v], &bits, sizeof bits);
        }
    }
    __device__ int get(int j, int column) const {
        const unsigned low = words[j / 4][column] >> (2 * (j % 4)) & 0x03030303u;
        return static_cast<int>(low | (words[2][column] >> j & 0x01010101u) << 2);
    }
};

// Activations of a unit: 4, 8, 16 or 32 bytes.
template <int QUADS>
__device__ void load_quads(const int8_t *from, int (&quads)[QUADS]) {
    if constexpr (QUADS == 1) {
        quads[0] = *reinterpret_cast<const int *>(from);
    } else if constexpr (QUADS == 2) {
        const uint2 bits = *reinterpret_cast<const uint2 *>(from);
        memcpy(quads, &bits, sizeof bits);
    } else {
        for (int i = 0; i < QUADS; i += 4) {
            const uint4 bits = load_vector(from + 4 * i);
            memcpy(quads + i, &bits, sizeof bits);
        }
    }
}

// Zero points of a thread's columns, as its weights are stored.
template <int BITS>
__device__ void load_zeros(const uint8_t *zeros, int64_t place, int (&zero)[PART]) {
    constexpr int SHIFT = BITS == 8 ? 128 : 0;
    unsigned bits = 0;
    if (zeros != nullptr) bits = *reinterpret_cast<const unsigned *>(zeros + place);
    for (int j = 0; j < PART; ++j)
        zero[j] = (zeros == nullptr ? 1 << (BITS - 1) : static_cast<int>(bits >> (8 * j) & 255)) - SHIFT;
}

template <int BITS, int ROWS>
__device__ void add_unit(const Linear &call, const Unit<BITS> &unit, const uint8_t *zeros, int64_t tile, int64_t row,
                         int k, float (&total)[ROWS][PART]) {
    constexpr int QUADS = Unit<BITS>::QUADS;
    const int64_t place = (tile * call.groups + call.group.of(k)) * TILE + PART * (threadIdx.x % (TILE / PART));
    const int block = call.block.of(k);
    float scale[PART];
    int zero[PART];
    load_scales(call, place, scale);
    load_zeros<BITS>(zeros, place, zero);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        if (row + r >= call.rows) break;
        int quads[QUADS], dots[PART] = {}, sum = 0;
        load_quads(call.q + (row + r) * call.depth + k, quads);
#pragma unroll
        for (int j = 0; j < QUADS; ++j) {
            sum = __dp4a(quads[j], 0x01010101, sum);
            for (int c = 0; c < PART; ++c) dots[c] = __dp4a(unit.get(j, c), quads[j], dots[c]);
        }
        const float step = call.steps[(row + r) * call.blocks + block];
        for (int c = 0; c < PART; ++c) total[r][c] += static_cast<float>(dots[c] - zero[c] * sum) * (scale[c] * step);
    }
}

// Block (tile, rows).
template <int BITS, int ROWS>
__global__ void __launch_bounds__(THREADS) multiply(const Linear call, const uint8_t *zeros) {
    constexpr int NEIGHBOURS = TILE / PART, VALUES = 4 * Unit<BITS>::QUADS, BYTES = 4 * TILE * Unit<BITS>::VECTORS;
    const int64_t tile = blockIdx.x;
    const uint8_t *weight = call.weight + tile * 2 * BITS * call.depth + threadIdx.x % NEIGHBOURS * VECTOR;
    for (int64_t row = blockIdx.y * int64_t{ROWS}; row < call.rows; row += gridDim.y * int64_t{ROWS}) {
        float total[ROWS][PART] = {};
        for (int u = threadIdx.x / NEIGHBOURS; u < call.depth / VALUES; u += THREADS / NEIGHBOURS) {
            Unit<BITS> unit;
            unit.load(weight + int64_t{u} * BYTES);
            add_unit<BITS, ROWS>(call, unit, zeros, tile, row, u * VALUES, total);
        }
        put_tile<ROWS>(call, tile, row, total);
    }
}

template <int BITS>
void start(const Linear &call, const uint8_t *zeros, cudaStream_t stream) {
    if (call.rows == 1)
        multiply<BITS, 1><<<grid_of(call, 1), THREADS, 0, stream>>>(call, zeros);
    else if (call.rows <= 4)
        multiply<BITS, 4><<<grid_of(call, 4), THREADS, 0, stream>>>(call, zeros);
    else
        multiply<BITS, 8><<<grid_of(call, 8), THREADS, 0, stream>>>(call, zeros);
}

const char *check_types(const edge_tensor *in) {
    if (in[X].dtype != EDGE_FLOAT32 || in[X].rank < 1) return "x is not float32 [..., K]";
    if (in[X].shape[in[X].rank - 1] > INT32_MAX / 16) return "on a GPU, K is at most 2^27";
    if (in[WEIGHT].dtype != EDGE_UINT8 || in[WEIGHT].rank != 2) return "weight is not uint8 [tiles, 2 * bits * K]";
    if ((in[SCALES].dtype != EDGE_FLOAT32 && in[SCALES].dtype != EDGE_FLOAT16) || in[SCALES].rank != 3)
        return "scales are not float32 or float16 [tiles, K / group, 16]";
    if (in[ZEROS].dtype != EDGE_NONE && (in[ZEROS].dtype != EDGE_UINT8 || in[ZEROS].rank != 3))
        return "zeros are not uint8 [tiles, K / group, 16]";
    if (in[BIAS].dtype != EDGE_NONE && (in[BIAS].dtype != EDGE_FLOAT32 || in[BIAS].rank != 1))
        return "bias is not float32 [columns]";
    return nullptr;
}

const char *check(const edge_tensor *in, int64_t columns, int64_t bits, int64_t group) {
    if (const char *wrong = check_types(in)) return wrong;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return "bits is not 2, 3, 4 or 8";
    if (group < 1 || group % (bits == 3 ? 32 : 16) != 0) return "group is not a multiple of 16 (of 32 with 3 bits)";
    const int64_t depth = in[X].shape[in[X].rank - 1], tiles = in[WEIGHT].shape[0];
    if (depth % group != 0) return "group does not divide the last axis of x";
    if (in[WEIGHT].shape[1] != 2 * bits * depth) return "weight is not uint8 [tiles, 2 * bits * K]";
    if (columns < 0 || columns > tiles * TILE) return "weight has fewer than `columns` columns";
    for (int i = SCALES; i <= ZEROS; ++i)
        if (in[i].dtype != EDGE_NONE &&
            (in[i].shape[0] != tiles || in[i].shape[1] != depth / group || in[i].shape[2] != TILE))
            return "scales and zeros are not [tiles, K / group, 16]";
    return in[BIAS].dtype != EDGE_NONE && in[BIAS].shape[0] != columns ? "bias is not float32 [columns]" : nullptr;
}

struct Plan {
    Linear call;
    const float *x;
    const uint8_t *zeros;
};

Plan plan(const edge_tensor *in, Room &room) {
    Plan made = {linear_of(in[X], in[SCALES], in[BIAS], room), room.dense<float>(in[X]), nullptr};
    made.call.weight = room.dense<uint8_t>(in[WEIGHT]);
    if (in[ZEROS].dtype != EDGE_NONE) made.zeros = room.dense<uint8_t>(in[ZEROS]);
    return made;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t linear_nbits_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check_types(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *linear_nbits_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out,
                              void *workspace, void *stream) {
    using namespace edge;
    const int64_t bits = attributes[1].integer, group = attributes[2].integer;
    const int64_t columns = attributes[0].integer == 0 ? in[WEIGHT].shape[0] * TILE : attributes[0].integer;
    if (const char *wrong = check(in, columns, bits, group)) return wrong;
    if (row_count(in[X]) == 0 || columns == 0) return nullptr;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Plan made = plan(in, room);
    made.call.output = static_cast<float *>(out[0].data);
    start_quantize(made.call, made.x, columns, group, bits == 3 ? 32 : 16, 127, queue);
    switch (bits) {
        case 2: start<2>(made.call, made.zeros, queue); break;
        case 3: start<3>(made.call, made.zeros, queue); break;
        case 4: start<4>(made.call, made.zeros, queue); break;
        default: start<8>(made.call, made.zeros, queue);
    }
    return last_failure();
}
}
