// edge::tree_attention on NVIDIA GPUs: the past is split into chunks that blocks of threads take one each, and what they
// found is put together, so that a few new tokens keep the whole device busy (flash decoding; Dao et al. 2023).
// Three kernels on one stream: new rows of keys and values, attention of each chunk, the sum of the chunks.
#include <cfloat>

#include "cuda/tensors.cuh"

namespace {

constexpr int THREADS = 128;
using edge::WARP;
constexpr int KEYS = 32;        // of a tile: one a lane
constexpr int ROWS = 8;         // queries that share a pass over a chunk
constexpr int WIDEST = 256;     // columns of values: two a thread
constexpr int64_t CHUNK = 512;  // rows of past that a block takes

enum Input { QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, LENGTH, POSITIONS, MASK, COSINE, SINE, KEY_SCALE, VALUE_SCALE };
enum Output { OUTPUT, KEY_ROWS, VALUE_ROWS, KEY_SCALES, VALUE_SCALES };

template <class T>
struct Call {
    const float *query, *key, *value, *cosine, *sine, *key_scale, *value_scale;
    const T *past_key, *past_value;
    const int64_t *length, *positions;
    const uint8_t *mask;
    float *output, *key_scales, *value_scales;
    T *key_rows, *value_rows;
    float *values, *sums, *peaks;  // of each chunk, head and row
    int64_t tokens, heads, groups, key_width, value_width, capacity, rotary, window, chunks;
    float scale, softcap;

    __host__ __device__ int64_t rows() const { return tokens * groups; }
};

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float widen(int8_t x) { return x; }
__device__ void narrow(float x, float, float *to) { *to = x; }
__device__ void narrow(float x, float, __nv_bfloat16 *to) { *to = __float2bfloat16(x); }
__device__ void narrow(float x, float scale, int8_t *to) {
    const float steps = rintf(x / scale);
    *to = static_cast<int8_t>(fabsf(steps) <= 127 ? steps : 0);
}

__device__ float largest(float a, float b) { return isnan(a) || a > b ? a : b; }  // NaN stays

__device__ float block_largest(float x) {
    __shared__ float found[THREADS / WARP];
    for (int step = WARP / 2; step > 0; step /= 2) x = largest(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads();
    if (threadIdx.x % WARP == 0) found[threadIdx.x / WARP] = x;
    __syncthreads();
    x = found[0];
    for (int i = 1; i < THREADS / WARP; ++i) x = largest(x, found[i]);
    return x;
}

// Value `i` of a row, turned by its token's angles.
template <class T>
__device__ float turned(const Call<T> &call, const float *row, int64_t token, int64_t i) {
    if (i >= call.rotary) return row[i];
    const int64_t half = call.rotary / 2, place = token * call.rotary + i;
    const float across = i < half ? -row[i + half] : row[i - half];
    return row[i] * call.cosine[place] + across * call.sine[place];
}

// One row of keys or values into the cache's format; a block takes one.
template <class T>
__device__ void keep(const Call<T> &call, const float *row, int64_t token, int64_t width, bool turns, T *to,
                     float *scale) {
    float most = 0;
    for (int64_t i = threadIdx.x; i < width; i += THREADS)
        most = largest(fabsf(turns ? turned(call, row, token, i) : row[i]), most);
    const float used = sizeof(T) == 1 ? block_largest(most) / 127 : 1;
    for (int64_t i = threadIdx.x; i < width; i += THREADS)
        narrow(turns ? turned(call, row, token, i) : row[i], used, to + i);
    if (threadIdx.x == 0) *scale = used;
}

template <class T>
__global__ void make_rows(const Call<T> call) {
    const int64_t head = blockIdx.x, token = blockIdx.y, place = head * call.tokens + token;
    const int64_t from = token * call.heads + head;
    keep(call, call.key + from * call.key_width, token, call.key_width, true, call.key_rows + place * call.key_width,
         call.key_scales + place);
    keep(call, call.value + from * call.value_width, token, call.value_width, false,
         call.value_rows + place * call.value_width, call.value_scales + place);
}

// Where the rows of one head are read: the past, or the new rows that `make_rows` has written.
template <class T>
struct Rows {
    const T *keys, *values;
    const float *key_scales, *value_scales;
    bool are_new;
};

template <class T>
__device__ bool sees(const Call<T> &call, bool is_new, int64_t row, int64_t at) {
    const int64_t token = row / call.groups, position = call.positions[token];
    if (is_new && !call.mask[token * call.tokens + at]) return false;
    return call.window <= 0 || position - (is_new ? call.positions[at] : at) < call.window;
}

// What a block keeps of its rows while keys go by.
struct Running {
    float values[ROWS][WIDEST / THREADS];
};

// Scores of a tile, in warps: each has two rows, a lane a key. They become weights, and old sums are scaled down.
template <class T>
__device__ void weigh(const Call<T> &call, const Rows<T> &rows, const float *queries, const float *tile, int64_t first,
                      int64_t start, int64_t count, float (*weights)[KEYS], float *factors, float *sums, float *peaks) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t stride = call.key_width + 1;
    for (int r = warp; r < ROWS; r += THREADS / WARP) {
        float score = -INFINITY;
        if (first + r < call.rows() && lane < count && sees(call, rows.are_new, first + r, start + lane)) {
            score = 0;
            for (int64_t d = 0; d < call.key_width; ++d) score += queries[r * call.key_width + d] * tile[lane * stride + d];
            if (rows.key_scales != nullptr) score *= rows.key_scales[start + lane];
            if (call.softcap > 0) score = call.softcap * tanhf(score / call.softcap);
        }
        float peak = isnan(score) ? -FLT_MAX : fmaxf(score, -FLT_MAX);
        for (int step = WARP / 2; step > 0; step /= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, step));
        peak = fmaxf(peak, peaks[r]);
        const float weight = expf(score - peak);
        float sum = weight;
        for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        const bool scaled = rows.value_scales != nullptr && lane < count;
        weights[r][lane] = scaled ? weight * rows.value_scales[start + lane] : weight;
        __syncwarp();
        if (lane == 0) {
            factors[r] = peak == peaks[r] ? 1 : expf(peaks[r] - peak);
            sums[r] = sums[r] * factors[r] + sum;
            peaks[r] = peak;
        }
        __syncwarp();
    }
}

