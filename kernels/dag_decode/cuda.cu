// edge::dag_decode on NVIDIA GPUs.
//
// Step by step: the best next vertex of all vertices is found at once, a warp for each; one thread then walks from the
// first to the last. Viterbi: a block for each graph goes through the lengths of path; its warps share out the vertices
// that a length can end in, 32 at a time, and the vertices before them. All lengths are kept, so that the way back needs
// no pointers.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, WALKERS = 256, SLICES = 8;
enum Input { LINKS, EMISSIONS, LENGTHS };
enum Attribute { VITERBI, EMISSION_WEIGHT, LENGTH_POWER, LONGEST };

struct Call {
    const float *links, *emissions;
    const int64_t *lengths;
    int64_t *path, *count;
    float *score;
    int *next;                                // [batch, size]: step by step
    float *gain;                              // [batch, size]: the link to it
    float *states, *slices, *found, *scaled;  // [batch, steps + 1, size], [batch, SLICES, size], [batch, steps + 1] twice
    int64_t batch, size, steps;
    double power, longest;
    float weight;
};

// One graph of a call.
struct Graph {
    const float *links, *emissions;
    int64_t n, size;
    float weight;

    __device__ float link(int64_t j, int64_t k) const { return links[j * size + k]; }
    __device__ float weighted(int64_t k) const { return weight == 0 ? 0.0f : weight * emissions[k]; }
};

__device__ Graph graph_of(const Call &call, int64_t item) {
    const int64_t n = min(max(call.lengths[item], static_cast<int64_t>(0)), call.size);
    return {call.links + item * call.size * call.size, call.emissions + item * call.size, n, call.size, call.weight};
}

// A value and where it is. The first of equals is better, and a NaN better than a number, as PyTorch has it.
struct Best {
    float value;
    int place;
};

__device__ bool beats(const Best &a, const Best &b) {
    if (isnan(a.value) != isnan(b.value)) return isnan(a.value);
    if (a.value != b.value && !isnan(a.value)) return a.value > b.value;
    return a.place < b.place;
}

__device__ Best warp_best(Best best) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const Best other = {__shfl_xor_sync(~0u, best.value, step), __shfl_xor_sync(~0u, best.place, step)};
        if (beats(other, best)) best = other;
    }
    return best;
}

// --- step by step ---

// A warp for each vertex: where the best way leads from it.
__global__ void find_next(const Call call) {
    const int64_t j = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / WARP;
    for (int64_t item = blockIdx.y; item < call.batch; item += gridDim.y) {
        const Graph graph = graph_of(call, item);
        if (j + 1 >= graph.n) continue;
        Best best = {-INFINITY, INT32_MAX};
        for (int64_t k = j + 1 + threadIdx.x % WARP; k < graph.n; k += WARP) {
            const Best other = {graph.link(j, k) + graph.weighted(k), static_cast<int>(k)};
            if (beats(other, best)) best = other;
        }
        best = warp_best(best);
        if (threadIdx.x % WARP == 0) {
            call.next[item * call.size + j] = best.place;
            call.gain[item * call.size + j] = graph.link(j, best.place);
        }
    }
}

// Block (graph).
__global__ void walk(const Call call) {
    const int64_t item = blockIdx.x;
    const Graph graph = graph_of(call, item);
    int64_t *path = call.path + item * call.size;
    for (int64_t i = threadIdx.x; i < call.size; i += WALKERS) path[i] = -1;
    __syncthreads();
    if (threadIdx.x != 0) return;
    const int *next = call.next + item * call.size;
    const float *gain = call.gain + item * call.size;
    float total = graph.n > 0 ? graph.weighted(0) : 0.0f;
    int64_t steps = 0, at = 0;
    if (graph.n > 0) path[steps++] = 0;
    while (at < graph.n - 1) {
        const int64_t to = next[at];
        total = total + gain[at] + (to < graph.n - 1 ? graph.weighted(to) : 0.0f);
        path[steps++] = at = to;
    }
    call.count[item] = steps, call.score[item] = total;
}

// --- Viterbi ---

// The states of one graph: [t][k] is the best score of a path over t vertices behind the first, the last of them k.
struct Lattice {
    float *states, *slices, *found, *scaled;
    int64_t size, steps;

    __device__ float *state(int64_t t) const { return states + t * size; }
};

