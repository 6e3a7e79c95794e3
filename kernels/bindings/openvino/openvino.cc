// All kernels of the table as an extension of OpenVINO: operations of the set `edge`, and their translation from ONNX.
//
// OpenVINO has no stable binary interface, so this is compiled against the headers of the very release that loads it.
// The kernels themselves are in the library of kernels, EDGE_LIBRARY, which is opened by its path.
#include <dlfcn.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/frontend/onnx/node_context.hpp>
#include <openvino/op/op.hpp>

#include "edge.h"

namespace {

const ov::element::Type ELEMENT_TYPES[] = {ov::element::f32, ov::element::f16, ov::element::bf16,
                                           ov::element::i8,  ov::element::u8,  ov::element::i32,
                                           ov::element::i64, ov::element::boolean, ov::element::f64};

int32_t dtype_of(const ov::element::Type &type) {
    for (size_t i = 0; i < std::size(ELEMENT_TYPES); ++i)
        if (ELEMENT_TYPES[i] == type) return static_cast<int32_t>(i);
    OPENVINO_THROW("a kernel of the domain edge does not take ", type);
}

void set_shape(edge_tensor &tensor, const ov::element::Type &type, const std::vector<size_t> &shape) {
    OPENVINO_ASSERT(shape.size() <= EDGE_MAX_RANK, "a kernel of the domain edge takes fewer axes");
    tensor = {};
    tensor.dtype = dtype_of(type);
    tensor.rank = static_cast<int32_t>(shape.size());
    int64_t step = 1;
    for (size_t axis = shape.size(); axis-- > 0;) {
        tensor.shape[axis] = static_cast<int64_t>(shape[axis]);
        tensor.strides[axis] = step;
        step *= tensor.shape[axis];
    }
}

std::vector<size_t> shape_of(const edge_tensor &tensor) { return {tensor.shape, tensor.shape + tensor.rank}; }

constexpr char LETTERS[] = "feEbBil?d";  // as in edge_kernel.types

bool is_byte(int32_t dtype) { return dtype == EDGE_UINT8 || dtype == EDGE_BOOL; }

// OpenVINO's CPU carries some dtypes as others, such as int64 as int32, and flags as bytes. Values are converted where
// what comes is not what the model says.
template <class From, class To>
void convert(const void *from, void *to, size_t count) {
    for (size_t i = 0; i < count; ++i)
        static_cast<To *>(to)[i] = static_cast<To>(static_cast<const From *>(from)[i]);
}

template <class From>
bool convert_to(int32_t dtype, const void *from, void *to, size_t count) {
    switch (dtype) {
        case EDGE_FLOAT32: convert<From, float>(from, to, count); return true;
        case EDGE_FLOAT16: convert<From, ov::float16>(from, to, count); return true;
        case EDGE_BFLOAT16: convert<From, ov::bfloat16>(from, to, count); return true;
        case EDGE_FLOAT64: convert<From, double>(from, to, count); return true;
        case EDGE_INT8: convert<From, int8_t>(from, to, count); return true;
        case EDGE_UINT8: convert<From, uint8_t>(from, to, count); return true;
        case EDGE_INT32: convert<From, int32_t>(from, to, count); return true;
        case EDGE_INT64: convert<From, int64_t>(from, to, count); return true;
        default: return false;
    }
}

void converted(int32_t from_dtype, const void *from, int32_t to_dtype, void *to, size_t count) {
    const auto done = [&] {
        switch (from_dtype) {
            case EDGE_FLOAT32: return convert_to<float>(to_dtype, from, to, count);
            case EDGE_FLOAT16: return convert_to<ov::float16>(to_dtype, from, to, count);
            case EDGE_BFLOAT16: return convert_to<ov::bfloat16>(to_dtype, from, to, count);
            case EDGE_FLOAT64: return convert_to<double>(to_dtype, from, to, count);
            case EDGE_INT8: return convert_to<int8_t>(to_dtype, from, to, count);
            case EDGE_UINT8: return convert_to<uint8_t>(to_dtype, from, to, count);
            case EDGE_INT32: return convert_to<int32_t>(to_dtype, from, to, count);
            case EDGE_INT64: return convert_to<int64_t>(to_dtype, from, to, count);
            default: return false;
        }
    }();
    OPENVINO_ASSERT(done, "a kernel of the domain edge gets a dtype that it cannot take");
}

// What one kernel is to OpenVINO.
struct Kind {
    const edge_kernel *kernel;
    std::string name;
    ov::DiscreteTypeInfo info;

