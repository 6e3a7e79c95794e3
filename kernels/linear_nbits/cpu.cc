// edge::linear_nbits: checks, the row of the table, and code that any processor runs.
#include "activations.h"
#include "cpu.h"
#include "pool.h"

namespace edge {
namespace {

constexpr int64_t TILE = LINEAR_NBITS_TILE, ROWS = LINEAR_NBITS_ROWS;
enum { X, WEIGHT, SCALES, ZEROS, BIAS };

// --- code for any processor: one tile and one row at a time ---

// The integers of one quad of a tile, 64 of them.
inline void unpack(const uint8_t *tile, int bits, int64_t quad, uint8_t *w) {
    if (bits == 8) {
        std::memcpy(w, tile + quad * 64, 64);
    } else if (bits == 3) {
        const uint8_t *unit = tile + quad / 8 * 192, *low = unit + quad % 8 / 4 * 64;
        const int j = static_cast<int>(quad % 8);
        for (int i = 0; i < 64; ++i) w[i] = (low[i] >> (j % 4 * 2) & 3) | (unit[128 + i] >> j & 1) << 2;
    } else {
        const int64_t count = 8 / bits;
        const int shift = static_cast<int>(quad % count) * bits, mask = (1 << bits) - 1;
        for (int i = 0; i < 64; ++i) w[i] = tile[quad / count * 64 + i] >> shift & mask;
    }
}

inline float scale_at(const linear_nbits_call *call, int64_t index) {
    return call->half ? from_fp16(static_cast<const uint16_t *>(call->scales)[index])
                      : static_cast<const float *>(call->scales)[index];
}

void multiply(const linear_nbits_call *call, int64_t tile, int64_t part, int64_t rows, int64_t row) {
    const int64_t groups = call->depth / call->group, blocks = call->depth / call->block, quads = call->block / 4;
    const int32_t *a = call->quads + part * (call->depth / 4) + row;
    float total[TILE] = {};
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t group = tile * groups + b * call->block / call->group, at = part * blocks + b * rows + row;
        int32_t sum[TILE];
        for (int n = 0; n < TILE; ++n)
            sum[n] = call->sums[at] * (call->zeros == nullptr ? 1 : call->zeros[group * TILE + n]);
        for (int64_t q = 0; q < quads; ++q) {
            uint8_t w[64];
            int8_t x[4];
            unpack(call->weight + tile * 2 * call->bits * call->depth, call->bits, b * quads + q, w);
            std::memcpy(x, a + (b * quads + q) * rows, 4);
            for (int n = 0; n < TILE; ++n)
                sum[n] += w[4 * n] * x[0] + w[4 * n + 1] * x[1] + w[4 * n + 2] * x[2] + w[4 * n + 3] * x[3];
        }
        for (int n = 0; n < TILE; ++n)
            total[n] += static_cast<float>(sum[n]) * call->steps[at] * scale_at(call, group * TILE + n);
    }
    float *y = call->output + (part + row) * call->columns + tile * TILE;
    for (int64_t n = 0; n < TILE && tile * TILE + n < call->columns; ++n)
        y[n] = total[n] + (call->bias == nullptr ? 0.0f : call->bias[tile * TILE + n]);
}

void run_portable(const linear_nbits_call *call, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t row = 0; row < call->rows; ++row) {
            const int64_t part = row / ROWS * ROWS;
            multiply(call, tile, part, std::min(ROWS, call->rows - part), row - part);
        }
}

const linear_nbits_code &code() {
    switch (isa()) {
#if defined(__x86_64__)
        case Isa::amx: return linear_nbits_amx;
        case Isa::avx512: return linear_nbits_avx512;
        case Isa::avx2: return linear_nbits_avx2;
#elif defined(__aarch64__)
        case Isa::neon: return linear_nbits_neon;
#endif
        default: return linear_nbits_portable;
    }
}

// --- arguments ---

const char *check(const edge_tensor *in, int32_t count, const edge_value *attributes) {
    const int64_t columns = attributes[0].integer, bits = attributes[1].integer, group = attributes[2].integer;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8) return "bits is not 2, 3, 4 or 8";
    if (group < 1 || group % (bits == 3 ? 32 : 16) != 0)
        return "group is not a multiple of 16 (of 32 with 3 bits)";
    if (in[X].dtype != EDGE_FLOAT32 || in[X].rank < 1) return "x is not float32 [..., K]";
    const int64_t depth = in[X].shape[in[X].rank - 1], tiles = in[WEIGHT].shape[0];
    if (depth % group != 0) return "group does not divide the last axis of x";
    if (in[WEIGHT].dtype != EDGE_UINT8 || in[WEIGHT].rank != 2 || in[WEIGHT].shape[1] != 2 * bits * depth)
        return "weight is not uint8 [tiles, 2 * bits * K]";
    if (columns < 0 || columns > tiles * TILE) return "weight has fewer than `columns` columns";
    const auto by_group = [&](const edge_tensor &t) {
        return t.rank == 3 && t.shape[0] == tiles && t.shape[1] == depth / group && t.shape[2] == TILE;
    };
    if ((in[SCALES].dtype != EDGE_FLOAT32 && in[SCALES].dtype != EDGE_FLOAT16) || !by_group(in[SCALES]))
        return "scales are not float32 or float16 [tiles, K / group, 16]";
    if (is_given(in, count, ZEROS) && (in[ZEROS].dtype != EDGE_UINT8 || !by_group(in[ZEROS])))
        return "zeros are not uint8 [tiles, K / group, 16]";
    const int64_t wanted = columns == 0 ? tiles * TILE : columns;
    if (is_given(in, count, BIAS) &&
        (in[BIAS].dtype != EDGE_FLOAT32 || in[BIAS].rank != 1 || in[BIAS].shape[0] != wanted))
        return "bias is not float32 [columns]";
    return nullptr;
}

