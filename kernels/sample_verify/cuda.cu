// edge::sample_verify on NVIDIA GPUs: a block for each row of logits draws its token, or tests the drafted one, and one
// thread then says how far the draft goes. All is in float64, as on other processors.
//
// Borders of top-k and top-p are found a digit of eight bits at a time, by histograms of counts and of probabilities in
// steps of 2^-62: integers, whose sums do not depend on who adds first.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP, DIGITS = 256;
constexpr double ROUNDING = 1e-12;  // the share of top-p by which sums of probabilities may be off
constexpr double STEPS = 0x1p62;    // of a probability of 1
enum Input { LOGITS, TOKENS, UNIFORMS, PROPOSALS };
using Count = unsigned long long;

// float32 or float64.
struct Numbers {
    const void *data;
    bool wide;

    __device__ double at(int64_t i) const {
        return wide ? static_cast<const double *>(data)[i] : static_cast<double>(static_cast<const float *>(data)[i]);
    }
};

struct Call {
    Numbers logits, uniforms, proposals;
    const int64_t *tokens;
    double *p, *left;  // [rows, n]
    Count *steps;      // [rows, n]: probabilities as integers
    int64_t *emitted, *accepted, *found, *count;
    int64_t rows, n, top_k;
    double temperature, top_p, min_p;
    bool drawn;
};

// --- over all of a row, by all threads of its block ---

template <class Body>
__device__ void each(int64_t n, const Body &body) {
    for (int64_t i = threadIdx.x; i < n; i += THREADS) body(i);
}

__device__ double sum_of(const double *row, int64_t n) {
    double sum = 0;
    each(n, [&](int64_t i) { sum += row[i]; });
    return block_sum<WARPS>(sum);
}

__device__ void divide(double *row, int64_t n, double by) {
    each(n, [&](int64_t i) { row[i] /= by; });
    __syncthreads();
}

// A part of the row of a thread's own.
struct Part {
    int64_t from, to;
};

__device__ Part part_of(int64_t n) {
    const int64_t size = ceil_of(n, THREADS), from = min(threadIdx.x * size, n);
    return {from, min(from + size, n)};
}

// What the threads before this one have, added up.
__device__ int64_t sum_before(int64_t value) {
    __shared__ int64_t values[THREADS];
    __syncthreads();
    values[threadIdx.x] = value;
    __syncthreads();
    int64_t sum = 0;
    for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) sum += values[t];
    return sum;
}

// A double's place among all of them.
__device__ Count key_of(double x) {
    const Count bits = static_cast<Count>(__double_as_longlong(x)), sign = Count{1} << 63;
    return (bits & sign) != 0 ? ~bits : bits | sign;
}

// Adds up the weights of keys that begin with `prefix`, by their next digit. Neighbours often have the same.
template <class Keys>
__device__ void fill_histogram(const Keys &keys, int64_t n, int shift, Count prefix, Count *sums) {
    sums[threadIdx.x] = 0;
    __syncthreads();
    int last = 0;
    Count sum = 0;
    each(n, [&](int64_t i) {
        const Count key = keys.key(i);
        if (shift < 56 && key >> (shift + 8) != prefix) return;
        const int digit = static_cast<int>(key >> shift & (DIGITS - 1));
        if (digit != last && sum != 0) atomicAdd(sums + last, sum), sum = 0;
        last = digit, sum += keys.weight(i);
    });
    if (sum != 0) atomicAdd(sums + last, sum);
    __syncthreads();
}

struct Border {
    Count key, above;  // what all greater keys weigh
};

// The least key such that all greater ones weigh less than `wanted`, which is more than 0.
template <class Keys>
__device__ Border border_of(const Keys &keys, int64_t n, Count wanted) {
    __shared__ Count sums[DIGITS], chosen, beyond;
    Border border = {0, 0};
    for (int shift = 56; shift >= 0; shift -= 8) {
        fill_histogram(keys, n, shift, border.key, sums);
        Count above = border.above;
        for (int d = DIGITS - 1; d > static_cast<int>(threadIdx.x); --d) above += sums[d];
        if (above < wanted && (threadIdx.x == 0 || above + sums[threadIdx.x] >= wanted))
            chosen = threadIdx.x, beyond = above;
        __syncthreads();
        border = {border.key << 8 | chosen, beyond};
        __syncthreads();
    }
    return border;
}

struct Scores {
    const double *row;
    __device__ Count key(int64_t i) const { return key_of(row[i]); }
    __device__ Count weight(int64_t) const { return 1; }
};

struct Masses {
    const Count *steps;
    __device__ Count key(int64_t i) const { return steps[i]; }
    __device__ Count weight(int64_t i) const { return steps[i]; }
};

