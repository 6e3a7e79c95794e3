// edge::dag_forward on NVIDIA GPUs, as three kernels. Forward and backward are a block each for every graph, which goes
// from token to token; its warps share out the vertices, 32 columns of links at a time (forward) or a row (backward).
// Then the posterior, a thread for each vertex, and its product with the hidden states.
//
// States are kept near 0: each row has its largest taken off, and in float64 how much was taken off so far.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, SLICES = 8, SIDE = 128;
constexpr int TOKENS = 8;  // whose expected states a block sums at once
enum Input { LINKS, MATCH, LENGTHS, TARGET_LENGTHS, HIDDEN };

struct Call {
    const float *links, *match, *hidden;
    const int64_t *lengths, *targets;
    float *total, *posterior, *expected;
    float *forward, *backward;    // [batch, most, size]
    double *before, *behind;      // [batch, most]: what was taken off
    float *peaks, *sums, *ahead;  // [batch, SLICES, size] twice, [batch, size]
    uint8_t *used;                // [batch, size]: whether a token can be at a vertex
    int64_t batch, most, size, width;
};

// One graph of a call and its target.
struct Graph {
    const float *links, *match;
    float *forward, *backward;
    int64_t n, m, size;

    __device__ float link(int64_t j, int64_t k) const { return links[j * size + k]; }
};

__device__ Graph graph_of(const Call &call, int64_t item) {
    const int64_t none = 0, place = item * call.most * call.size;
    return {call.links + item * call.size * call.size, call.match + place, call.forward + place, call.backward + place,
            min(max(call.lengths[item], none), call.size), min(max(call.targets[item], none), call.most), call.size};
}

// A peak that may be taken off: 0 in place of an infinite one.
__device__ float usable(float peak) { return isinf(peak) ? 0.0f : peak; }

// Takes the largest off a row of states and returns it; 0 where that is no number.
__device__ double settle(float *row, int64_t n) {
    float largest = -INFINITY;
    for (int64_t k = threadIdx.x; k < n; k += THREADS) largest = row[k] > largest ? row[k] : largest;
    largest = usable(block_most<WARPS>(largest));
    for (int64_t k = threadIdx.x; k < n; k += THREADS) row[k] -= largest;
    __syncthreads();
    return largest;
}

// A part of the vertices before 32 others: the largest score of a way from it into each, and the sum of exponentials
// about that. A warp takes one part at a time.
__device__ void sum_slices(const Graph &graph, const float *before, int64_t i, float *peaks, float *sums) {
    const int64_t tasks = ceil_of(graph.n, WARP) * SLICES;
    for (int64_t task = threadIdx.x / WARP; task < tasks; task += WARPS) {
        const int64_t tile = task / SLICES * WARP, slice = task % SLICES, k = tile + threadIdx.x % WARP;
        const int64_t end = min(tile + WARP - 1, graph.n), to = min(k, end);
        if (k >= graph.n) continue;
        float peak = -INFINITY, sum = 0;
        for (int64_t j = i - 1 + slice; j < to; j += SLICES) peak = fmaxf(peak, before[j] + graph.link(j, k));
        const float off = usable(peak);
        for (int64_t j = i - 1 + slice; j < to; j += SLICES) sum += expf(before[j] + graph.link(j, k) - off);
        peaks[slice * graph.size + k] = peak, sums[slice * graph.size + k] = sum;
    }
}

// The logarithm of the sum of all slices.
__device__ float log_of_slices(const float *peaks, const float *sums, int64_t size) {
    float peak = -INFINITY, sum = 0;
    for (int s = 0; s < SLICES; ++s) peak = fmaxf(peak, peaks[s * size]);
    peak = usable(peak);
    for (int s = 0; s < SLICES; ++s)
        if (sums[s * size] != 0) sum += sums[s * size] * expf(usable(peaks[s * size]) - peak);
    return logf(sum) + peak;
}