__device__ Lattice lattice_of(const Call &call, int64_t item, int64_t n) {
    const double most = floor(static_cast<double>(n) * call.longest), longest = max(min(most, 1e15), 1.0);
    const int64_t inner = max(n - 2, static_cast<int64_t>(0)), rows = call.steps + 1;
    return {call.states + item * rows * call.size, call.slices + item * SLICES * call.size, call.found + item * rows,
            call.scaled + item * rows, call.size, min(static_cast<int64_t>(longest), inner)};
}

// Whether all that is read are log-probabilities: no NaN and no plus infinity.
__device__ bool is_usable(const Graph &graph) {
    int wrong = 0;
    for (int64_t k = threadIdx.x; k < graph.n; k += THREADS) wrong |= !(graph.weighted(k) < INFINITY);
    for (int64_t j = threadIdx.x / WARP; j < graph.n; j += WARPS)
        for (int64_t k = j + 1 + threadIdx.x % WARP; k < graph.n; k += WARP) wrong |= !(graph.link(j, k) < INFINITY);
    return !__syncthreads_or(wrong);
}

// A part of the vertices before 32 others: the best way from it into each of them. A warp takes one part at a time.
__device__ void fill_slices(const Graph &graph, const Lattice &lattice, int64_t t) {
    const float *before = lattice.state(t - 1);
    const int64_t tasks = ceil_of(graph.n, WARP) * SLICES;
    for (int64_t task = threadIdx.x / WARP; task < tasks; task += WARPS) {
        const int64_t tile = task / SLICES * WARP, slice = task % SLICES, k = tile + threadIdx.x % WARP;
        const int64_t end = min(tile + WARP - 1, graph.n - 1);
        float best = -INFINITY;
#pragma unroll 4
        for (int64_t j = t - 1 + slice; j < end; j += SLICES)
            if (j < k && k < graph.n - 1) best = fmaxf(best, before[j] + graph.link(j, k));
        if (k < graph.n) lattice.slices[slice * lattice.size + k] = best;
    }
}

__device__ void fill_states(const Graph &graph, const Lattice &lattice) {
    const int64_t last = graph.n - 1;
    for (int64_t k = threadIdx.x; k < graph.n; k += THREADS)
        lattice.state(1)[k] =
            k > 0 && k < last ? (graph.link(0, k) + graph.weighted(0)) + graph.weighted(k) : -INFINITY;
    for (int64_t t = 2; t <= lattice.steps; ++t) {
        __syncthreads();
        fill_slices(graph, lattice, t);
        __syncthreads();
        for (int64_t k = threadIdx.x; k < graph.n; k += THREADS) {
            float best = lattice.slices[k];
            for (int s = 1; s < SLICES; ++s) best = fmaxf(best, lattice.slices[s * lattice.size + k]);
            lattice.state(t)[k] = best + graph.weighted(k);
        }
    }
    __syncthreads();
}

// The best score of each length, a warp for each, and the best length; 0 where there is none.
__device__ int best_length(const Graph &graph, const Lattice &lattice, double power) {
    const int64_t last = graph.n - 1;
    for (int64_t t = 1 + threadIdx.x / WARP; t <= lattice.steps; t += WARPS) {
        float found = -INFINITY;
        for (int64_t j = 1 + threadIdx.x % WARP; j < last; j += WARP)
            found = fmaxf(found, lattice.state(t)[j] + graph.link(j, last));
        found = warp_most(found);
        if (threadIdx.x % WARP != 0) continue;
        lattice.found[t] = found;
        lattice.scaled[t] = found / static_cast<float>(pow(static_cast<double>(t), power));
    }
    __syncthreads();
    Best best = {-INFINITY, 0};
    for (int64_t t = 1 + threadIdx.x % WARP; t <= lattice.steps; t += WARP)
        if (lattice.scaled[t] > best.value) best = {lattice.scaled[t], static_cast<int>(t)};
    return warp_best(best).place;
}

// The first of the best vertices before `to` on paths of t vertices; a warp finds it.
__device__ int best_before(const Graph &graph, const float *state, int64_t to) {
    Best best = {-INFINITY, 0};
    for (int64_t j = 1 + threadIdx.x % WARP; j < to; j += WARP) {
        const float value = state[j] + graph.link(j, to);
        if (value > best.value) best = {value, static_cast<int>(j)};
    }
    return warp_best(best).place;
}

