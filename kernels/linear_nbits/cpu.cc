// edge::linear_nbits: checks, the row of the table, and code that any processor runs.
#include "activations.h"
#include "cpu.h"
#include "linear.h"

namespace edge {
namespace {

constexpr int64_t TILE = LINEAR_TILE;
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

void multiply(const linear_nbits_call *call, int64_t tile, int64_t row) {
    const int64_t groups = call->depth / call->group, blocks = call->depth / call->block, quads = call->block / 4;
    const Place x = place_of(call, row);
    float total[TILE] = {};
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t group = tile * groups + b * call->block / call->group;
        int32_t sum[TILE];
        for (int n = 0; n < TILE; ++n)
            sum[n] = call->sums[x.block + b * x.rows] * (call->zeros == nullptr ? 1 : call->zeros[group * TILE + n]);
        for (int64_t q = b * quads; q < (b + 1) * quads; ++q) {
            uint8_t w[64];
            int8_t a[4];
            unpack(call->weight + tile * 2 * call->bits * call->depth, call->bits, q, w);
            std::memcpy(a, call->quads + x.quad + q * x.rows, 4);
            for (int n = 0; n < TILE; ++n)
                sum[n] += w[4 * n] * a[0] + w[4 * n + 1] * a[1] + w[4 * n + 2] * a[2] + w[4 * n + 3] * a[3];
        }
        for (int n = 0; n < TILE; ++n)
            total[n] += static_cast<float>(sum[n]) * call->steps[x.block + b * x.rows] * scale_at(call, group * TILE + n);
    }
    put(call, row, tile * TILE, total, TILE);
}

void run_portable(const linear_nbits_call *call, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t row = 0; row < call->rows; ++row) multiply(call, tile, row);
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
    if (is_given(in, count, BIAS) && !is_bias(in[BIAS], columns_of(in[WEIGHT], attributes[0])))
        return "bias is not float32 [columns]";
    return nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t count, const edge_value *attributes, edge_tensor *outputs) {
    if (const char *wrong = check(inputs, count, attributes)) return wrong;
    set_shape(inputs[X], columns_of(inputs[WEIGHT], attributes[0]), outputs[0]);
    return nullptr;
}

struct Rooms : LinearRooms {
    Scratch row, bytes, quads, steps, sums, weight, zeros;
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
        const Place to = place_of(&call, m);
        use.quantize(&call, row_of(x, m, row), to.rows, bytes, quads + to.quad, steps + to.block, sums + to.block);
    }
    call.quads = quads, call.steps = steps, call.sums = sums;
}

const char *run(const edge_pool *pool, const edge_tensor *in, int32_t count, const edge_value *attributes,
                edge_tensor *outputs) {
    if (const char *wrong = check(in, count, attributes)) return wrong;
    static thread_local Rooms rooms;
    linear_nbits_call call{};
    call.bits = static_cast<int32_t>(attributes[1].integer);
    describe(call, in[X], columns_of(in[WEIGHT], attributes[0]), attributes[2].integer, call.bits == 3 ? 32 : 16,
             in[SCALES], is_given(in, count, BIAS) ? in + BIAS : nullptr, outputs[0], rooms);
    if (call.rows == 0 || call.columns == 0) return nullptr;
    call.weight = static_cast<const uint8_t *>(dense(in[WEIGHT], 1, rooms.weight));
    if (is_given(in, count, ZEROS)) call.zeros = static_cast<const uint8_t *>(dense(in[ZEROS], 1, rooms.zeros));
    const linear_nbits_code &use = code();
    prepare(use, in[X], call, rooms);
    run_tiles(pool, use, call);
    return nullptr;
}

const edge_attribute ATTRIBUTES[] = {{"columns", 0}, {"bits", 0}, {"group", 0}, {nullptr, 0}};

}  // namespace
}  // namespace edge

extern "C" {
const linear_nbits_code linear_nbits_portable = {edge::quantize_row, edge::run_portable};
const edge_kernel edge_kernel_linear_nbits = {
    "linear_nbits", 1, 3, 5, 1, edge::ATTRIBUTES, edge::shape, edge::guarded<edge::run>, "fBfBf>f fBeBf>f",
};
}
