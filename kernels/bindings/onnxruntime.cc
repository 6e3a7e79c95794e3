// All kernels of the table as custom operators of ONNX Runtime, in the domain `edge`.
//
// ONNX Runtime wants to know the type of each output before it runs anything, so a kernel is registered once for each
// of its alternatives in `edge_kernel.types`. Constant inputs are read where ONNX Runtime keeps them.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "edge.h"
#include "onnxruntime_api.h"
#include "types.h"

extern "C" const edge_kernel *const *edge_kernels(int32_t *count) noexcept;

namespace edge::ort {
namespace {

constexpr size_t MAX_TENSORS = 32;
const char *const DOMAIN = "edge";
const char *const THREADS = "edge.threads";  // session configuration entry: how many parts work is split into

// One alternative of a kernel; ONNX Runtime passes `base` back to each function.
struct Operator {
    OrtCustomOp base;
    const edge_kernel *kernel;
    Types types;
    std::shared_ptr<const Api> api;
    int32_t threads;
};

const Operator &of(const OrtCustomOp *base) { return *reinterpret_cast<const Operator *>(base); }

// What a node of a graph keeps between calls.
struct Kernel {
    const Api *api;
    const edge_kernel *kernel;
    int32_t threads;
    std::vector<edge_value> attributes;
    std::vector<edge_tensor> constants;  // by input; dtype EDGE_NONE where the input is not constant
};

#define EDGE_TRY(call)                                        \
    do {                                                      \
        if (OrtStatus *status = (call); status != nullptr) return status; \
    } while (false)

int32_t dtype_of_element(int type) {
    for (size_t dtype = 0; dtype < std::size(ELEMENT_TYPES); ++dtype)
        if (ELEMENT_TYPES[dtype] == type) return static_cast<int32_t>(dtype);
    return EDGE_NONE;
}

void make_dense(edge_tensor &tensor) {
    int64_t step = 1;
    for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
        tensor.strides[axis] = step;
        step *= tensor.shape[axis];
    }
}

OrtStatus *describe(const Api &api, const OrtTensorTypeAndShapeInfo *info, edge_tensor &tensor) {
    int type = 0;
    size_t rank = 0;
    EDGE_TRY(api.GetTensorElementType(info, &type));
    EDGE_TRY(api.GetDimensionsCount(info, &rank));
    tensor.dtype = dtype_of_element(type);
    if (tensor.dtype == EDGE_NONE || rank > EDGE_MAX_RANK)
        return api.CreateStatus(INVALID_ARGUMENT, "a kernel of the domain edge does not take this tensor");
    tensor.rank = static_cast<int32_t>(rank);
    EDGE_TRY(api.GetDimensions(info, tensor.shape, rank));
    make_dense(tensor);
    return nullptr;
}

// Everything but the data.
OrtStatus *describe(const Api &api, const OrtValue *value, edge_tensor &tensor) {
    OrtTensorTypeAndShapeInfo *info = nullptr;
    EDGE_TRY(api.GetTensorTypeAndShape(value, &info));
    OrtStatus *status = describe(api, info, tensor);
    api.ReleaseTensorTypeAndShapeInfo(info);
    return status;
}

OrtStatus *read_attribute(const Api &api, const OrtKernelInfo *info, const edge_attribute &attribute, edge_value &value) {
    if (attribute.is_number == 0) return api.KernelInfoGetAttribute_int64(info, attribute.name, &value.integer);
    float number = 0;
    EDGE_TRY(api.KernelInfoGetAttribute_float(info, attribute.name, &number));
    value.number = number;
    return nullptr;
}

OrtStatus *fill(Kernel &made, const OrtKernelInfo *info) {
    const Api &api = *made.api;
    const edge_attribute *attribute = made.kernel->attributes;
    for (; attribute != nullptr && attribute->name != nullptr; ++attribute) {
        edge_value value{};
        EDGE_TRY(read_attribute(api, info, *attribute, value));
        made.attributes.push_back(value);
    }
    for (int32_t i = 0; i < made.kernel->max_inputs; ++i) {
        edge_tensor tensor{};
        tensor.dtype = EDGE_NONE;
        int is_constant = 0;
        const OrtValue *value = nullptr;
        EDGE_TRY(api.KernelInfoGetConstantInput_tensor(info, static_cast<size_t>(i), &is_constant, &value));
        if (is_constant && value != nullptr) EDGE_TRY(describe(api, value, tensor));
        made.constants.push_back(tensor);
    }
    return nullptr;
}

OrtStatus *create(const OrtCustomOp *base, Table *, const OrtKernelInfo *info, void **out) noexcept {
    const Operator &op = of(base);
    try {
        auto made = std::make_unique<Kernel>(Kernel{op.api.get(), op.kernel, op.threads, {}, {}});
        EDGE_TRY(fill(*made, info));
        *out = made.release();
        return nullptr;
    } catch (...) {
        return op.api->CreateStatus(FAIL, "no memory for a kernel of the domain edge");
    }
}

// ONNX Runtime's pool as the kernels see it.
struct Pool {
    const Api *api;
    const OrtKernelContext *context;
    OrtStatus *status = nullptr;  // of parts that it did not run
};

struct Task {
    void (*task)(void *, int32_t);
    void *argument;
};

void run_tasks(void *self, int32_t tasks, void (*task)(void *, int32_t), void *argument) {
    Pool &pool = *static_cast<Pool *>(self);
    Task call{task, argument};
    OrtStatus *status = pool.api->KernelContext_ParallelFor(
        pool.context,
        [](void *data, size_t index) {
            const Task &todo = *static_cast<const Task *>(data);
            todo.task(todo.argument, static_cast<int32_t>(index));
        },
        static_cast<size_t>(tasks), 0, &call);
    if (status != nullptr) pool.status = status;
}

OrtStatus *read_inputs(const Kernel &kernel, const OrtKernelContext *context, edge_tensor *inputs, int32_t &count) {
    const Api &api = *kernel.api;
    size_t given = 0;
    EDGE_TRY(api.KernelContext_GetInputCount(context, &given));
    count = static_cast<int32_t>(given);
    for (size_t i = 0; i < given; ++i) {
        const OrtValue *value = nullptr;
        EDGE_TRY(api.KernelContext_GetInput(context, i, &value));
        inputs[i].dtype = EDGE_NONE;
        if (value == nullptr) continue;
        if (i < kernel.constants.size() && kernel.constants[i].dtype != EDGE_NONE)
            inputs[i] = kernel.constants[i];
        else
            EDGE_TRY(describe(api, value, inputs[i]));
        EDGE_TRY(api.GetTensorMutableData(const_cast<OrtValue *>(value), &inputs[i].data));
    }
    return nullptr;
}

OrtStatus *refusal(const Kernel &kernel, const char *message) {
    const std::string text = std::string("edge::") + kernel.kernel->name + ": " + message;
    return kernel.api->CreateStatus(INVALID_ARGUMENT, text.c_str());
}

OrtStatus *compute(const Kernel &kernel, OrtKernelContext *context) {
    const Api &api = *kernel.api;
    edge_tensor inputs[MAX_TENSORS], outputs[MAX_TENSORS];
    int32_t count = 0;
    EDGE_TRY(read_inputs(kernel, context, inputs, count));
    const edge_value *attributes = kernel.attributes.data();
    if (const char *message = kernel.kernel->shape(inputs, count, attributes, outputs)) return refusal(kernel, message);
    for (int32_t i = 0; i < kernel.kernel->outputs; ++i) {
        OrtValue *value = nullptr;
        const size_t place = static_cast<size_t>(i), rank = static_cast<size_t>(outputs[i].rank);
        EDGE_TRY(api.KernelContext_GetOutput(context, place, outputs[i].shape, rank, &value));
        if (value == nullptr) return refusal(kernel, "an output is not connected");
        EDGE_TRY(api.GetTensorMutableData(value, &outputs[i].data));
        make_dense(outputs[i]);
    }
    Pool self{&api, context};
    const edge_pool pool{&self, kernel.threads, run_tasks};
    const char *message = kernel.kernel->run(&pool, inputs, count, attributes, outputs);
    if (self.status != nullptr) return self.status;
    return message == nullptr ? nullptr : refusal(kernel, message);
}

OrtStatus *compute_safely(void *self, OrtKernelContext *context) noexcept {
    const Kernel &kernel = *static_cast<const Kernel *>(self);
    try {
        return compute(kernel, context);
    } catch (const std::exception &error) {
        return refusal(kernel, error.what());
    } catch (...) {
        return refusal(kernel, "failed");
    }
}

OrtCustomOp functions() {
    OrtCustomOp base{};
    base.version = VERSION;
    base.GetName = [](const OrtCustomOp *self) { return of(self).kernel->name; };
    base.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };  // the CPU's
    base.GetInputType = [](const OrtCustomOp *self, size_t i) { return ELEMENT_TYPES[of(self).types.inputs[i]]; };
    base.GetInputTypeCount = [](const OrtCustomOp *self) { return of(self).types.inputs.size(); };
    base.GetOutputType = [](const OrtCustomOp *self, size_t i) { return ELEMENT_TYPES[of(self).types.outputs[i]]; };
    base.GetOutputTypeCount = [](const OrtCustomOp *self) { return of(self).types.outputs.size(); };
    base.KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
    base.GetInputCharacteristic = [](const OrtCustomOp *self, size_t i) -> int {
        return static_cast<int32_t>(i) < of(self).kernel->min_inputs ? REQUIRED : OPTIONAL;
    };
    base.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) -> int { return REQUIRED; };
    base.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
    base.GetVariadicInputMinArity = [](const OrtCustomOp *) { return 0; };
    base.GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 0; };
    base.GetVariadicOutputMinArity = [](const OrtCustomOp *) { return 0; };
    base.GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 0; };
    base.CreateKernelV2 = create;
    base.KernelComputeV2 = compute_safely;
    return base;
}