__device__ void find_path(const Graph &graph, const Lattice &lattice, double power, int64_t *path, int64_t *count,
                          float *score) {
    const int64_t last = graph.n - 1;
    const bool usable = is_usable(graph);
    int length = 0;
    if (usable) {
        fill_states(graph, lattice);
        length = best_length(graph, lattice, power);
    }
    if (threadIdx.x == 0) {
        path[0] = 0, path[length + 1] = last, *count = length + 2;
        *score = !usable ? NAN : length == 0 ? graph.weighted(0) + graph.link(0, last) : lattice.found[length];
    }
    if (threadIdx.x >= WARP) return;
    int64_t to = last;
    for (int t = length; t >= 1; --t) {
        to = best_before(graph, lattice.state(t), to);
        if (threadIdx.x == 0) path[t] = to;
    }
}

// Block (graph).
__global__ void __launch_bounds__(THREADS) viterbi(const Call call) {
    const int64_t item = blockIdx.x;
    const Graph graph = graph_of(call, item);
    int64_t *path = call.path + item * call.size;
    for (int64_t i = threadIdx.x; i < call.size; i += THREADS) path[i] = -1;
    __syncthreads();
    if (graph.n >= 2) {
        find_path(graph, lattice_of(call, item, graph.n), call.power, path, call.count + item, call.score + item);
    } else if (threadIdx.x == 0) {
        if (graph.n == 1) path[0] = 0;
        call.count[item] = graph.n, call.score[item] = graph.n == 1 ? graph.weighted(0) : 0.0f;
    }
}

// --- arguments ---

const char *check(const edge_tensor *in) {
    const edge_tensor &links = in[LINKS], &emissions = in[EMISSIONS], &lengths = in[LENGTHS];
    if (links.rank != 3 || links.dtype != EDGE_FLOAT32 || links.shape[1] != links.shape[2])
        return "links: expected float32 [batch, vertices, vertices]";
    if (emissions.rank != 2 || emissions.dtype != EDGE_FLOAT32 || emissions.shape[0] != links.shape[0] ||
        emissions.shape[1] != links.shape[1])
        return "emissions: expected float32 [batch, vertices]";
    if (lengths.rank != 1 || lengths.dtype != EDGE_INT64 || lengths.shape[0] != links.shape[0])
        return "lengths: expected int64 [batch]";
    return links.shape[1] > INT32_MAX / 2 ? "on a GPU, a graph has at most 2^30 vertices" : nullptr;
}

Call plan(const edge_tensor *in, const edge_value *attributes, Room &room) {
    Call call = {};
    call.links = room.dense<float>(in[LINKS]), call.emissions = room.dense<float>(in[EMISSIONS]);
    call.lengths = room.dense<int64_t>(in[LENGTHS]);
    call.batch = in[LINKS].shape[0], call.size = in[LINKS].shape[1];
    call.weight = static_cast<float>(attributes[EMISSION_WEIGHT].number);
    call.power = attributes[LENGTH_POWER].number, call.longest = attributes[LONGEST].number;
    const double most = static_cast<double>(call.size) * call.longest, inner = static_cast<double>(call.size) - 2;
    call.steps = most < 1 || inner < 1 ? 1 : static_cast<int64_t>(most < inner ? most : inner);  // and NaN: 1 or more
    const int64_t vertices = call.batch * call.size;
    if (attributes[VITERBI].integer == 0) {
        call.next = room.take<int>(vertices), call.gain = room.take<float>(vertices);
        return call;
    }
    call.states = room.take<float>((call.steps + 1) * vertices), call.slices = room.take<float>(SLICES * vertices);
    call.found = room.take<float>((call.steps + 1) * call.batch);
    call.scaled = room.take<float>((call.steps + 1) * call.batch);
    return call;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t dag_decode_cuda_workspace(const edge_tensor *in, const edge_value *attributes) {
    edge::Room room;
    if (edge::check(in) == nullptr) edge::plan(in, attributes, room);
    return room.used();
}

const char *dag_decode_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out, void *workspace,
                            void *stream) {
    using namespace edge;
    if (const char *wrong = check(in)) return wrong;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Call call = plan(in, attributes, room);
    if (call.batch == 0) return nullptr;
    call.path = static_cast<int64_t *>(out[0].data), call.count = static_cast<int64_t *>(out[1].data);
    call.score = static_cast<float *>(out[2].data);
    const unsigned graphs = static_cast<unsigned>(call.batch);
    if (attributes[VITERBI].integer != 0) {
        viterbi<<<graphs, THREADS, 0, queue>>>(call);
        return last_failure();
    }
    if (call.size > 1) {
        const dim3 grid(static_cast<unsigned>(ceil_of(call.size * WARP, WALKERS)), graphs < 65535 ? graphs : 65535);
        find_next<<<grid, WALKERS, 0, queue>>>(call);
    }
    walk<<<graphs, WALKERS, 0, queue>>>(call);
    return last_failure();
}
}
