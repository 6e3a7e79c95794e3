#include "cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "edge.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace edge {
namespace {

const char *const NAMES[] = {"portable", "neon", "avx2", "avx512", "amx"};

#if defined(__x86_64__)

struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf cpuid(unsigned leaf, unsigned sub) noexcept {
    Leaf found;
    __get_cpuid_count(leaf, sub, &found.a, &found.b, &found.c, &found.d);
    return found;
}

bool has(unsigned word, std::initializer_list<int> bits) noexcept {
    for (int bit : bits)
        if (!(word >> bit & 1)) return false;
    return true;
}

// The register files that the operating system saves (XCR0); 0 where it does not say.
unsigned saved_registers() noexcept {
    if (!has(cpuid(1, 0).c, {27})) return 0;  // OSXSAVE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Linux gives the 8 KiB of tile registers only to processes that ask for them.
bool tiles_granted() noexcept {
#if defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return false;
#endif
}

Isa detect() noexcept {
    const unsigned saved = saved_registers();
    const Leaf basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
    const bool avx2 = has(saved, {1, 2}) && has(basic.c, {12, 28, 29}) && has(extended.b, {3, 5, 8});
    if (!avx2) return Isa::portable;
    const bool avx512 = has(saved, {5, 6, 7}) && has(extended.b, {16, 17, 30, 31}) && has(extended.c, {11});
    if (!avx512) return Isa::avx2;
    const bool amx = has(saved, {17, 18}) && has(extended.d, {22, 24, 25}) && has(more.a, {5});
    return amx && tiles_granted() ? Isa::amx : Isa::avx512;
}

#elif defined(__aarch64__)

Isa detect() noexcept { return Isa::neon; }  // part of the base architecture

#else

Isa detect() noexcept { return Isa::portable; }

#endif

Isa best() noexcept {
    static const Isa found = detect();
    return found;
}

// AMX code has passed its tests on emulated tiles alone: it is taken where it is asked for.
Isa usual() noexcept { return best() == Isa::amx ? Isa::avx512 : best(); }

Isa capped() noexcept {
    const char *wanted = std::getenv("EDGE_ISA");
    if (wanted == nullptr) return usual();
    for (int level = 0; level <= static_cast<int>(best()); ++level)
        if (std::strcmp(wanted, NAMES[level]) == 0) return static_cast<Isa>(level);
    return usual();  // a level above what is there, or no level at all: no cap
}

std::atomic<int> current{-1};

}  // namespace

Isa isa() noexcept {
    int level = current.load(std::memory_order_relaxed);
    if (level < 0) {
        level = static_cast<int>(capped());
        current.store(level, std::memory_order_relaxed);
    }
    return static_cast<Isa>(level);
}

const char *isa_name(Isa level) noexcept { return NAMES[static_cast<int>(level)]; }

}  // namespace edge

extern "C" {
EDGE_EXPORT const char *edge_isa(void) noexcept { return edge::isa_name(edge::isa()); }
EDGE_EXPORT const char *edge_isa_best(void) noexcept { return edge::isa_name(edge::best()); }
EDGE_EXPORT void edge_isa_reload(void) noexcept {
    edge::current.store(static_cast<int>(edge::capped()), std::memory_order_relaxed);
}
}
