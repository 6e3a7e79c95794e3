// The test of a drafted chain: which of its tokens stay, and what comes after them.
#ifndef EDGE_SAMPLE_CHAIN_H
#define EDGE_SAMPLE_CHAIN_H

#include <vector>

#include "functions.h"
#include "tensors.h"

namespace edge {
namespace {

// logits [r, v], tokens [r - 1], uniforms [r, 2], and proposals [r - 1, v] where the draft was drawn.
constexpr const char *EXPECTED[] = {
    "logits: expected float32 or float64 [rows, vocabulary] with at least one row", "tokens: expected int64 [rows - 1]",
    "uniforms: expected float64 [rows, 2]", "proposals: expected float64 [rows - 1, vocabulary]"};

// What does not depend on sizes: engines ask for shapes before they know them.
inline const char *check_types(const edge_tensor *inputs, int32_t input_count) {
    for (int32_t i = 0; i < 4; ++i) {
        if (!is_given(inputs, input_count, i)) continue;
        const bool real = inputs[i].dtype == EDGE_FLOAT64 || inputs[i].dtype == EDGE_FLOAT32;
        if (inputs[i].rank != (i == 1 ? 1 : 2) || !(i == 1 ? is_integer(inputs[i]) : real)) return EXPECTED[i];
    }
    return nullptr;
}

inline const char *check_chain(const edge_tensor *inputs, int32_t input_count) {
    const char *wrong = check_types(inputs, input_count);
    if (wrong != nullptr) return wrong;
    const int64_t rows = inputs[0].shape[0], vocabulary = inputs[0].shape[1];
    if (rows < 1) return EXPECTED[0];
    if (inputs[1].shape[0] != rows - 1) return EXPECTED[1];
    if (inputs[2].shape[0] != rows || inputs[2].shape[1] != 2) return EXPECTED[2];
    if (!is_given(inputs, input_count, 3)) return nullptr;
    return inputs[3].shape[0] != rows - 1 || inputs[3].shape[1] != vocabulary ? EXPECTED[3] : nullptr;
}

// An engine may have narrowed float64 to float32.
inline double number_at(const edge_tensor &tensor, int64_t i, int64_t j) {
    const int64_t offset = i * tensor.strides[0] + j * tensor.strides[1];
    return tensor.dtype == EDGE_FLOAT32 ? static_cast<double>(static_cast<const float *>(tensor.data)[offset])
                                        : static_cast<const double *>(tensor.data)[offset];
}

// Row `i`, where it lies or copied.
template <class T>
inline const T *dense_row(const edge_tensor &tensor, int64_t i, std::vector<T> &copy) {
    const int64_t n = tensor.shape[1];
    const bool same = tensor.dtype == (sizeof(T) == sizeof(float) ? EDGE_FLOAT32 : EDGE_FLOAT64);
    if (same && (tensor.strides[1] == 1 || n <= 1)) return static_cast<const T *>(tensor.data) + i * tensor.strides[0];
    copy.resize(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) copy[static_cast<size_t>(j)] = static_cast<T>(number_at(tensor, i, j));
    return copy.data();
}

// min(1, p / q), where 0 / 0 is 0.
inline double ratio(double p, double q) { return p > 0 && q > 0 ? (p / q < 1 ? p / q : 1.0) : 0.0; }

class Chain {
  public:
    Chain(const SampleFunctions &functions, const Truncation &truncation, const edge_tensor *inputs, bool drawn)
        : functions_(functions), truncation_(truncation), inputs_(inputs), drawn_(drawn),
          drafts_(inputs[1].shape[0]), n_(inputs[0].shape[1]) {}

    // The token after row `i`, and whether it is the drafted one.
    int64_t step(int64_t i, bool &accepted) {
        const edge_tensor &logits = inputs_[0];
        const void *row = logits.dtype == EDGE_FLOAT32 ? static_cast<const void *>(dense_row(logits, i, floats_))
                                                       : dense_row(logits, i, doubles_);
        const double emit = number_at(inputs_[2], i, 0), test = number_at(inputs_[2], i, 1);
        const int64_t drafted = i < drafts_ ? integer_at(inputs_[1], i * inputs_[1].strides[0]) : -1;
        accepted = false;
        if (!drawn_ || i == drafts_) {
            const int64_t token = functions_.draw(row, logits.dtype, n_, truncation_, emit);
            accepted = token >= 0 && token == drafted;
            return token;
        }
        p_.resize(static_cast<size_t>(n_));
        if (!functions_.row(row, logits.dtype, n_, truncation_, p_.data())) return -1;
        const double *q = dense_row(inputs_[3], i, q_);
        if (drafted >= 0 && drafted < n_ && test < ratio(p_[static_cast<size_t>(drafted)], q[drafted])) {
            accepted = true;
            return drafted;
        }
        left_.resize(static_cast<size_t>(n_));
        functions_.residual(p_.data(), q, n_, left_.data());
        return functions_.pick(left_.data(), n_, emit);
    }

  private:
    const SampleFunctions &functions_;
    const Truncation &truncation_;
    const edge_tensor *inputs_;
    bool drawn_;
    int64_t drafts_, n_;
    std::vector<float> floats_;
    std::vector<double> doubles_, p_, q_, left_;
};

inline void verify_chain(const SampleFunctions &functions, const Truncation &truncation, const edge_tensor *inputs,
                         int32_t input_count, int64_t *tokens, int64_t *count) {
    Chain chain(functions, truncation, inputs, is_given(inputs, input_count, 3));
    const int64_t rows = inputs[0].shape[0];
    for (int64_t i = 0; i < rows; ++i) tokens[i] = -1;
    *count = 0;
    bool accepted = true;
    for (int64_t i = 0; i < rows && accepted; ++i) {
        tokens[i] = chain.step(i, accepted);
        *count += accepted;
    }
}

}  // namespace
}  // namespace edge

#endif
