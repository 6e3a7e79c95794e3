// Reads `edge_kernel.types`. Internal linkage, as in pool.h.
#ifndef EDGE_TYPES_H
#define EDGE_TYPES_H

#include <string>
#include <vector>

#include "edge.h"

namespace edge {
namespace {

// The dtypes of inputs and outputs of one alternative.
struct Types {
    std::vector<int32_t> inputs, outputs;
};

// The dtype of a letter; EDGE_NONE where it is none.
inline int32_t dtype_of(char letter) {
    const std::string letters = "feEbBil?d";
    const size_t place = letters.find(letter);
    return place == std::string::npos ? EDGE_NONE : static_cast<int32_t>(place);
}

inline std::vector<Types> types_of(const edge_kernel &kernel) {
    std::vector<Types> found;
    if (kernel.types == nullptr) return found;
    bool new_one = true, in_outputs = false;
    for (const char *at = kernel.types; *at != '\0'; ++at) {
        if (*at == ' ') {
            new_one = true;
            continue;
        }
        if (new_one) {
            found.emplace_back();
            new_one = in_outputs = false;
        }
        if (*at == '>')
            in_outputs = true;
        else
            (in_outputs ? found.back().outputs : found.back().inputs).push_back(dtype_of(*at));
    }
    return found;
}

}  // namespace
}  // namespace edge

#endif
