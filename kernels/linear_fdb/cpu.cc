// edge::linear_fdb: checks, the row of the table, and code that any processor runs.
#include "activations.h"
#include "cpu.h"
#include "linear.h"

namespace edge {
namespace {

constexpr int64_t TILE = LINEAR_TILE;
enum { X, PLANES, SCALES, BIAS };

// --- code for any processor: tables of the sums of 4 activations under 16 masks ---

void make_tables(const int8_t *q, int64_t units, uint8_t *tables) {
    int16_t *sums = reinterpret_cast<int16_t *>(tables);
    for (int64_t k = 0; k < units * UNIT; k += 4, sums += 16) {
        sums[0] = 0;
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < 1 << j; ++i) sums[(1 << j) + i] = static_cast<int16_t>(sums[i] + q[k + j]);
    }
}

// Adds one plane of a block to `made`, before the step of the activations.
void add_plane(const linear_fdb_call *call, int64_t tile, int64_t block, int plane, const int16_t *tables, float *made) {
    const int64_t units = call->block / UNIT, groups = call->depth / call->group;
    const int64_t group = tile * groups + block * call->block / call->group;
    int32_t sums[TILE] = {};
    const uint8_t *words = call->planes + ((tile * (call->depth / UNIT) + block * units) * 2 + plane) * TILE * 4;
    for (int64_t u = 0; u < units; ++u, words += 2 * TILE * 4, tables += 128)
        for (int n = 0; n < TILE; ++n) {
            uint32_t bits;
            std::memcpy(&bits, words + 4 * n, 4);
            for (int j = 0; j < 8; ++j) sums[n] += tables[16 * j + (bits >> 4 * j & 15)];
        }
    for (int n = 0; n < TILE; ++n)
        made[n] += scale_at(call, (group * 2 + plane) * TILE + n) * static_cast<float>(sums[n]);
}

void multiply(const linear_fdb_call *call, int64_t tile, int64_t row) {
    const int64_t blocks = call->depth / call->block;
    const int16_t *tables = reinterpret_cast<const int16_t *>(call->tables) + row * call->depth * 4;
    float total[TILE] = {};
    for (int64_t block = 0; block < blocks; ++block) {
        float made[TILE] = {};
        for (int plane = 0; plane < 2; ++plane)
            add_plane(call, tile, block, plane, tables + block * call->block * 4, made);
        for (int n = 0; n < TILE; ++n) total[n] += call->steps[row * blocks + block] * made[n];
    }
    put(call, row, tile * TILE, total, TILE);
}

void run_portable(const linear_fdb_call *call, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t row = 0; row < call->rows; ++row) multiply(call, tile, row);
}

const linear_fdb_code &code() {
    switch (isa()) {
#if defined(__x86_64__)
        case Isa::amx:
        case Isa::avx512:
            if (__builtin_cpu_supports("avx512vbmi")) return linear_fdb_avx512;
            return linear_fdb_avx2;
        case Isa::avx2: return linear_fdb_avx2;
#elif defined(__aarch64__)
        case Isa::neon: return linear_fdb_neon;
#endif
        default: return linear_fdb_portable;
    }
}

// --- arguments ---

const char *check(const edge_tensor *in, int32_t count, const edge_value *attributes) {
    const int64_t columns = attributes[0].integer, group = attributes[1].integer;
    if (group < 1 || group % UNIT != 0) return "group is not a multiple of 32";
    if (in[X].dtype != EDGE_FLOAT32 || in[X].rank < 1) return "x is not float32 [..., K]";
    const int64_t depth = in[X].shape[in[X].rank - 1];
    if (depth % group != 0) return "group does not divide the last axis of x";
    if (in[PLANES].dtype != EDGE_UINT8 || in[PLANES].rank != 2 || in[PLANES].shape[1] != 4 * depth)
        return "planes are not uint8 [tiles, 4 * K]";
    const int64_t tiles = in[PLANES].shape[0];
    if (columns < 0 || columns > tiles * TILE) return "planes have fewer than `columns` columns";
    const edge_tensor &s = in[SCALES];
    if ((s.dtype != EDGE_FLOAT32 && s.dtype != EDGE_FLOAT16) || s.rank != 4 || s.shape[0] != tiles ||
        s.shape[1] != depth / group || s.shape[2] != 2 || s.shape[3] != TILE)
        return "scales are not float32 or float16 [tiles, K / group, 2, 16]";
    if (is_given(in, count, BIAS) && !is_bias(in[BIAS], columns_of(in[PLANES], attributes[0])))
        return "bias is not float32 [columns]";
    return nullptr;
}