__device__ void go_forward(const Graph &graph, float *peaks, float *sums, double *before) {
    for (int64_t k = threadIdx.x; k < graph.n; k += THREADS) graph.forward[k] = k == 0 ? graph.match[0] : -INFINITY;
    __syncthreads();
    double taken = settle(graph.forward, graph.n);
    if (threadIdx.x == 0) before[0] = taken;
    for (int64_t i = 1; i < graph.m; ++i) {
        float *row = graph.forward + i * graph.size;
        sum_slices(graph, row - graph.size, i, peaks, sums);
        __syncthreads();
        for (int64_t k = threadIdx.x; k < graph.n; k += THREADS)
            row[k] = k < i ? -INFINITY : log_of_slices(peaks + k, sums + k, graph.size) + graph.match[i * graph.size + k];
        __syncthreads();
        taken += settle(row, graph.n);
        if (threadIdx.x == 0) before[i] = taken;
    }
}

// log sum exp over the ways on from one vertex; a warp finds it.
__device__ float sum_row(const Graph &graph, int64_t j, const float *ahead) {
    float peak = -INFINITY, sum = 0;
    for (int64_t k = j + 1 + threadIdx.x % WARP; k < graph.n; k += WARP) peak = fmaxf(peak, graph.link(j, k) + ahead[k]);
    peak = usable(warp_most(peak));
    for (int64_t k = j + 1 + threadIdx.x % WARP; k < graph.n; k += WARP) sum += expf(graph.link(j, k) + ahead[k] - peak);
    return logf(warp_sum(sum)) + peak;
}

__device__ void go_backward(const Graph &graph, float *ahead, double *behind) {
    const int64_t end = graph.m - 1;
    double taken = 0;
    for (int64_t k = threadIdx.x; k < graph.n; k += THREADS)
        graph.backward[end * graph.size + k] = k == graph.n - 1 ? 0.0f : -INFINITY;
    if (threadIdx.x == 0) behind[end] = 0;
    __syncthreads();
    for (int64_t i = end - 1; i >= 0; --i) {
        float *row = graph.backward + i * graph.size;
        for (int64_t k = threadIdx.x; k < graph.n; k += THREADS)
            ahead[k] = graph.match[(i + 1) * graph.size + k] + row[graph.size + k];
        __syncthreads();
        for (int64_t j = threadIdx.x / WARP; j < graph.n; j += WARPS) {
            const float found = sum_row(graph, j, ahead);
            if (threadIdx.x % WARP == 0) row[j] = found;
        }
        __syncthreads();
        taken += settle(row, graph.n);
        if (threadIdx.x == 0) behind[i] = taken;
    }
}

// Block (graph, direction).
__global__ void __launch_bounds__(THREADS) sum_paths(const Call call) {
    const int64_t item = blockIdx.x, slices = item * SLICES * call.size;
    const Graph graph = graph_of(call, item);
    if (graph.n == 0 || graph.m == 0) return;
    if (blockIdx.y == 0)
        go_forward(graph, call.peaks + slices, call.sums + slices, call.before + item * call.most);
    else
        go_backward(graph, call.ahead + item * call.size, call.behind + item * call.most);
}

__device__ double total_of(const Call &call, const Graph &graph, int64_t item) {
    if (graph.n == 0 || graph.m == 0) return -INFINITY;
    const float last = graph.forward[(graph.m - 1) * graph.size + graph.n - 1];
    return call.before[item * call.most + graph.m - 1] + static_cast<double>(last);
}

// Block (vertices, graph): a thread for each vertex.
__global__ void find_posterior(const Call call) {
    const int64_t k = blockIdx.x * int64_t{SIDE} + threadIdx.x;
    for (int64_t item = blockIdx.y; item < call.batch; item += gridDim.y) {
        const Graph graph = graph_of(call, item);
        const double total = total_of(call, graph, item);
        const bool some = static_cast<float>(total) != -INFINITY && k < graph.n;
        if (k == 0) call.total[item] = static_cast<float>(total);
        if (k >= call.size) continue;
        bool used = false;
        for (int64_t i = 0; i < call.most; ++i) {
            const int64_t place = i * call.size + k;
            float found = 0;
            if (some && i < graph.m) {
                const double off = call.before[item * call.most + i] + call.behind[item * call.most + i] - total;
                found = expf(graph.forward[place] + graph.backward[place] + static_cast<float>(off));
            }
            used |= found > 0;
            call.posterior[item * call.most * call.size + place] = found;
        }
        call.used[item * call.size + k] = used;
    }
}

