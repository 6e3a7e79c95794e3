// The tile instructions of AMX in plain C++, for processors that have none: see test_amx.py. What the processor would
// refuse ends the program: no configuration, shapes that do not fit each other.
#ifndef EDGE_TESTS_TILES_IN_C_H
#define EDGE_TESTS_TILES_IN_C_H

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_release

namespace tiles_in_c {
namespace {

struct Register {
    uint8_t data[16][64];
    int rows, bytes;
};

thread_local Register registers[8];
thread_local bool configured = false;

inline Register &at(int number) {
    if (!configured) std::abort();
    return registers[number];
}

// 64 bytes: the palette, from 16 on the bytes of a row of each register, from 48 on their rows.
inline void loadconfig(const void *from) {
    const uint8_t *config = static_cast<const uint8_t *>(from);
    if (config[0] != 1) std::abort();
    configured = true;
    for (int i = 0; i < 8; ++i) {
        uint16_t bytes;
        std::memcpy(&bytes, config + 16 + 2 * i, 2);
        registers[i] = Register{{}, config[48 + i], bytes};
        if (registers[i].rows > 16 || registers[i].bytes > 64) std::abort();
    }
}

inline void loadd(int number, const void *from, size_t stride) {
    Register &to = at(number);
    std::memset(to.data, 0, sizeof to.data);
    for (int r = 0; r < to.rows; ++r)
        std::memcpy(to.data[r], static_cast<const uint8_t *>(from) + static_cast<size_t>(r) * stride, to.bytes);
}

inline void stored(int number, void *to, size_t stride) {
    const Register &from = at(number);
    for (int r = 0; r < from.rows; ++r)
        std::memcpy(static_cast<uint8_t *>(to) + static_cast<size_t>(r) * stride, from.data[r], from.bytes);
}

// c[m][n] += a[m][k] (signed) * b[k][n] (unsigned), 4 bytes of k at a time.
inline void dpbsud(int c, int a, int b) {
    Register &sums = at(c);
    const Register &left = at(a), &right = at(b);
    if (left.bytes / 4 != right.rows || sums.rows != left.rows || sums.bytes != right.bytes) std::abort();
    for (int m = 0; m < left.rows; ++m)
        for (int n = 0; n < right.bytes / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, sums.data[m] + 4 * n, 4);
            for (int k = 0; k < left.bytes; ++k)
                sum += static_cast<int8_t>(left.data[m][k]) * right.data[k / 4][4 * n + k % 4];
            std::memcpy(sums.data[m] + 4 * n, &sum, 4);
        }
}

inline void release() { configured = false; }

}  // namespace
}  // namespace tiles_in_c

#define _tile_loadconfig tiles_in_c::loadconfig
#define _tile_loadd tiles_in_c::loadd
#define _tile_stored tiles_in_c::stored
#define _tile_dpbsud tiles_in_c::dpbsud
#define _tile_release tiles_in_c::release

#endif
