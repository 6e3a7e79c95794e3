// The table's row of edge::tree_attention: checks, how the work is split, and the loops for any processor.
#include "blocks.h"
#include "cpu.h"
#include "pool.h"

namespace edge {
namespace {

constexpr int64_t MOST_ROWS = 64;    // of queries that share a pass over the cache
constexpr int64_t LEAST_CHUNK = 256; // rows of past that are worth a task of their own
constexpr int64_t LEAST_WORK = 1 << 18;  // multiplications that are worth a second thread

enum Input { QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTH, POSITIONS, MASK, COSINE, SINE, KEY_SCALE, VALUE_SCALE };
enum Output { OUTPUT, KEY_ROWS, VALUE_ROWS, KEY_SCALES, VALUE_SCALES };

const edge_attribute ATTRIBUTES[] = {{"scale", 1}, {"softcap", 1}, {"window", 0}, {nullptr, 0}};

bool has_shape(const edge_tensor &t, int32_t dtype, std::initializer_list<int64_t> shape) {
    if (t.dtype != dtype || t.rank != static_cast<int32_t>(shape.size())) return false;
    return std::equal(shape.begin(), shape.end(), t.shape);
}

const char *check_angles(const edge_tensor *in, int32_t count, int64_t tokens, int64_t width) {
    const bool turned = is_given(in, count, COSINE);
    if (turned != is_given(in, count, SINE)) return "cos and sin come together";
    if (!turned) return nullptr;
    const int64_t rotary = in[COSINE].rank == 2 ? in[COSINE].shape[1] : -1;
    if (rotary < 0 || rotary % 2 != 0 || rotary > width || !has_shape(in[COSINE], EDGE_FLOAT32, {tokens, rotary}) ||
        !has_shape(in[SINE], EDGE_FLOAT32, {tokens, rotary}))
        return "cos and sin are float32 [tokens, R], R even and at most the width of keys";
    return nullptr;
}

const char *check_past(const edge_tensor *in, int32_t count, int64_t heads, int64_t key_width, int64_t value_width) {
    const int64_t rows = in[PAST_KEY].rank == 3 ? in[PAST_KEY].shape[1] : -1;
    const int32_t dtype = in[PAST_KEY].dtype;
    if (dtype != EDGE_FLOAT32 && dtype != EDGE_BFLOAT16 && dtype != EDGE_INT8)
        return "the cache is float32, bfloat16 or int8";
    if (rows < 0 || !has_shape(in[PAST_KEY], dtype, {heads, rows, key_width}))
        return "past_key is [heads, capacity, key width]";
    if (!has_shape(in[PAST_VALUE], dtype, {heads, rows, value_width}))
        return "past_value is [heads, capacity, value width] and of past_key's dtype";
    const bool scaled = is_given(in, count, KEY_SCALE) && is_given(in, count, VALUE_SCALE);
    if (scaled != (dtype == EDGE_INT8)) return "a cache of int8, and no other, comes with key_scale and value_scale";
    if (scaled && (!has_shape(in[KEY_SCALE], EDGE_FLOAT32, {heads, rows}) ||
                   !has_shape(in[VALUE_SCALE], EDGE_FLOAT32, {heads, rows})))
        return "key_scale and value_scale are float32 [heads, capacity]";
    return nullptr;
}

// The rule alone: some engines ask it about sizes of which they know only a few. `check` is strict, and for `run`.
const char *shape(const edge_tensor *in, int32_t, const edge_value *, edge_tensor *out) {
    if (in[QUERY].rank != 3 || in[PAST_KEY].rank != 3 || in[PAST_VALUE].rank != 3)
        return "query is [tokens, heads, width], past_key and past_value are [heads, capacity, width]";
    const int64_t tokens = in[QUERY].shape[0], queries = in[QUERY].shape[1], heads = in[PAST_KEY].shape[0];
    const int64_t key_width = in[PAST_KEY].shape[2], value_width = in[PAST_VALUE].shape[2];
    const int32_t dtype = in[PAST_KEY].dtype;
    out[OUTPUT] = {nullptr, {tokens, queries, value_width}, {}, 3, EDGE_FLOAT32};
    out[KEY_ROWS] = {nullptr, {heads, tokens, key_width}, {}, 3, dtype};
    out[VALUE_ROWS] = {nullptr, {heads, tokens, value_width}, {}, 3, dtype};
    out[KEY_SCALES] = out[VALUE_SCALES] = {nullptr, {heads, tokens}, {}, 2, EDGE_FLOAT32};
    return nullptr;
}

const char *check(const edge_tensor *in, int32_t count) {
    if (in[QUERY].rank != 3 || in[KEY].rank != 3 || in[VALUE].rank != 3)
        return "query, key and value are [tokens, heads, width]";
    const int64_t tokens = in[QUERY].shape[0], queries = in[QUERY].shape[1], width = in[QUERY].shape[2];
    const int64_t heads = in[KEY].shape[1], value_width = in[VALUE].shape[2];
    if (!has_shape(in[QUERY], EDGE_FLOAT32, {tokens, queries, width}) ||
        !has_shape(in[KEY], EDGE_FLOAT32, {tokens, heads, width}) ||
        !has_shape(in[VALUE], EDGE_FLOAT32, {tokens, heads, value_width}))
        return "query, key and value are float32 and of as many tokens, key and value of as many heads";
    if (heads == 0 ? queries != 0 : queries % heads != 0) return "heads of queries are a multiple of heads of keys";
    if (!is_integer(in[LENGTH]) || count_of(in[LENGTH]) != 1) return "length is one int64";
    if (!is_integer(in[POSITIONS]) || !has_shape(in[POSITIONS], in[POSITIONS].dtype, {tokens}))
        return "positions is int64 [tokens]";
    // OpenVINO hands over bool as bytes.
    if (!has_shape(in[MASK], EDGE_BOOL, {tokens, tokens}) && !has_shape(in[MASK], EDGE_UINT8, {tokens, tokens}))
        return "mask is bool [tokens, tokens]";
    if (const char *wrong = check_past(in, count, heads, width, value_width)) return wrong;
    return check_angles(in, count, tokens, width);
}

tree_attention_run implementation() {
#if defined(__x86_64__)
    if (isa() >= Isa::avx512) return tree_attention_avx512;
    if (isa() >= Isa::avx2) return tree_attention_avx2;
#endif
    return tree_attention_portable;
}

tree_attention_rows rows_in(const edge_tensor &block, const edge_tensor *scale) {
    tree_attention_rows rows = {block.data, nullptr, block.strides[0], block.strides[1], block.strides[2], 0, 0};
    if (scale != nullptr) {
        rows.scale = static_cast<const float *>(scale->data);
        rows.scale_head_stride = scale->strides[0], rows.scale_stride = scale->strides[1];
    }
    return rows;
}

tree_attention_call call_of(const edge_tensor *in, int32_t count, const edge_value *attributes, edge_tensor *out) {
    tree_attention_call call = {};
    call.tokens = in[QUERY].shape[0], call.heads = in[KEY].shape[1];
    call.groups = call.heads == 0 ? 0 : in[QUERY].shape[1] / call.heads;
    call.key_width = in[QUERY].shape[2], call.value_width = in[VALUE].shape[2];
    call.length = integer_at(in[LENGTH], 0);
    call.rotary = is_given(in, count, COSINE) ? in[COSINE].shape[1] : 0;
    call.dtype = in[PAST_KEY].dtype;
    call.scale = static_cast<float>(attributes[0].number), call.softcap = static_cast<float>(attributes[1].number);
    call.window = attributes[2].integer;
    call.query = in + QUERY, call.key = in + KEY, call.value = in + VALUE;
    call.mask = in + MASK, call.positions = in + POSITIONS;
    if (call.rotary > 0) call.cosine = in + COSINE, call.sine = in + SINE;
    const bool scaled = call.dtype == EDGE_INT8;
    call.past_keys = rows_in(in[PAST_KEY], scaled ? in + KEY_SCALE : nullptr);
    call.past_values = rows_in(in[PAST_VALUE], scaled ? in + VALUE_SCALE : nullptr);
    call.output = out + OUTPUT, call.key_rows = out + KEY_ROWS, call.value_rows = out + VALUE_ROWS;
    call.key_scales = out + KEY_SCALES, call.value_scales = out + VALUE_SCALES;
    return call;
}

// Tasks are heads x blocks of query rows x chunks of the past.
struct Plan {
    int64_t rows, row_blocks, begin, chunks, tasks;
    bool spread;  // over more threads than one
};

Plan plan_of(const tree_attention_call &call, int32_t threads) {
    Plan plan = {};
    const int64_t all_rows = call.tokens * call.groups;
    plan.row_blocks = (all_rows + MOST_ROWS - 1) / MOST_ROWS;
    plan.rows = plan.row_blocks == 0 ? 0 : (all_rows + plan.row_blocks - 1) / plan.row_blocks;
    plan.begin = 0;
    if (call.window > 0) {
        plan.begin = call.length;
        for (int64_t token = 0; token < call.tokens; ++token)
            plan.begin = std::min(plan.begin, first_seen(call, token));
    }
    const int64_t past = call.length - plan.begin, pieces = call.heads * plan.row_blocks;
    plan.spread = threads > 1 && all_rows * call.heads * past * (call.key_width + call.value_width) >= LEAST_WORK;
    plan.chunks = 1;
    if (plan.spread && pieces % threads != 0) {
        const int64_t wanted = (4 * threads + pieces - 1) / pieces;
        plan.chunks = std::max<int64_t>(1, std::min(wanted, past / LEAST_CHUNK));
    }
    plan.tasks = pieces * plan.chunks;
    return plan;
}

struct Work {
    const tree_attention_call *call;
    Plan plan;
    tree_attention_run run;
    float *partial;  // of each task: rows of values, sums, peaks; NULL where a task has the whole past