    explicit Kind(const edge_kernel *row) : kernel(row), name(row->name), info(name.c_str(), "edge") {
        info.hash();
    }
};

class Operation : public ov::op::Op {
  public:
    // `given` has one letter for each input of the kernel: its dtype in the model, '0' where it is left out.
    Operation(const Kind *kind, const ov::OutputVector &inputs, std::string given, std::vector<edge_value> attributes)
        : ov::op::Op(inputs), kind_(kind), given_(std::move(given)), attributes_(std::move(attributes)) {
        constructor_validate_and_infer_types();
    }

    explicit Operation(const Kind *kind) : kind_(kind), attributes_(count_attributes(kind)) {}

    const ov::DiscreteTypeInfo &get_type_info() const override { return kind_->info; }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector &inputs) const override {
        return std::make_shared<Operation>(kind_, inputs, given_, attributes_);
    }

    bool visit_attributes(ov::AttributeVisitor &visitor) override {
        visitor.on_attribute("given", given_);
        for (size_t i = 0; i < attributes_.size(); ++i) {
            const edge_attribute &attribute = kind_->kernel->attributes[i];
            if (attribute.is_number != 0)
                visitor.on_attribute(attribute.name, attributes_[i].number);
            else
                visitor.on_attribute(attribute.name, attributes_[i].integer);
        }
        return true;
    }

    void validate_and_infer_types() override {
        bool is_static = true;
        for (size_t i = 0; i < get_input_size(); ++i) is_static = is_static && get_input_partial_shape(i).is_static();
        const char *message = nullptr;
        std::vector<edge_tensor> found = is_static ? asked([](size_t, size_t) { return 0; }, &message) : probed();
        check(message);
        for (size_t i = 0; i < found.size(); ++i) {
            ov::PartialShape shape(std::vector<ov::Dimension>(static_cast<size_t>(found[i].rank)));
            for (int32_t axis = 0; axis < found[i].rank; ++axis)
                if (found[i].shape[axis] >= 0) shape[static_cast<size_t>(axis)] = found[i].shape[axis];
            set_output_type(i, ELEMENT_TYPES[found[i].dtype], shape);
        }
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector &outputs, const ov::TensorVector &inputs) const override {
        std::vector<edge_tensor> in, out(static_cast<size_t>(kind_->kernel->outputs));
        std::vector<std::vector<char>> held;  // what was converted
        size_t next = 0;
        for (char letter : given_) {
            in.emplace_back();
            in.back().dtype = EDGE_NONE;
            if (letter == '0') continue;
            take(inputs[next++], dtype_of_letter(letter), in.back(), held);
        }
        check(kind_->kernel->shape(in.data(), static_cast<int32_t>(in.size()), attributes_.data(), out.data()));
        for (size_t i = 0; i < out.size(); ++i) {
            const std::vector<size_t> shape = shape_of(out[i]);
            outputs[i].set_shape(shape);
            set_shape(out[i], ELEMENT_TYPES[out[i].dtype], shape);
            const int32_t carried = dtype_of(outputs[i].get_element_type());
            if (carried == out[i].dtype || (is_byte(carried) && is_byte(out[i].dtype))) {
                out[i].data = outputs[i].data();
            } else {
                held.emplace_back(ov::shape_size(shape) * ELEMENT_TYPES[out[i].dtype].size() + 1);
                out[i].data = held.back().data();
            }
        }
        const edge_pool pool{nullptr, tbb::this_task_arena::max_concurrency(), run_tasks};
        check(kind_->kernel->run(&pool, in.data(), static_cast<int32_t>(in.size()), attributes_.data(), out.data()));
        for (size_t i = 0; i < out.size(); ++i)
            if (out[i].data != outputs[i].data())
                converted(out[i].dtype, out[i].data, dtype_of(outputs[i].get_element_type()), outputs[i].data(),
                          outputs[i].get_size());
        return true;
    }

  private:
    static std::vector<edge_value> count_attributes(const Kind *kind) {
        std::vector<edge_value> values;
        for (const edge_attribute *a = kind->kernel->attributes; a != nullptr && a->name != nullptr; ++a)
            values.emplace_back();
        return values;
    }

    static void run_tasks(void *, int32_t tasks, void (*task)(void *, int32_t), void *argument) {
        tbb::parallel_for(0, tasks, [&](int32_t index) { task(argument, index); });
    }

    static int32_t dtype_of_letter(char letter) {
        const char *place = std::strchr(LETTERS, letter);
        OPENVINO_ASSERT(place != nullptr && letter != '\0', "no dtype is called ", letter);
        return static_cast<int32_t>(place - LETTERS);
    }