bool usable(const edge_kernel &kernel, const Types &types) {
    const auto known = [](const std::vector<int32_t> &all) {
        for (int32_t dtype : all)
            if (dtype == EDGE_NONE) return false;
        return all.size() <= MAX_TENSORS;
    };
    return types.inputs.size() == static_cast<size_t>(kernel.max_inputs) &&
           types.outputs.size() == static_cast<size_t>(kernel.outputs) && known(types.inputs) && known(types.outputs);
}

std::vector<std::unique_ptr<Operator>> operators(const std::shared_ptr<const Api> &api, int32_t threads) {
    std::vector<std::unique_ptr<Operator>> made;
    int32_t count = 0;
    const edge_kernel *const *table = edge_kernels(&count);
    for (int32_t i = 0; i < count; ++i)
        for (const Types &types : types_of(*table[i]))
            if (usable(*table[i], types))
                made.push_back(std::make_unique<Operator>(Operator{functions(), table[i], types, api, threads}));
    return made;
}

OrtStatus *threads_of(const Api &api, const OrtSessionOptions *options, int32_t &threads) {
    threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
    int given = 0;
    EDGE_TRY(api.HasSessionConfigEntry(options, THREADS, &given));
    if (given == 0) return nullptr;
    char text[16] = {};
    size_t size = sizeof text;
    EDGE_TRY(api.GetSessionConfigEntry(options, THREADS, text, &size));
    const long number = std::strtol(text, nullptr, 10);
    if (number < 1 || number > 4096) return api.CreateStatus(INVALID_ARGUMENT, "edge.threads is not usable");
    threads = static_cast<int32_t>(number);
    return nullptr;
}