template <class T>
__device__ void attend_tile(const Call<T> &call, const Rows<T> &rows, const float *queries, float *tile, int64_t first,
                            int64_t start, int64_t count, float *sums, float *peaks, Running &running) {
    __shared__ float weights[ROWS][KEYS], factors[ROWS];
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count * call.key_width; i += THREADS)
        tile[i / call.key_width * (call.key_width + 1) + i % call.key_width] =
            widen(rows.keys[start * call.key_width + i]);
    __syncthreads();
    weigh(call, rows, queries, tile, first, start, count, weights, factors, sums, peaks);
    __syncthreads();
    for (int c = 0; c < WIDEST / THREADS; ++c) {
        const int64_t column = threadIdx.x + c * THREADS;
        if (column >= call.value_width) break;
        for (int r = 0; r < ROWS; ++r) running.values[r][c] *= factors[r];
        for (int64_t j = 0; j < count; ++j) {
            const float value = widen(rows.values[(start + j) * call.value_width + column]);
            for (int r = 0; r < ROWS; ++r) running.values[r][c] += weights[r][j] * value;
        }
    }
}

template <class T>
__device__ void attend_rows(const Call<T> &call, const Rows<T> &rows, const float *queries, float *tile, int64_t first,
                            int64_t start, int64_t stop, float *sums, float *peaks, Running &running) {
    for (; start < stop; start += KEYS)
        attend_tile(call, rows, queries, tile, first, start, min(static_cast<int64_t>(KEYS), stop - start), sums, peaks,
                    running);
}

