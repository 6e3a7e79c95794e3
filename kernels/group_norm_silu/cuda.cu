// edge::group_norm_silu on NVIDIA GPUs. A group is cut into slices, so that a few large groups keep the device busy: one
// kernel takes count, mean and sum of squares of each slice, the next one puts them together and writes. The second
// reading comes from the device's cache where it holds the values.
//
// Channels-last memory is read as it lies: neighbouring threads take what lies next to each other. Other layouts whose
// positions have no common stride are copied first.
#include "cuda/tensors.cuh"

namespace edge {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int64_t SLICE = 8192;      // values of one, at least
constexpr int64_t SLICES = 2 * WARP;  // of a group, at most: two a lane when they are put together
enum Input { INPUT, WEIGHT, BIAS };

struct Moments {
    double count, mean, squares;
};

template <class T>
struct Call {
    const T *x, *weight, *bias;
    T *y;
    Moments *moments;                        // [images, groups, slices]
    int64_t images, groups, channels, size;  // channels of a group, values of a channel
    int64_t image_step, channel_step, step;  // of x, in elements
    int64_t slices, slice;                   // of a group, and values of one
    Divisor by_size, by_channels;
    double eps;
    bool silu, vectors;

    __host__ __device__ int64_t count() const { return channels * size; }
};

__device__ float widen(float x) { return x; }
__device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ void narrow(float x, float *to) { *to = x; }
__device__ void narrow(float x, __nv_bfloat16 *to) { *to = __float2bfloat16(x); }

// Where value `i` of a group is: its channel, its position there. Neighbours in memory have neighbouring numbers.
struct Place {
    int channel, position;
};

template <class T>
__device__ Place place_of(const Call<T> &call, int i) {
    const int whole = call.step == 1 ? call.by_size.of(i) : call.by_channels.of(i);
    const int rest = i - whole * static_cast<int>(call.step == 1 ? call.size : call.channels);
    return call.step == 1 ? Place{whole, rest} : Place{rest, whole};
}

// Calls `body(values, place)` for the thread's values of [from, to): WIDE neighbours of one channel, or one.
template <class T, class Body>
__device__ void each(const Call<T> &call, const T *group, int from, int to, const Body &body) {
    constexpr int WIDE = VECTOR / sizeof(T);
    if (call.vectors) {
        for (int i = from + threadIdx.x * WIDE; i < to; i += THREADS * WIDE) {
            const uint4 bits = load_vector(group + i);
            T values[WIDE];
            memcpy(values, &bits, sizeof bits);
            body(values, place_of(call, i));
        }
        return;
    }
    for (int i = from + threadIdx.x; i < to; i += THREADS) {
        const Place place = place_of(call, i);
        const T value[1] = {group[place.channel * call.channel_step + place.position * call.step]};
        body(value, place);
    }
}

template <class T>
__device__ const T *group_of(const Call<T> &call, int64_t unit) {
    return call.x + unit / call.groups * call.image_step + unit % call.groups * call.channels * call.channel_step;
}

// Block (slice, image and group): about the group's first value, so that values which are all alike give exactly 0.
template <class T>
__global__ void __launch_bounds__(THREADS) measure(const Call<T> call) {
    const int from = static_cast<int>(blockIdx.x * call.slice), to = static_cast<int>(min(from + call.slice, call.count()));
    for (int64_t unit = blockIdx.y; unit < call.images * call.groups; unit += gridDim.y) {
        const T *group = group_of(call, unit);
        const float pivot = widen(group[0]);
        float sum = 0;
        each(call, group, from, to, [&](const auto &values, Place) {
            for (const T value : values) sum += widen(value) - pivot;
        });
        const double count = to - from, shift = block_sum<WARPS>(static_cast<double>(sum)) / count;
        const float mean = static_cast<float>(pivot + shift);
        float square = 0;
        each(call, group, from, to, [&](const auto &values, Place) {
            for (const T value : values) square += (widen(value) - mean) * (widen(value) - mean);
        });
        const double squares = block_sum<WARPS>(static_cast<double>(square)), error = pivot + shift - mean;
        if (threadIdx.x == 0)
            call.moments[unit * call.slices + blockIdx.x] = {count, pivot + shift, squares - error * error * count};
    }
}

// Mean and scale of a group from its slices, in each warp (Chan, Golub and LeVeque 1979, for many parts at once).
template <class T>
__device__ void put_together(const Call<T> &call, int64_t unit, double &mean, double &scale) {
    const Moments *parts = call.moments + unit * call.slices;
    const double count = static_cast<double>(call.count()), first = parts[0].mean;
    double shift = 0, squares = 0;
    for (int64_t i = threadIdx.x % WARP; i < call.slices; i += WARP) shift += parts[i].count * (parts[i].mean - first);
    mean = first + warp_sum(shift) / count;
    for (int64_t i = threadIdx.x % WARP; i < call.slices; i += WARP) {
        const double apart = parts[i].mean - mean;
        squares += parts[i].squares + parts[i].count * apart * apart;
    }
    squares = warp_sum(squares);
    scale = 1 / sqrt((squares < 0 ? 0 : squares) / count + call.eps);
}

template <class T, int COUNT>
__device__ void put(const T (&values)[COUNT], T *to) {
    if constexpr (COUNT == 1) {
        *to = values[0];
    } else {
        uint4 bits;
        memcpy(&bits, values, sizeof bits);
        *reinterpret_cast<uint4 *>(to) = bits;
    }
}

template <class T, int COUNT>
__device__ void activate(const T (&values)[COUNT], float mean, float factor, float bias, bool silu, T *to) {
    T made[COUNT];
    for (int j = 0; j < COUNT; ++j) {
        const float value = (widen(values[j]) - mean) * factor + bias;
        narrow(silu ? value / (1.0f + expf(-value)) : value, made + j);
    }
    put(made, to);
}

// Block (slice, image and group).
template <class T>
__global__ void __launch_bounds__(THREADS) write(const Call<T> call) {
    const int from = static_cast<int>(blockIdx.x * call.slice), to = static_cast<int>(min(from + call.slice, call.count()));
    for (int64_t unit = blockIdx.y; unit < call.images * call.groups; unit += gridDim.y) {
        double exact, scale;
        put_together(call, unit, exact, scale);
        const float mean = static_cast<float>(exact), factor = static_cast<float>(scale);
        const T *weight = call.weight + unit % call.groups * call.channels;
        const T *bias = call.bias + unit % call.groups * call.channels;
        T *const y = call.y + unit * call.count();
        each(call, group_of(call, unit), from, to, [&](const auto &values, Place place) {
            activate(values, mean, factor * widen(weight[place.channel]), widen(bias[place.channel]), call.silu,
                     y + place.channel * call.size + place.position);
        });
    }
}

// One stride for all positions of a channel; -1 where there is none.
int64_t step_of(const edge_tensor &x) {
    int64_t step = 1, expected = 0;
    for (int32_t axis = x.rank - 1; axis >= 2; --axis) {
        if (x.shape[axis] == 1) continue;
        if (expected == 0)
            step = x.strides[axis];
        else if (x.strides[axis] != expected)
            return -1;
        expected = x.strides[axis] * x.shape[axis];
    }
    return step;
}

const char *check_types(const edge_tensor *in) {
    if (in[INPUT].dtype != EDGE_FLOAT32 && in[INPUT].dtype != EDGE_BFLOAT16) return "x is float32 or bfloat16";
    if (in[INPUT].rank < 2) return "x is [images, channels, ...]";
    for (const int i : {WEIGHT, BIAS})
        if (in[i].dtype != in[INPUT].dtype || in[i].rank != 1 || in[i].shape[0] != in[INPUT].shape[1])
            return "weight and bias are [channels] and of the dtype of x";
    return nullptr;
}

// What does not depend on the attributes; without memory in `room`, only what is taken there.
template <class T>
Call<T> call_of(const edge_tensor *in, Room &room) {
    const edge_tensor &x = in[INPUT];
    Call<T> call = {};
    call.images = x.shape[0], call.size = 1, call.step = step_of(x);
    for (int32_t axis = 2; axis < x.rank; ++axis) call.size *= x.shape[axis];
    if (call.step > 0 && call.images * x.shape[1] * call.size > 0) {
        call.x = static_cast<const T *>(x.data), call.image_step = x.strides[0], call.channel_step = x.strides[1];
    } else {
        call.x = room.dense<T>(x), call.step = 1, call.channel_step = call.size, call.image_step = x.shape[1] * call.size;
    }
    call.weight = room.dense<T>(in[WEIGHT]), call.bias = room.dense<T>(in[BIAS]);
    const int64_t channels = call.images * x.shape[1];  // and no more groups; each has a slice that is not full
    call.moments = room.take<Moments>(channels + channels * call.size / SLICE);
    return call;
}

template <class T>
const char *start(const edge_tensor *in, const edge_value *attributes, edge_tensor *out, Room room, cudaStream_t stream) {
    Call<T> call = call_of<T>(in, room);
    call.groups = attributes[0].integer, call.eps = static_cast<float>(attributes[1].number);
    call.silu = attributes[2].integer != 0, call.channels = in[INPUT].shape[1] / call.groups;
    call.y = static_cast<T *>(out[0].data);
    if (call.images * call.count() == 0) return nullptr;
    if (call.count() > INT32_MAX - THREADS * 8) return "on a GPU, a group has fewer than 2^31 values";
    constexpr int64_t WIDE = VECTOR / sizeof(T);
    const bool together = call.channels == 1 || call.channel_step == call.size;
    const auto at = reinterpret_cast<uintptr_t>(call.x) | reinterpret_cast<uintptr_t>(call.y);
    call.vectors = call.step == 1 && together && call.size % WIDE == 0 && call.channel_step % WIDE == 0 &&
                   call.image_step % WIDE == 0 && at % VECTOR == 0;
    call.by_size = Divisor(call.size, call.count()), call.by_channels = Divisor(call.channels, call.count());
    const int64_t wanted = ceil_of(call.count(), SLICE);
    call.slice = ceil_of(ceil_of(call.count(), wanted < SLICES ? wanted : SLICES), WIDE) * WIDE;
    call.slices = ceil_of(call.count(), call.slice);
    const int64_t units = call.images * call.groups;
    const dim3 grid(static_cast<unsigned>(call.slices), static_cast<unsigned>(units < 65535 ? units : 65535));
    measure<T><<<grid, THREADS, 0, stream>>>(call);
    write<T><<<grid, THREADS, 0, stream>>>(call);
    return last_failure();
}

}  // namespace
}  // namespace edge

extern "C" {

size_t group_norm_silu_cuda_workspace(const edge_tensor *in, const edge_value *) {
    edge::Room room;
    if (edge::check_types(in) != nullptr) return 0;
    if (in[edge::INPUT].dtype == EDGE_FLOAT32)
        edge::call_of<float>(in, room);
    else
        edge::call_of<__nv_bfloat16>(in, room);
    return room.used();
}

const char *group_norm_silu_cuda(const edge_tensor *in, int32_t, const edge_value *attributes, edge_tensor *out,
                                 void *workspace, void *stream) {
    using namespace edge;
    if (const char *wrong = check_types(in)) return wrong;
    const int64_t groups = attributes[0].integer;
    if (groups < 1 || in[INPUT].shape[1] % groups != 0) return "groups divides the channels";
    cudaStream_t queue = static_cast<cudaStream_t>(stream);
    const Room room(workspace, queue);
    if (in[INPUT].dtype == EDGE_FLOAT32) return start<float>(in, attributes, out, room, queue);
    return start<__nv_bfloat16>(in, attributes, out, room, queue);
}
}