// Domains live as long as the library, since sessions keep pointers to them: one for each number of threads.
struct Domain {
    OrtCustomOpDomain *handle = nullptr;
    std::vector<std::unique_ptr<Operator>> operators;
};

OrtStatus *domain_of(const std::shared_ptr<const Api> &api, int32_t threads, OrtCustomOpDomain **out) {
    static std::mutex mutex;
    static std::map<int32_t, Domain> domains;
    std::lock_guard<std::mutex> hold(mutex);
    Domain &domain = domains[threads];
    if (domain.handle == nullptr) {
        OrtCustomOpDomain *handle = nullptr;
        EDGE_TRY(api->CreateCustomOpDomain(DOMAIN, &handle));
        domain.operators = operators(api, threads);
        for (const auto &op : domain.operators) EDGE_TRY(api->CustomOpDomain_Add(handle, &op->base));
        domain.handle = handle;
    }
    *out = domain.handle;
    return nullptr;
}

OrtStatus *register_all(OrtSessionOptions *options, Table *table) {
    const auto api = std::make_shared<const Api>(table);
    int32_t threads = 1;
    OrtCustomOpDomain *domain = nullptr;
    EDGE_TRY(threads_of(*api, options, threads));
    EDGE_TRY(domain_of(api, threads, &domain));
    return api->AddCustomOpDomain(options, domain);
}

}  // namespace
}  // namespace edge::ort

// What ONNX Runtime calls when it is given the library.
extern "C" EDGE_EXPORT edge::ort::OrtStatus *RegisterCustomOps(edge::ort::OrtSessionOptions *options,
                                                               const edge::ort::OrtApiBase *base) noexcept {
    using namespace edge::ort;
    Table *table = base->GetApi(VERSION);
    const auto create_status = Api::at<decltype(Api::CreateStatus)>(base->GetApi(1), 0);
    if (table == nullptr) {
        const std::string text = std::string("the kernels need ONNX Runtime 1.17 or later, and this is ") +
                                 base->GetVersionString();
        return create_status(FAIL, text.c_str());
    }
    try {
        return register_all(options, table);
    } catch (...) {
        return create_status(FAIL, "no memory for the kernels of the domain edge");
    }
}