    // The tensor as the kernel wants it; a copy in `held` where it comes in another dtype.
    static void take(const ov::Tensor &tensor, int32_t wanted, edge_tensor &to, std::vector<std::vector<char>> &held) {
        const int32_t carried = dtype_of(tensor.get_element_type());
        set_shape(to, ELEMENT_TYPES[wanted], tensor.get_shape());
        if (carried == wanted || (is_byte(carried) && is_byte(wanted))) {
            set_strides(to, tensor);
            to.data = const_cast<void *>(static_cast<const void *>(tensor.data()));
            return;
        }
        OPENVINO_ASSERT(tensor.is_continuous(), "a kernel of the domain edge gets a view in another dtype");
        held.emplace_back(tensor.get_size() * ELEMENT_TYPES[wanted].size() + 1);
        to.data = held.back().data();
        converted(carried, tensor.data(), wanted, to.data, tensor.get_size());
    }

    static void set_strides(edge_tensor &to, const ov::Tensor &tensor) {
        if (tensor.get_size() == 0) return;
        const ov::Strides bytes = tensor.get_strides();
        const size_t width = tensor.get_element_type().size();
        for (size_t axis = 0; axis < bytes.size(); ++axis) to.strides[axis] = static_cast<int64_t>(bytes[axis] / width);
    }

    void check(const char *message) const {
        if (message != nullptr) OPENVINO_THROW("edge::", kind_->kernel->name, ": ", message);
    }

    // The outputs where `size(input, axis)` takes the place of each size that is not known; empty with a message where
    // the kernel refuses that.
    template <class Size>
    std::vector<edge_tensor> asked(const Size &size, const char **message) const {
        std::vector<edge_tensor> in, out(static_cast<size_t>(kind_->kernel->outputs));
        size_t next = 0;
        for (char letter : given_) {
            in.emplace_back();
            in.back().dtype = EDGE_NONE;
            if (letter == '0') continue;
            const ov::PartialShape &partial = get_input_partial_shape(next);
            OPENVINO_ASSERT(partial.rank().is_static(), "edge::", kind_->kernel->name, " needs a known number of axes");
            std::vector<size_t> shape;
            for (size_t axis = 0; axis < partial.size(); ++axis)
                shape.push_back(partial[axis].is_static() ? static_cast<size_t>(partial[axis].get_length())
                                                          : size(next, axis));
            set_shape(in.back(), ELEMENT_TYPES[dtype_of_letter(letter)], shape);
            ++next;
        }
        *message = kind_->kernel->shape(in.data(), static_cast<int32_t>(in.size()), attributes_.data(), out.data());
        return *message == nullptr ? out : std::vector<edge_tensor>{};
    }

    // The known sizes of all inputs, whole numbers among the attributes, and some usual sizes.
    std::vector<size_t> sizes() const {
        std::vector<size_t> all{2, 3, 1, 16, 32, 64, 128, 256, 48, 96, 0};
        for (size_t i = 0; i < get_input_size(); ++i)
            for (const ov::Dimension &dimension : get_input_partial_shape(i))
                if (dimension.is_static()) all.push_back(static_cast<size_t>(dimension.get_length()));
        for (size_t i = 0; i < attributes_.size(); ++i) {
            const int64_t number = attributes_[i].integer;
            if (kind_->kernel->attributes[i].is_number == 0 && number >= 0 && number < int64_t{1} << 31)
                all.push_back(static_cast<size_t>(number));
        }
        return all;
    }

    // A size that another input with as many axes has at this one, else `otherwise`.
    size_t alike(size_t input, size_t axis, size_t otherwise) const {
        const size_t rank = get_input_partial_shape(input).size();
        for (size_t i = 0; i < get_input_size(); ++i) {
            const ov::PartialShape &other = get_input_partial_shape(i);
            if (i != input && other.size() == rank && other[axis].is_static())
                return static_cast<size_t>(other[axis].get_length());
        }
        return otherwise;
    }

