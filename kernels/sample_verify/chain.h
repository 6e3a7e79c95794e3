// The test of a drafted chain: which of its tokens stay, and what comes after them.
#ifndef EDGE_SAMPLE_CHAIN_H
#define EDGE_SAMPLE_CHAIN_H

#include <vector>

#include "functions.h"
#include "tensors.h"

namespace edge {
namespace {

// logits [r, v], tokens [r - 1], uniforms [r, 2], and proposals [r - 1, v] where the draft was drawn.
inline const char *check_chain(const edge_tensor *inputs, int32_t input_count) {
    const edge_tensor &logits = inputs[0], &tokens = inputs[1], &uniforms = inputs[2];
    if (logits.rank != 2 || (logits.dtype != EDGE_FLOAT32 && logits.dtype != EDGE_FLOAT64) || logits.shape[0] < 1)
        return "logits: expected float32 or float64 [rows, vocabulary] with at least one row";
    if (tokens.rank != 1 || tokens.dtype != EDGE_INT64 || tokens.shape[0] != logits.shape[0] - 1)
        return "tokens: expected int64 [rows - 1]";
    if (uniforms.rank != 2 || uniforms.dtype != EDGE_FLOAT64 || uniforms.shape[0] != logits.shape[0] ||
        uniforms.shape[1] != 2)
        return "uniforms: expected float64 [rows, 2]";
    if (!is_given(inputs, input_count, 3)) return nullptr;
    const edge_tensor &proposals = inputs[3];
    if (proposals.rank != 2 || proposals.dtype != EDGE_FLOAT64 || proposals.shape[0] != tokens.shape[0] ||
        proposals.shape[1] != logits.shape[1])
        return "proposals: expected float64 [rows - 1, vocabulary]";
    return nullptr;
}

template <class T>
inline const T *place(const edge_tensor &tensor, int64_t i, int64_t j = 0) {
    return static_cast<const T *>(tensor.data) + i * tensor.strides[0] + j * (tensor.rank > 1 ? tensor.strides[1] : 0);
}

template <class T>
inline const T *dense_row(const edge_tensor &tensor, int64_t i, std::vector<T> &copy) {
    const int64_t n = tensor.shape[1];
    if (tensor.strides[1] == 1 || n <= 1) return place<T>(tensor, i);
    copy.resize(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) copy[static_cast<size_t>(j)] = *place<T>(tensor, i, j);
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
        const double emit = *place<double>(inputs_[2], i, 0), test = *place<double>(inputs_[2], i, 1);
        const int64_t drafted = i < drafts_ ? *place<int64_t>(inputs_[1], i) : -1;
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
