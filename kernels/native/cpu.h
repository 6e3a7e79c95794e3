// What this processor runs, found once; the environment variable EDGE_ISA caps it.
#ifndef EDGE_CPU_H
#define EDGE_CPU_H

namespace edge {

// In order: each level includes those before it on the same architecture.
enum class Isa : int {
    portable = 0,
    neon = 1,    // aarch64
    avx2 = 2,    // with FMA, F16C, BMI
    avx512 = 3,  // F, BW, DQ, VL, VNNI
    amx = 4,     // tile, int8, bf16, and AVX-512 BF16
};

// The level that kernels may use: what the processor and the operating system have, at most EDGE_ISA.
Isa isa() noexcept;

const char *isa_name(Isa level) noexcept;

}  // namespace edge

extern "C" {
const char *edge_isa(void) noexcept;      // name of the level in use
const char *edge_isa_best(void) noexcept; // name of the level without a cap
void edge_isa_reload(void) noexcept;      // read EDGE_ISA again
}

#endif