const char *shape(const edge_tensor *inputs, int32_t count, const edge_value *attributes, edge_tensor *outputs) {
    if (const char *wrong = check(inputs, count, attributes)) return wrong;
    set_shape(inputs[X], columns_of(inputs[PLANES], attributes[0]), outputs[0]);
    return nullptr;
}

struct Rooms : LinearRooms {
    Scratch row, bytes, tables, steps, lows, planes;
};

int32_t sum_of_negatives(const int8_t *q, int64_t count) {
    int32_t sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += q[k] < 0 ? q[k] : 0;
    return sum;
}

// Quantizes all rows and makes their tables; what a call points to lives until the thread's next one.
void prepare(const edge_pool *pool, const linear_fdb_code &use, const edge_tensor &x, linear_fdb_call &call, Rooms &rooms) {
    const int64_t blocks = call.depth / call.block, size = call.depth / UNIT * use.table_bytes;
    float *row = rooms.row.get<float>(call.depth * call.rows);
    int8_t *bytes = rooms.bytes.get<int8_t>(call.depth * call.rows);
    uint8_t *tables = rooms.tables.get<uint8_t>(call.rows * size);
    float *steps = rooms.steps.get<float>(call.rows * blocks);
    int32_t *lows = rooms.lows.get<int32_t>(call.rows * blocks);
    parallel_for(pool, call.rows, 1 + (1 << 15) / (call.depth + 1), [&](int64_t start, int64_t stop) {
        for (int64_t m = start; m < stop; ++m) {
            const float *values = row_of(x, m, row + m * call.depth);
            int8_t *q = bytes + m * call.depth;
            for (int64_t b = 0; b < blocks; ++b) {
                steps[m * blocks + b] = use.quantize(values + b * call.block, call.block, q + b * call.block);
                lows[m * blocks + b] = sum_of_negatives(q + b * call.block, call.block);
            }
            use.make_tables(q, call.depth / UNIT, tables + m * size);
        }
    });
    call.tables = tables, call.steps = steps, call.lows = lows;
}

const char *run(const edge_pool *pool, const edge_tensor *in, int32_t count, const edge_value *attributes,
                edge_tensor *outputs) {
    if (const char *wrong = check(in, count, attributes)) return wrong;
    static thread_local Rooms rooms;
    linear_fdb_call call{};
    describe(call, in[X], columns_of(in[PLANES], attributes[0]), attributes[1].integer, UNIT, in[SCALES],
             is_given(in, count, BIAS) ? in + BIAS : nullptr, outputs[0], rooms);
    if (call.rows == 0 || call.columns == 0) return nullptr;
    call.planes = static_cast<const uint8_t *>(dense(in[PLANES], 1, rooms.planes));
    const linear_fdb_code &use = code();
    prepare(pool, use, in[X], call, rooms);
    run_tiles(pool, use, call);
    return nullptr;
}

const edge_attribute ATTRIBUTES[] = {{"columns", 0}, {"group", 0}, {nullptr, 0}};

}  // namespace
}  // namespace edge

extern "C" {
const linear_fdb_code linear_fdb_portable = {256, edge::make_tables, edge::quantize, edge::run_portable};
const edge_kernel edge_kernel_linear_fdb = {
    "linear_fdb", 1, 3, 4, 1, edge::ATTRIBUTES, edge::shape, edge::guarded<edge::run>, "fBff>f fBef>f",
};
}
