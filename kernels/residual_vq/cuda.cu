// edge::residual_vq on NVIDIA GPUs. A stage is one kernel, whose blocks share out the vectors of a codebook, so that even
// one row keeps the device busy. Each block begins with what the stage before it found: it puts the best of all blocks
// together and takes the chosen vector off as it reads its rows. So Q codebooks are Q + 1 kernels.
//
// A thread has one vector of the codebook and ROWS rows; pieces of both pass through shared memory.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int THREADS = 128, WARPS = THREADS / WARP;
constexpr int ROWS = 8, PIECE = 32;  // of a block; numbers of a vector that are in shared memory at once
enum Input { VALUES, BOOKS };

struct Best {
    float score;
    int code;
};

struct Call {
    const float *x, *books;
    float *residuals[2], *total;  // [rows, width]: of stages with even and odd numbers
    Best *best[2];                // [rows, chunks], likewise
    int64_t *codes_out;
    int64_t rows, width, count, codes, chunks;  // count: of codebooks

    __host__ __device__ const float *book(int64_t stage) const { return books + stage * codes * width; }
};

__device__ bool beats(const Best &a, const Best &b) { return a.score > b.score || (a.score == b.score && a.code < b.code); }

__device__ Best warp_best(Best best) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const Best other = {__shfl_xor_sync(~0u, best.score, step), __shfl_xor_sync(~0u, best.code, step)};
        if (beats(other, best)) best = other;
    }
    return best;
}

// What the stage before chose for each row of the block. Warps take rows in turn.
__device__ void load_chosen(const Call &call, int64_t stage, int64_t first, int *chosen) {
    for (int r = threadIdx.x / WARP; r < ROWS; r += WARPS) {
        Best best = {-INFINITY, INT32_MAX};
        if (first + r < call.rows) {
            const Best *found = call.best[(stage - 1) % 2] + (first + r) * call.chunks;
            for (int64_t c = threadIdx.x % WARP; c < call.chunks; c += WARP)
                if (beats(found[c], best)) best = found[c];
        }
        best = warp_best(best);
        if (threadIdx.x % WARP == 0) chosen[r] = best.code;
    }
}

// Numbers [from, from + PIECE) of the block's rows as this stage sees them. The first block of them keeps them, and adds
// up what was chosen.
__device__ void load_rows(const Call &call, int64_t stage, int64_t first, int64_t from, const int *chosen,
                          float (*rows)[PIECE]) {
    const float *before = stage < 2 ? call.x : call.residuals[(stage - 1) % 2];
    for (int i = threadIdx.x; i < ROWS * PIECE; i += THREADS) {
        const int r = i / PIECE, d = i % PIECE;
        const int64_t row = first + r, place = row * call.width + from + d;
        rows[r][d] = 0;
        if (row >= call.rows || from + d >= call.width) continue;
        const float taken = stage == 0 ? 0 : call.book(stage - 1)[chosen[r] * call.width + from + d];
        rows[r][d] = stage == 0 ? before[place] : before[place] - taken;
        if (blockIdx.x > 0) continue;
        call.residuals[stage % 2][place] = rows[r][d];
        call.total[place] = stage == 0 ? 0 : call.total[place] + taken;
    }
}

// Numbers [from, from + PIECE) of the block's vectors.
__device__ void load_vectors(const Call &call, int64_t stage, int64_t from, float (*vectors)[PIECE + 1]) {
    const float *book = call.book(stage);
    for (int i = threadIdx.x; i < THREADS * PIECE; i += THREADS) {
        const int64_t code = blockIdx.x * int64_t{THREADS} + i / PIECE, d = from + i % PIECE;
        vectors[i / PIECE][i % PIECE] = code < call.codes && d < call.width ? book[code * call.width + d] : 0;
    }
}

// The best of the block's vectors for each row: the largest r . c - |c|^2 / 2, the first of equals; no number is less
// than all others.
__device__ void put_best(const Call &call, int64_t stage, int64_t first, const float (&dots)[ROWS], float square) {
    __shared__ Best found[ROWS][WARPS];
    const int code = static_cast<int>(blockIdx.x * THREADS + threadIdx.x);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const float score = dots[r] - square * 0.5f;
        Best best = {isnan(score) ? -INFINITY : score, code};
        if (code >= call.codes) best = {-INFINITY, INT32_MAX};
        best = warp_best(best);
        if (threadIdx.x % WARP == 0) found[r][threadIdx.x / WARP] = best;
    }
    __syncthreads();
    const int r = threadIdx.x;
    if (r >= ROWS || first + r >= call.rows) return;
    Best best = found[r][0];
    for (int w = 1; w < WARPS; ++w)
        if (beats(found[r][w], best)) best = found[r][w];
    call.best[stage % 2][(first + r) * call.chunks + blockIdx.x] = best;
}