int64_t columns_of(const edge_tensor *inputs, const edge_value *attributes) {
    return attributes[0].integer == 0 ? inputs[WEIGHT].shape[0] * TILE : attributes[0].integer;
}

const char *shape(const edge_tensor *inputs, int32_t count, const edge_value *attributes, edge_tensor *outputs) {
    if (const char *wrong = check(inputs, count, attributes)) return wrong;
    copy_shape(inputs[X], outputs[0]);
    outputs[0].shape[inputs[X].rank - 1] = columns_of(inputs, attributes);
    return nullptr;
}

struct Rooms {
    Scratch row, bytes, quads, steps, sums, weight, scales, zeros, bias;
};

// Quantizes all rows; what a call points to lives until the thread's next one.
void prepare(const linear_nbits_code &use, const edge_tensor &x, linear_nbits_call &call, Rooms &rooms) {
    const int64_t blocks = call.depth / call.block;
    float *row = rooms.row.get<float>(call.depth);
    int8_t *bytes = rooms.bytes.get<int8_t>(call.depth);
    int32_t *quads = rooms.quads.get<int32_t>(call.rows * (call.depth / 4));
    float *steps = rooms.steps.get<float>(call.rows * blocks);
    int32_t *sums = rooms.sums.get<int32_t>(call.rows * blocks);
    for (int64_t m = 0; m < call.rows; ++m) {
        const int64_t part = m / ROWS * ROWS, r = m - part;
        use.quantize(&call, row_of(x, m, row), std::min(ROWS, call.rows - part), bytes,
                     quads + part * (call.depth / 4) + r, steps + part * blocks + r, sums + part * blocks + r);
    }
    call.quads = quads, call.steps = steps, call.sums = sums;
}

const char *compute(const edge_pool *pool, const edge_tensor *in, int32_t count, const edge_value *attributes,
                    edge_tensor *outputs) {
    static thread_local Rooms rooms;
    linear_nbits_call call{};
    call.columns = columns_of(in, attributes);
    call.depth = in[X].shape[in[X].rank - 1];
    call.rows = 1;
    for (int32_t axis = 0; axis + 1 < in[X].rank; ++axis) call.rows *= in[X].shape[axis];
    if (call.rows == 0 || call.columns == 0) return nullptr;
    call.bits = static_cast<int32_t>(attributes[1].integer);
    call.group = attributes[2].integer;
    call.block = block_of(call.group, call.bits == 3 ? 32 : 16);
    call.half = in[SCALES].dtype == EDGE_FLOAT16;
    call.weight = static_cast<const uint8_t *>(dense(in[WEIGHT], 1, rooms.weight));
    call.scales = dense(in[SCALES], call.half ? 2 : 4, rooms.scales);
    if (is_given(in, count, ZEROS)) call.zeros = static_cast<const uint8_t *>(dense(in[ZEROS], 1, rooms.zeros));
    if (is_given(in, count, BIAS)) call.bias = static_cast<const float *>(dense(in[BIAS], 4, rooms.bias));
    call.output = static_cast<float *>(outputs[0].data);
    const linear_nbits_code &use = code();
    prepare(use, in[X], call, rooms);
    const int64_t tiles = (call.columns + TILE - 1) / TILE, work = call.rows * call.depth * TILE;
    edge_pool parts = pool == nullptr ? edge_pool{nullptr, 1, nullptr} : *pool;
    if (parts.threads > 1) parts.threads *= 4;  // parts: a thread that is held up keeps the others waiting for less
    parallel_for(&parts, tiles, 4 + (1 << 18) / std::max<int64_t>(work, 1),
                 [&](int64_t start, int64_t stop) { use.run(&call, start, stop); });
    return nullptr;
}

const char *run(const edge_pool *pool, const edge_tensor *inputs, int32_t count, const edge_value *attributes,
                edge_tensor *outputs) {
    if (const char *wrong = check(inputs, count, attributes)) return wrong;
    try {
        return compute(pool, inputs, count, attributes, outputs);
    } catch (const std::bad_alloc &) {
        return "out of memory";
    }
}

const edge_attribute ATTRIBUTES[] = {{"columns", 0}, {"bits", 0}, {"group", 0}, {nullptr, 0}};

}  // namespace
}  // namespace edge

extern "C" {
const linear_nbits_code linear_nbits_portable = {edge::quantize_row, edge::run_portable};
const edge_kernel edge_kernel_linear_nbits = {"linear_nbits", 1, 3, 5, 1, edge::ATTRIBUTES, edge::shape, edge::run,
                                              "fBfBf>f fBeBf>f"};
}