// --- from logits to a distribution ---

// The largest of logits over temperature; NaN where any is.
__device__ double largest_of(const Call &call, int64_t row) {
    double most = -INFINITY;
    int wrong = 0;
    each(call.n, [&](int64_t i) {
        const double x = call.logits.at(row * call.n + i);
        wrong |= isnan(x), most = x > most ? x : most;
    });
    wrong = __syncthreads_or(wrong);
    most = block_most<WARPS>(most) / call.temperature;
    return wrong ? static_cast<double>(NAN) : most;
}

// Keeps the fewest most probable tokens before which less than `wanted` lies; of equals the first.
__device__ void keep_nucleus(const Call &call, double *p, Count *steps, Count wanted) {
    each(call.n, [&](int64_t i) { steps[i] = static_cast<Count>(llrint(p[i] * STEPS)); });
    __syncthreads();
    const Border border = border_of(Masses{steps}, call.n, wanted);
    const Count rest = wanted - border.above;
    const int64_t ties = border.key == 0 ? call.n : static_cast<int64_t>((rest + border.key - 1) / border.key);
    const Part part = part_of(call.n);
    int64_t equal = 0;
    for (int64_t i = part.from; i < part.to; ++i) equal += steps[i] == border.key;
    int64_t before = sum_before(equal);
    for (int64_t i = part.from; i < part.to; ++i) {
        const bool is_equal = steps[i] == border.key;
        if (steps[i] < border.key || (is_equal && before >= ties)) p[i] = 0;
        before += is_equal;
    }
    __syncthreads();
    divide(p, call.n, sum_of(p, call.n));
}

__device__ void keep_likely(double *p, int64_t n, double share) {
    double most = 0;
    each(n, [&](int64_t i) { most = p[i] > most ? p[i] : most; });
    most = block_most<WARPS>(most);
    each(n, [&](int64_t i) { p[i] = p[i] < share * most ? 0 : p[i]; });
    __syncthreads();
    divide(p, n, sum_of(p, n));
}

// Whether the row has a distribution; it goes to `p`.
__device__ bool make_distribution(const Call &call, int64_t row, double *p, Count *steps) {
    const double largest = largest_of(call, row), mass = call.top_p * (1 - ROUNDING) * STEPS;
    if (!isfinite(largest) || !(call.top_p >= 1 || mass >= 1)) return false;
    each(call.n, [&](int64_t i) { p[i] = call.logits.at(row * call.n + i) / call.temperature; });
    __syncthreads();
    Count least = 0;
    if (call.top_k > 0 && call.top_k < call.n)
        least = border_of(Scores{p}, call.n, static_cast<Count>(call.top_k)).key;
    each(call.n, [&](int64_t i) { p[i] = key_of(p[i]) < least ? 0 : exp(p[i] - largest); });
    __syncthreads();
    divide(p, call.n, sum_of(p, call.n));
    if (call.top_p < 1) keep_nucleus(call, p, steps, static_cast<Count>(mass));
    if (call.min_p > 0) keep_likely(p, call.n, call.min_p);
    return true;
}

// --- from a distribution to a token ---

// The first of [from, to) at which the sum exceeds `wanted`, or else the last of positive weight.
__device__ int64_t scan(const double *row, Part part, double before, double wanted) {
    int64_t last = -1;
    for (int64_t i = part.from; i < part.to; ++i) {
        if (!(row[i] > 0)) continue;
        before += row[i], last = i;
        if (before > wanted) break;
    }
    return last;
}

// The token whose interval of the cumulative sum contains u times the total.
__device__ int64_t pick(const double *row, int64_t n, double u) {
    __shared__ double sums[THREADS], before;
    __shared__ int chosen;
    __shared__ int64_t token;
    const Part part = part_of(n);
    double sum = 0;
    for (int64_t i = part.from; i < part.to; ++i) sum += row[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    double total = 0;
    for (int t = 0; t < THREADS; ++t) total += sums[t];
    if (threadIdx.x == 0) {
        before = 0, chosen = -1, token = n - 1;
        double passed = 0;
        for (int t = 0; t < THREADS; ++t) {
            if (sums[t] > 0) chosen = t, before = passed;
            if (passed + sums[t] > u * total) break;
            passed += sums[t];
        }
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) == chosen) token = scan(row, part, before, u * total);
    __syncthreads();
    return token;
}

// The token of (p - q)+, or of p where nothing is left.
__device__ int64_t pick_residual(const Call &call, int64_t row, const double *p, double *left, double u) {
    each(call.n, [&](int64_t i) {
        const double more = p[i] - call.proposals.at(row * call.n + i);
        left[i] = more > 0 || isnan(more) ? more : 0;
    });
    __syncthreads();
    return pick(sum_of(left, call.n) > 0 ? left : p, call.n, u);
}