// Block (vectors, rows). Behind the last stage there are no vectors to compare, and one block for each ROWS rows.
__global__ void __launch_bounds__(THREADS) run_stage(const Call call, int64_t stage) {
    __shared__ float rows[ROWS][PIECE], vectors[THREADS][PIECE + 1];
    __shared__ int chosen[ROWS];
    for (int64_t first = blockIdx.y * int64_t{ROWS}; first < call.rows; first += gridDim.y * int64_t{ROWS}) {
        float dots[ROWS] = {}, square = 0;
        __syncthreads();
        if (stage > 0) load_chosen(call, stage, first, chosen);
        for (int64_t from = 0; from < call.width; from += PIECE) {
            __syncthreads();
            load_rows(call, stage, first, from, chosen, rows);
            if (stage < call.count) load_vectors(call, stage, from, vectors);
            __syncthreads();
            if (stage == call.count) continue;
#pragma unroll 8
            for (int d = 0; d < PIECE; ++d) {
                const float value = vectors[threadIdx.x][d];
                square += value * value;
                for (int r = 0; r < ROWS; ++r) dots[r] += rows[r][d] * value;
            }
        }
        __syncthreads();
        const int r = threadIdx.x;
        if (stage > 0 && blockIdx.x == 0 && r < ROWS && first + r < call.rows)
            call.codes_out[(first + r) * call.count + stage - 1] = chosen[r];
        if (stage < call.count) put_best(call, stage, first, dots, square);
    }
}

const char *check(const edge_tensor *in) {
    const edge_tensor &x = in[VALUES], &books = in[BOOKS];
    if (x.rank < 1 || x.dtype != EDGE_FLOAT32) return "x: expected float32 [..., width]";
    if (books.rank != 3 || books.dtype != EDGE_FLOAT32 || books.shape[2] != x.shape[x.rank - 1])
        return "codebooks: expected float32 [books, codes, width]";
    if (books.shape[0] > 0 && (books.shape[1] < 1 || books.shape[1] > INT32_MAX / 2))
        return "codebooks: expected 1 to 2^30 vectors in each";
    return nullptr;
}

Call plan(const edge_tensor *in, Room &room) {
    Call call = {};
    call.rows = row_count(in[VALUES]);
    call.count = in[BOOKS].shape[0], call.codes = in[BOOKS].shape[1], call.width = in[BOOKS].shape[2];
    call.chunks = ceil_of(call.codes, THREADS);
    call.x = room.dense<float>(in[VALUES]), call.books = room.dense<float>(in[BOOKS]);
    for (int i = 0; i < 2; ++i) {
        call.residuals[i] = room.take<float>(call.rows * call.width);
        call.best[i] = room.take<Best>(call.rows * call.chunks);
    }
    return call;
}

}  // namespace
}  // namespace edge

extern "C" {

size_t residual_vq_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check(in) == nullptr) edge::plan(in, room);
    return room.used();
}

const char *residual_vq_cuda(const edge_tensor *in, int32_t, const edge_value *, edge_tensor *out, void *workspace,
                             void *stream) {
    using namespace edge;
    if (const char *wrong = check(in)) return wrong;
    if (row_count(in[VALUES]) == 0) return nullptr;
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    Room room(workspace, queue);
    Call call = plan(in, room);
    call.codes_out = static_cast<int64_t *>(out[0].data), call.total = static_cast<float *>(out[1].data);
    const int64_t parts = ceil_of(call.rows, ROWS);
    for (int64_t i = 0; i <= call.count; ++i) {
        const dim3 grid(static_cast<unsigned>(i < call.count ? call.chunks : 1),
                        static_cast<unsigned>(parts < 65535 ? parts : 65535));
        run_stage<<<grid, THREADS, 0, queue>>>(call, i);
    }
    return last_failure();
}
}
