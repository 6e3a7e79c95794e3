// The table of all kernels, and what the library says of itself.
#include "edge.h"

// CMake writes one line `EDGE_KERNEL(name)` for each folder that has native code.
#define EDGE_KERNEL(name) extern "C" const edge_kernel edge_kernel_##name;
#include "edge_kernels.inc"
#undef EDGE_KERNEL

namespace {
const edge_kernel *const TABLE[] = {
#define EDGE_KERNEL(name) &edge_kernel_##name,
#include "edge_kernels.inc"
#undef EDGE_KERNEL
    nullptr,
};
}  // namespace

extern "C" {

// All rows; `count` gets their number.
EDGE_EXPORT const edge_kernel *const *edge_kernels(int32_t *count) noexcept {
    *count = static_cast<int32_t>(sizeof TABLE / sizeof *TABLE) - 1;
    return TABLE;
}

EDGE_EXPORT int32_t edge_abi_version(void) noexcept { return EDGE_ABI_VERSION; }
}