__device__ bool accepts(const Call &call, int64_t row, const double *p, int64_t drafted, double test) {
    if (drafted < 0 || drafted >= call.n) return false;
    const double above = p[drafted], below = call.proposals.at(row * call.n + drafted);
    return above > 0 && below > 0 && test < min(above / below, 1.0);
}

// Block (row).
__global__ void __launch_bounds__(THREADS) draw(const Call call) {
    const int64_t row = blockIdx.x, drafts = call.rows - 1, drafted = row < drafts ? call.tokens[row] : -1;
    double *const p = call.p + row * call.n, *const left = call.left + row * call.n;
    const double emit = call.uniforms.at(2 * row), test = call.uniforms.at(2 * row + 1);
    int64_t token = -1;
    bool accepted = false;
    if (make_distribution(call, row, p, call.steps + row * call.n)) {
        if (!call.drawn || row == drafts) {
            token = pick(p, call.n, emit);
            accepted = row < drafts && token == drafted;
        } else {
            accepted = accepts(call, row, p, drafted, test);
            token = accepted ? drafted : pick_residual(call, row, p, left, emit);
        }
    }
    if (threadIdx.x == 0) call.emitted[row] = token, call.accepted[row] = accepted;
}

__global__ void finish(const Call call) {
    if (threadIdx.x != 0) return;
    int64_t count = 0;
    while (count < call.rows - 1 && call.accepted[count] != 0) ++count;
    for (int64_t i = 0; i < call.rows; ++i) call.found[i] = i <= count ? call.emitted[i] : -1;
    *call.count = count;
}

// --- arguments ---

bool is_real(const edge_tensor &tensor) { return tensor.dtype == EDGE_FLOAT32 || tensor.dtype == EDGE_FLOAT64; }

const char *check(const edge_tensor *in) {
    const edge_tensor &logits = in[LOGITS], &tokens = in[TOKENS], &uniforms = in[UNIFORMS], &proposals = in[PROPOSALS];
    const int64_t rows = logits.shape[0];
    if (logits.rank != 2 || !is_real(logits) || rows < 1)
        return "logits: expected float32 or float64 [rows, vocabulary] with at least one row";
    if (tokens.rank != 1 || tokens.dtype != EDGE_INT64 || tokens.shape[0] != rows - 1)
        return "tokens: expected int64 [rows - 1]";
    if (uniforms.rank != 2 || !is_real(uniforms) || uniforms.shape[0] != rows || uniforms.shape[1] != 2)
        return "uniforms: expected float32 or float64 [rows, 2]";
    if (proposals.dtype != EDGE_NONE && (proposals.rank != 2 || !is_real(proposals) || proposals.shape[0] != rows - 1 ||
                                         proposals.shape[1] != logits.shape[1]))
        return "proposals: expected float32 or float64 [rows - 1, vocabulary]";
    return nullptr;
}

Numbers numbers_of(const edge_tensor &tensor, Room &room) {
    if (tensor.dtype == EDGE_FLOAT64) return {room.dense<double>(tensor), true};
    return {room.dense<float>(tensor), false};
}

Call plan(const edge_tensor *in, Room &room) {
    Call call = {};
    call.rows = in[LOGITS].shape[0], call.n = in[LOGITS].shape[1], call.drawn = in[PROPOSALS].dtype != EDGE_NONE;
    call.logits = numbers_of(in[LOGITS], room), call.uniforms = numbers_of(in[UNIFORMS], room);
    call.tokens = room.dense<int64_t>(in[TOKENS]);
    if (call.drawn) call.proposals = numbers_of(in[PROPOSALS], room), call.left = room.take<double>(call.rows * call.n);
    call.p = room.take<double>(call.rows * call.n), call.steps = room.take<Count>(call.rows * call.n);
    call.emitted = room.take<int64_t>(call.rows), call.accepted = room.take<int64_t>(call.rows);
    return call;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t sample_verify_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *sample_verify_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out,
                               void *workspace, void *stream) {
    using namespace edge;
    if (const char *wrong = check(in)) return wrong;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Call call = plan(in, room);
    call.temperature = attributes[0].number, call.top_k = attributes[1].integer;
    call.top_p = attributes[2].number, call.min_p = attributes[3].number;
    if (!(call.temperature > 0) || call.temperature > 1e300) return "temperature: expected a finite number above 0";
    call.found = static_cast<int64_t *>(out[0].data), call.count = static_cast<int64_t *>(out[1].data);
    draw<<<static_cast<unsigned>(call.rows), THREADS, 0, queue>>>(call);
    finish<<<1, WARP, 0, queue>>>(call);
    return last_failure();
}
}
