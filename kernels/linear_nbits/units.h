// The vectors of packed weights, for AVX-512. Internal linkage: the files that include this are compiled for different
// instruction sets.
#ifndef EDGE_LINEAR_NBITS_UNITS_H
#define EDGE_LINEAR_NBITS_UNITS_H

#include "activations.h"

namespace edge {
namespace {

using I = __m512i;

inline I at(const uint8_t *from) { return _mm512_loadu_si512(from); }

// The vectors of one unit: `get<J>` is the one of quad J.
template <int BITS>
struct Unit;

template <>
struct Unit<8> {
    static constexpr int QUADS = 1, BYTES = 64;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return v; }
};

template <>
struct Unit<4> {
    static constexpr int QUADS = 2, BYTES = 64;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return _mm512_and_si512(J ? _mm512_srli_epi16(v, 4) : v, _mm512_set1_epi8(15)); }
};

template <>
struct Unit<2> {
    static constexpr int QUADS = 4, BYTES = 64;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return _mm512_and_si512(J ? _mm512_srli_epi16(v, 2 * J) : v, _mm512_set1_epi8(3)); }
};

template <>
struct Unit<3> {
    static constexpr int QUADS = 8, BYTES = 192;
    I low[2], high;
    void load(const uint8_t *from) { low[0] = at(from), low[1] = at(from + 64), high = at(from + 128); }
    template <int J>
    I get() const {
        const I two = J % 4 ? _mm512_srli_epi16(low[J / 4], 2 * (J % 4)) : low[J / 4];
        const I third = J < 2 ? _mm512_slli_epi16(high, 2 - J) : _mm512_srli_epi16(high, J - 2);
        // (two & 3) | (third & 4)
        const I four = _mm512_and_si512(third, _mm512_set1_epi8(4));
        return _mm512_ternarylogic_epi32(two, _mm512_set1_epi8(3), four, 0xea);
    }
};

}  // namespace
}  // namespace edge

#endif