// Block (head, rows, chunk); the last chunk is that of the new tokens.
template <class T>
__global__ void attend(const Call<T> call) {
    extern __shared__ float memory[];
    __shared__ float sums[ROWS], peaks[ROWS];
    float *queries = memory, *tile = memory + ROWS * call.key_width;
    const int64_t head = blockIdx.x, first = blockIdx.y * ROWS, chunk = blockIdx.z;
    const int64_t length = min(max(*call.length, static_cast<int64_t>(0)), call.capacity);
    if (threadIdx.x < ROWS) sums[threadIdx.x] = 0, peaks[threadIdx.x] = -FLT_MAX;
    for (int64_t i = threadIdx.x; i < ROWS * call.key_width; i += THREADS) {
        const int64_t row = first + i / call.key_width, token = row / call.groups;
        const float *query = call.query + (token * call.heads * call.groups + head * call.groups + row % call.groups) * call.key_width;
        queries[i] = row < call.rows() ? turned(call, query, token, i % call.key_width) * call.scale : 0;
    }
    Running running = {};
    if (chunk < call.chunks - 1) {
        const Rows<T> past = {call.past_key + head * call.capacity * call.key_width,
                              call.past_value + head * call.capacity * call.value_width,
                              call.key_scale == nullptr ? nullptr : call.key_scale + head * call.capacity,
                              call.value_scale == nullptr ? nullptr : call.value_scale + head * call.capacity, false};
        attend_rows(call, past, queries, tile, first, chunk * CHUNK, min((chunk + 1) * CHUNK, length), sums, peaks, running);
    } else {
        const int64_t place = head * call.tokens;
        const bool scaled = sizeof(T) == 1;
        const Rows<T> rows = {call.key_rows + place * call.key_width, call.value_rows + place * call.value_width,
                              scaled ? call.key_scales + place : nullptr, scaled ? call.value_scales + place : nullptr, true};
        attend_rows(call, rows, queries, tile, first, static_cast<int64_t>(0), call.tokens, sums, peaks, running);
    }
    __syncthreads();
    for (int r = 0; r < ROWS && first + r < call.rows(); ++r) {
        const int64_t place = (chunk * call.heads + head) * call.rows() + first + r;
        for (int c = 0; c < WIDEST / THREADS; ++c) {
            const int64_t column = threadIdx.x + c * THREADS;
            if (column < call.value_width) call.values[place * call.value_width + column] = running.values[r][c];
        }
        if (threadIdx.x == 0) call.sums[place] = sums[r], call.peaks[place] = peaks[r];
    }
}

template <class T>
__device__ bool sees_any(const Call<T> &call, int64_t row) {
    const int64_t length = min(max(*call.length, static_cast<int64_t>(0)), call.capacity);
    if (length > 0 && sees(call, false, row, length - 1)) return true;
    for (int64_t other = 0; other < call.tokens; ++other)
        if (sees(call, true, row, other)) return true;
    return false;
}

// Block (head, row).
template <class T>
__global__ void merge(const Call<T> call) {
    const int64_t head = blockIdx.x, row = blockIdx.y, step = call.heads * call.rows();
    const int64_t place = head * call.rows() + row;
    float peak = -FLT_MAX, sum = 0;
    for (int64_t c = 0; c < call.chunks; ++c) peak = fmaxf(peak, call.peaks[place + c * step]);
    for (int64_t c = 0; c < call.chunks; ++c)
        sum += expf(call.peaks[place + c * step] - peak) * call.sums[place + c * step];
    const int64_t token = row / call.groups, query = head * call.groups + row % call.groups;
    const bool blind = sum == 0 && !sees_any(call, row);
    for (int64_t d = threadIdx.x; d < call.value_width; d += THREADS) {
        float value = 0;
        for (int64_t c = 0; c < call.chunks; ++c)
            value += expf(call.peaks[place + c * step] - peak) * call.values[(place + c * step) * call.value_width + d];
        call.output[(token * call.heads * call.groups + query) * call.value_width + d] = blind ? 0 : value / sum;
    }
}