// Block (numbers of a state, tokens, graph): a thread for each number. A vertex where no token can be adds nothing, save
// where a posterior is no number, which makes the state none.
__global__ void find_expected(const Call call) {
    const int64_t d = blockIdx.x * int64_t{SIDE} + threadIdx.x;
    const int64_t item = blockIdx.z, first = blockIdx.y * int64_t{TOKENS};
    if (d >= call.width) return;
    const float *posterior = call.posterior + (item * call.most + first) * call.size;
    float sums[TOKENS] = {};
    for (int64_t k = 0; k < call.size; ++k) {
        const float state = call.used[item * call.size + k] ? call.hidden[(item * call.size + k) * call.width + d] : 0.0f;
#pragma unroll
        for (int r = 0; r < TOKENS; ++r)
            if (first + r < call.most) sums[r] += posterior[r * call.size + k] * state;
    }
#pragma unroll
    for (int r = 0; r < TOKENS; ++r)
        if (first + r < call.most) call.expected[(item * call.most + first + r) * call.width + d] = sums[r];
}

// --- arguments ---

const char *check(const edge_tensor *in) {
    const char *const expected[] = {
        "links: expected float32 [batch, vertices, vertices]", "match: expected float32 [batch, tokens, vertices]",
        "lengths: expected int64 [batch]", "target_lengths: expected int64 [batch]",
        "hidden: expected float32 [batch, vertices, width]"};
    const int64_t batch = in[LINKS].shape[0], size = in[LINKS].shape[1];
    for (int i = LINKS; i <= HIDDEN; ++i) {
        if (i == HIDDEN && in[i].dtype == EDGE_NONE) continue;
        const bool counts = i == LENGTHS || i == TARGET_LENGTHS;
        if (in[i].rank != (counts ? 1 : 3) || in[i].dtype != (counts ? EDGE_INT64 : EDGE_FLOAT32) ||
            in[i].shape[0] != batch)
            return expected[i];
        if (!counts && in[i].shape[i == HIDDEN ? 1 : 2] != size) return expected[i];
    }
    return batch > 65535 ? "on a GPU, a batch has at most 65535 graphs" : nullptr;
}

Call plan(const edge_tensor *in, Room &room) {
    Call call = {};
    call.links = room.dense<float>(in[LINKS]), call.match = room.dense<float>(in[MATCH]);
    call.lengths = room.dense<int64_t>(in[LENGTHS]), call.targets = room.dense<int64_t>(in[TARGET_LENGTHS]);
    call.batch = in[MATCH].shape[0], call.most = in[MATCH].shape[1], call.size = in[MATCH].shape[2];
    if (in[HIDDEN].dtype != EDGE_NONE) call.hidden = room.dense<float>(in[HIDDEN]), call.width = in[HIDDEN].shape[2];
    const int64_t vertices = call.batch * call.size, tokens = call.batch * call.most;
    call.forward = room.take<float>(tokens * call.size), call.backward = room.take<float>(tokens * call.size);
    call.before = room.take<double>(tokens), call.behind = room.take<double>(tokens);
    call.peaks = room.take<float>(SLICES * vertices), call.sums = room.take<float>(SLICES * vertices);
    call.ahead = room.take<float>(vertices), call.used = room.take<uint8_t>(vertices);
    return call;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t dag_forward_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *dag_forward_cuda(const edge_tensor *in, int32_t, const edge_value *, edge_tensor *out, void *workspace,
                             void *stream) {
    using namespace edge;
    if (const char *wrong = check(in)) return wrong;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Call call = plan(in, room);
    if (call.batch == 0) return nullptr;
    if (ceil_of(call.most, TOKENS) > 65535) return "on a GPU, a target has at most 524280 tokens";
    call.total = static_cast<float *>(out[0].data), call.posterior = static_cast<float *>(out[1].data);
    call.expected = static_cast<float *>(out[2].data);
    const auto size = [](int64_t count) { return static_cast<unsigned>(count); };
    sum_paths<<<dim3(size(call.batch), 2), THREADS, 0, queue>>>(call);
    find_posterior<<<dim3(size(ceil_of(call.size + 1, SIDE)), size(call.batch)), SIDE, 0, queue>>>(call);
    if (call.width > 0 && call.most > 0) {
        const dim3 grid(size(ceil_of(call.width, SIDE)), size(ceil_of(call.most, TOKENS)), size(call.batch));
        find_expected<<<grid, SIDE, 0, queue>>>(call);
    }
    return last_failure();
}
}