    int64_t size() const { return plan.rows * (call->value_width + 2); }

    tree_attention_part part(int64_t task) const {
        const int64_t chunk = task % plan.chunks, block = task / plan.chunks % plan.row_blocks;
        const int64_t all_rows = call->tokens * call->groups, past = call->length - plan.begin;
        tree_attention_part part = {};
        part.head = task / plan.chunks / plan.row_blocks;
        part.row = block * plan.rows, part.rows = std::min(plan.rows, all_rows - part.row);
        part.start = plan.begin + past * chunk / plan.chunks;
        part.stop = plan.begin + past * (chunk + 1) / plan.chunks;
        part.is_last = chunk == plan.chunks - 1, part.writes = part.is_last && block == 0;
        if (partial != nullptr) {
            part.values = partial + task * size();
            part.sums = part.values + plan.rows * call->value_width, part.peaks = part.sums + plan.rows;
        }
        return part;
    }

    // Puts the chunks of one head and block of rows together.
    void merge(int64_t piece) const {
        const int64_t width = call->value_width;
        const tree_attention_part first = part(piece * plan.chunks);
        for (int64_t m = 0; m < first.rows; ++m) {
            float peak = -FLT_MAX, sum = 0;
            for (int64_t c = 0; c < plan.chunks; ++c) peak = std::max(peak, first.peaks[c * size() + m]);
            float *values = first.values + m * width;
            for (int64_t c = 0; c < plan.chunks; ++c) {
                const float *more = values + c * size();
                const float factor = std::exp(first.peaks[c * size() + m] - peak);
                sum += factor * first.sums[c * size() + m];
                for (int64_t d = 0; d < width; ++d) values[d] = factor * more[d] + (c == 0 ? 0 : values[d]);
            }
            put_out(*call, first.head, first.row + m, values, sum);
        }
    }
};

const char *run(const edge_pool *pool, const edge_tensor *in, int32_t count, const edge_value *attributes,
                edge_tensor *out) {
    if (const char *wrong = check(in, count)) return wrong;
    const tree_attention_call call = call_of(in, count, attributes, out);
    if (call.length < 0 || call.length > in[PAST_KEY].shape[1]) return "length is within 0 and the cache's capacity";
    static thread_local Scratch scratch;
    Work work = {&call, plan_of(call, pool == nullptr ? 1 : pool->threads), implementation(), nullptr};
    if (work.plan.tasks == 0) return nullptr;
    if (work.plan.chunks > 1)
        work.partial = scratch.get<float>(static_cast<size_t>(work.plan.tasks * work.size()));
    const auto each = [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const tree_attention_part part = work.part(task);
            work.run(&call, &part);
        }
    };
    parallel_for(work.plan.spread ? pool : nullptr, work.plan.tasks, 1, each);
    if (work.plan.chunks > 1)
        for (int64_t piece = 0; piece < call.heads * work.plan.row_blocks; ++piece) work.merge(piece);
    return nullptr;
}

}  // namespace
}  // namespace edge

extern "C" {

void tree_attention_portable(const tree_attention_call *call, const tree_attention_part *part) {
    edge::attend(*call, *part);
}

const edge_kernel edge_kernel_tree_attention = {
    "tree_attention",
    1,
    edge::MASK + 1,
    edge::VALUE_SCALE + 1,
    edge::VALUE_SCALES + 1,
    edge::ATTRIBUTES,
    edge::shape,
    edge::guarded<edge::run>,
    "fffffll?ffff>fffff fffEEll?ffff>fEEff fffbbll?ffff>fbbff",
};
}