// What a call works on; without memory in `room`, only what it takes there.
template <class T>
Call<T> call_of(const edge_tensor *in, edge::Room &room) {
    Call<T> call = {};
    const auto given = [&](int place) { return in[place].dtype != EDGE_NONE; };
    call.query = room.dense<float>(in[QUERY]), call.key = room.dense<float>(in[KEY]), call.value = room.dense<float>(in[VALUE]);
    call.past_key = room.dense<T>(in[PAST_KEY]), call.past_value = room.dense<T>(in[PAST_VALUE]);
    call.length = room.dense<int64_t>(in[LENGTH]), call.positions = room.dense<int64_t>(in[POSITIONS]);
    call.mask = room.dense<uint8_t>(in[MASK]);
    if (given(COSINE)) call.cosine = room.dense<float>(in[COSINE]), call.sine = room.dense<float>(in[SINE]);
    if (given(KEY_SCALE)) {
        call.key_scale = room.dense<float>(in[KEY_SCALE]), call.value_scale = room.dense<float>(in[VALUE_SCALE]);
    }
    call.tokens = in[QUERY].shape[0], call.heads = in[KEY].shape[1];
    call.groups = call.heads == 0 ? 0 : in[QUERY].shape[1] / call.heads;
    call.key_width = in[QUERY].shape[2], call.value_width = in[VALUE].shape[2], call.capacity = in[PAST_KEY].shape[1];
    call.rotary = given(COSINE) ? in[COSINE].shape[1] : 0;
    call.chunks = edge::ceil_of(call.capacity, CHUNK) + 1;
    const int64_t places = call.chunks * call.heads * call.rows();
    call.values = room.take<float>(places * call.value_width);
    call.sums = room.take<float>(places), call.peaks = room.take<float>(places);
    return call;
}

template <class T>
T *data(const edge_tensor &tensor) {
    return static_cast<T *>(tensor.data);
}

template <class T>
const char *launch(const edge_tensor *in, const edge_value *attributes, edge_tensor *out, edge::Room room,
                   cudaStream_t stream) {
    Call<T> call = call_of<T>(in, room);
    call.output = data<float>(out[OUTPUT]), call.key_rows = data<T>(out[KEY_ROWS]), call.value_rows = data<T>(out[VALUE_ROWS]);
    call.key_scales = data<float>(out[KEY_SCALES]), call.value_scales = data<float>(out[VALUE_SCALES]);
    call.scale = static_cast<float>(attributes[0].number), call.softcap = static_cast<float>(attributes[1].number);
    call.window = attributes[2].integer;
    const auto size = [](int64_t count) { return static_cast<unsigned>(count); };
    const int64_t rows = call.tokens * call.groups;
    const size_t shared = static_cast<size_t>(ROWS * call.key_width + KEYS * (call.key_width + 1)) * sizeof(float);
    make_rows<T><<<dim3(size(call.heads), size(call.tokens)), THREADS, 0, stream>>>(call);
    attend<T><<<dim3(size(call.heads), size((rows + ROWS - 1) / ROWS), size(call.chunks)), THREADS, shared, stream>>>(call);
    merge<T><<<dim3(size(call.heads), size(rows)), THREADS, 0, stream>>>(call);
    return edge::last_failure();
}

}  // namespace

extern "C" {

size_t tree_attention_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    switch (in[PAST_KEY].dtype) {
        case EDGE_FLOAT32: call_of<float>(in, room); break;
        case EDGE_BFLOAT16: call_of<__nv_bfloat16>(in, room); break;
        default: call_of<int8_t>(in, room);
    }
    return room.used();
}

const char *tree_attention_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out,
                                void *workspace, void *stream) {
    if (in[QUERY].shape[0] * in[QUERY].shape[1] == 0) return nullptr;
    if (in[QUERY].shape[2] > WIDEST || in[VALUE].shape[2] > WIDEST) return "on a GPU, heads are at most 256 wide";
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    const edge::Room room(workspace, queue);
    switch (in[PAST_KEY].dtype) {
        case EDGE_FLOAT32: return launch<float>(in, attributes, out, room, queue);
        case EDGE_BFLOAT16: return launch<__nv_bfloat16>(in, attributes, out, room, queue);
        case EDGE_INT8: return launch<int8_t>(in, attributes, out, room, queue);
        default: return "the cache is float32, bfloat16 or int8";
    }
}
}