    // The outputs where some sizes are not known. A kernel's rule is a function of sizes, so it is asked about many:
    // what differs between the answers varies, which is -1. Sizes that belong together are found by trying: one for
    // all, then those of inputs that look alike, then any; from what is taken, some are changed together.
    std::vector<edge_tensor> probed() const {
        const std::vector<size_t> all = sizes();
        std::vector<edge_tensor> found;
        std::vector<size_t> base;
        const char *message = nullptr;
        const auto attempt = [&](const std::vector<size_t> &tried) {
            const std::vector<edge_tensor> one = asked(
                [&](size_t input, size_t axis) { return tried[input * EDGE_MAX_RANK + axis]; }, &message);
            if (one.empty()) return;
            if (found.empty()) found = one, base = tried;
            for (size_t i = 0; i < one.size(); ++i)
                for (int32_t axis = 0; axis < found[i].rank; ++axis)
                    if (found[i].shape[axis] != one[i].shape[axis]) found[i].shape[axis] = -1;
        };
        uint64_t state = 1;
        const auto draw = [&state](size_t below) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            return static_cast<size_t>((state >> 33) % below);
        };
        std::vector<size_t> tried(get_input_size() * EDGE_MAX_RANK);
        for (size_t size : all) {
            std::fill(tried.begin(), tried.end(), size);
            attempt(tried);
            for (size_t input = 0; input < get_input_size(); ++input)
                for (size_t axis = 0; axis < get_input_partial_shape(input).size(); ++axis)
                    tried[input * EDGE_MAX_RANK + axis] = alike(input, axis, size);
            attempt(tried);
        }
        for (int tries = 0; found.empty() && tries < 20000; ++tries) {
            for (size_t &size : tried) size = all[draw(all.size())];
            attempt(tried);
        }
        if (found.empty()) OPENVINO_THROW("edge::", kind_->kernel->name, " takes no sizes that were tried: ", message);
        for (int tries = 0; tries < 2000; ++tries) {
            tried = base;
            const size_t size = all[draw(all.size())], share = 1 + draw(4);
            for (size_t &one : tried)
                if (draw(share + 1) == 0) one = size;
            attempt(tried);
        }
        return found;
    }

    const Kind *kind_;
    std::string given_;
    std::vector<edge_value> attributes_;
};

class OperationExtension : public ov::BaseOpExtension {
  public:
    explicit OperationExtension(const Kind *kind) : kind_(kind) {}

    const ov::DiscreteTypeInfo &get_type_info() const override { return kind_->info; }

    ov::OutputVector create(const ov::OutputVector &inputs, ov::AttributeVisitor &visitor) const override {
        auto node = std::make_shared<Operation>(kind_);
        node->set_arguments(inputs);
        if (node->visit_attributes(visitor)) node->constructor_validate_and_infer_types();
        return node->outputs();
    }

    std::vector<ov::Extension::Ptr> get_attached_extensions() const override { return {}; }

  private:
    const Kind *kind_;
};

ov::OutputVector translate(const Kind *kind, const ov::frontend::NodeContext &node) {
    ov::OutputVector inputs;
    std::string given;
    for (size_t i = 0; i < node.get_input_size(); ++i) {
        const ov::Output<ov::Node> input = node.get_input(static_cast<int>(i));
        const bool is_null = std::strcmp(input.get_node()->get_type_name(), "NullNode") == 0;
        given += is_null ? '0' : LETTERS[dtype_of(input.get_element_type())];
        if (!is_null) inputs.push_back(input);
    }
    std::vector<edge_value> values;
    for (const edge_attribute *a = kind->kernel->attributes; a != nullptr && a->name != nullptr; ++a) {
        edge_value value{};
        if (a->is_number != 0)
            value.number = node.get_attribute<float>(a->name);
        else
            value.integer = node.get_attribute<int64_t>(a->name);
        values.push_back(value);
    }
    return std::make_shared<Operation>(kind, inputs, given, values)->outputs();
}

const std::vector<std::unique_ptr<Kind>> &kinds() {
    static const auto found = [] {
        std::vector<std::unique_ptr<Kind>> made;
        void *library = dlopen(EDGE_LIBRARY, RTLD_NOW | RTLD_LOCAL);
        OPENVINO_ASSERT(library != nullptr, "the library of kernels cannot be loaded: ", dlerror());
        using Table = const edge_kernel *const *(*)(int32_t *);
        using Version = int32_t (*)();
        const auto version = reinterpret_cast<Version>(dlsym(library, "edge_abi_version"));
        const auto table = reinterpret_cast<Table>(dlsym(library, "edge_kernels"));
        OPENVINO_ASSERT(version != nullptr && table != nullptr && version() == EDGE_ABI_VERSION,
                        "the library of kernels has another interface: ", EDGE_LIBRARY);
        int32_t count = 0;
        const edge_kernel *const *rows = table(&count);
        for (int32_t i = 0; i < count; ++i) made.push_back(std::make_unique<Kind>(rows[i]));
        return made;
    }();
    return found;
}

std::vector<ov::Extension::Ptr> extensions() {
    std::vector<ov::Extension::Ptr> all;
    for (const auto &kind : kinds()) {
        const Kind *one = kind.get();
        all.push_back(std::make_shared<OperationExtension>(one));
        all.push_back(std::make_shared<ov::frontend::onnx::ConversionExtension>(
            one->name, "edge", [one](const ov::frontend::NodeContext &node) { return translate(one, node); }));
    }
    return all;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(extensions())
