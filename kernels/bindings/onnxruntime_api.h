// The part of ONNX Runtime's C interface that custom operators need, declared here because no wheel brings its
// headers. That interface only ever grows at its end: a function keeps its place in OrtApi for good, and a version
// number says how far the table goes. All of these are there since version 17.
#ifndef EDGE_ONNXRUNTIME_API_H
#define EDGE_ONNXRUNTIME_API_H

#include <cstddef>
#include <cstdint>

namespace edge::ort {

constexpr uint32_t VERSION = 17;

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOp;

using Table = void *const;  // OrtApi: an array of functions

struct OrtApiBase {
    Table *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)();
};

enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };
enum Presence : int { REQUIRED = 0, OPTIONAL = 1 };

// ONNX's numbers of element types, by edge_dtype.
constexpr int ELEMENT_TYPES[] = {1, 10, 16, 3, 2, 6, 7, 9, 11};

// Typed views of the table's entries.
struct Api {
    template <class Function>
    static Function at(Table *table, size_t place) {
        return reinterpret_cast<Function>(table[place]);
    }

    explicit Api(Table *t)
        : CreateStatus(at<decltype(CreateStatus)>(t, 0)),
          CreateCustomOpDomain(at<decltype(CreateCustomOpDomain)>(t, 26)),
          CustomOpDomain_Add(at<decltype(CustomOpDomain_Add)>(t, 27)),
          AddCustomOpDomain(at<decltype(AddCustomOpDomain)>(t, 28)),
          GetTensorMutableData(at<decltype(GetTensorMutableData)>(t, 51)),
          GetTensorElementType(at<decltype(GetTensorElementType)>(t, 60)),
          GetDimensionsCount(at<decltype(GetDimensionsCount)>(t, 61)),
          GetDimensions(at<decltype(GetDimensions)>(t, 62)),
          GetTensorTypeAndShape(at<decltype(GetTensorTypeAndShape)>(t, 65)),
          KernelInfoGetAttribute_float(at<decltype(KernelInfoGetAttribute_float)>(t, 85)),
          KernelInfoGetAttribute_int64(at<decltype(KernelInfoGetAttribute_int64)>(t, 86)),
          KernelContext_GetInputCount(at<decltype(KernelContext_GetInputCount)>(t, 88)),
          KernelContext_GetInput(at<decltype(KernelContext_GetInput)>(t, 90)),
          KernelContext_GetOutput(at<decltype(KernelContext_GetOutput)>(t, 91)),
          ReleaseTensorTypeAndShapeInfo(at<decltype(ReleaseTensorTypeAndShapeInfo)>(t, 99)),
          HasSessionConfigEntry(at<decltype(HasSessionConfigEntry)>(t, 237)),
          GetSessionConfigEntry(at<decltype(GetSessionConfigEntry)>(t, 238)),
          KernelInfoGetConstantInput_tensor(at<decltype(KernelInfoGetConstantInput_tensor)>(t, 249)),
          KernelContext_ParallelFor(at<decltype(KernelContext_ParallelFor)>(t, 274)) {}

    OrtStatus *(*CreateStatus)(int code, const char *message);
    OrtStatus *(*CreateCustomOpDomain)(const char *domain, OrtCustomOpDomain **out);
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *, const OrtCustomOp *);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *, OrtCustomOpDomain *);
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **out);
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *, int *out);
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *, size_t *out);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *, int64_t *values, size_t count);
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *, OrtTensorTypeAndShapeInfo **out);
    OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *, const char *name, float *out);
    OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *, const char *name, int64_t *out);
    OrtStatus *(*KernelContext_GetInputCount)(const OrtKernelContext *, size_t *out);
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *, size_t index, const OrtValue **out);
    OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *, size_t index, const int64_t *sizes, size_t rank,
                                          OrtValue **out);
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *);
    OrtStatus *(*HasSessionConfigEntry)(const OrtSessionOptions *, const char *key, int *out);
    OrtStatus *(*GetSessionConfigEntry)(const OrtSessionOptions *, const char *key, char *value, size_t *size);
    OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *, size_t index, int *is_constant,
                                                    const OrtValue **out);
    OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *, void (*task)(void *, size_t), size_t tasks,
                                            size_t batches, void *argument);
};

// What ONNX Runtime asks an operator, in its order; NULL where we have no answer.
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *, Table *, const OrtKernelInfo *);
    const char *(*GetName)(const OrtCustomOp *);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *);
    int (*GetInputType)(const OrtCustomOp *, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *);
    int (*GetOutputType)(const OrtCustomOp *, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *);
    void (*KernelCompute)(void *kernel, OrtKernelContext *);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp *, size_t index);
    int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *, size_t index);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, Table *, const OrtKernelInfo *, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, void *context);
    int (*GetStartVersion)(const OrtCustomOp *);
    int (*GetEndVersion)(const OrtCustomOp *);
};

}  // namespace edge::ort

#endif
