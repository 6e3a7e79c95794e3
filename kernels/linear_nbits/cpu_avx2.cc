// AVX2: vpmaddubsw adds pairs of products in 16 bits. As many quads are added there as cannot overflow. Half a tile, 8
// columns, at a time; a vector is unpacked once for up to 4 rows.
#include <immintrin.h>

#include "activations.h"

namespace edge {
namespace {

using I = __m256i;

inline I at(const uint8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const I *>(from)); }

// The half vectors of one unit: `get<J>` is the one of quad J. FLUSH: units that 16 bits hold the sums of.
template <int BITS>
struct Unit;

template <>
struct Unit<8> {
    static constexpr int QUADS = 1, BYTES = 64, FLUSH = 1;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }  // signed
};

template <>
struct Unit<4> {
    static constexpr int QUADS = 2, BYTES = 64, FLUSH = 4;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return _mm256_and_si256(J ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15)); }
};

template <>
struct Unit<2> {
    static constexpr int QUADS = 4, BYTES = 64, FLUSH = 8;
    I v;
    void load(const uint8_t *from) { v = at(from); }
    template <int J>
    I get() const { return _mm256_and_si256(J ? _mm256_srli_epi16(v, 2 * J) : v, _mm256_set1_epi8(3)); }
};

template <>
struct Unit<3> {
    static constexpr int QUADS = 8, BYTES = 192, FLUSH = 2;
    I low[2], high;
    void load(const uint8_t *from) { low[0] = at(from), low[1] = at(from + 64), high = at(from + 128); }
    template <int J>
    I get() const {
        const I two = J % 4 ? _mm256_srli_epi16(low[J / 4], 2 * (J % 4)) : low[J / 4];
        const I third = J < 2 ? _mm256_slli_epi16(high, 2 - J) : _mm256_srli_epi16(high, J - 2);
        return _mm256_or_si256(_mm256_and_si256(two, _mm256_set1_epi8(3)), _mm256_and_si256(third, _mm256_set1_epi8(4)));
    }
};

// Pairs of products of weights and activations. With 8 bits the weights are signed, and their signs move over.
template <int BITS>
inline I products(I w, I x) {
    if constexpr (BITS == 8) return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_maddubs_epi16(w, x);
}

template <int BITS, int R, int J = 0>
[[gnu::always_inline]] inline void add_unit(const Unit<BITS> &unit, const int32_t *a, int64_t rows, I (&pairs)[R]) {
    if constexpr (J < Unit<BITS>::QUADS) {
        const I w = unit.template get<J>();
        for (int r = 0; r < R; ++r)
            pairs[r] = _mm256_add_epi16(pairs[r], products<BITS>(w, _mm256_set1_epi32(a[J * rows + r])));
        add_unit<BITS, R, J + 1>(unit, a, rows, pairs);
    }
}

// Half a tile and R rows of a part: where they begin.
struct Half {
    const linear_nbits_call *call;
    const uint8_t *weight, *zeros;
    int64_t scale, column;  // `scale`: index of its first one
    Place x;
};

// Minus the zero points times the sums of the activations. Weights of 8 bits are 128 less than they were.
template <int BITS>
inline I begin(const Half &at, int64_t group, int32_t sum) {
    if (at.zeros == nullptr) return BITS == 8 ? _mm256_setzero_si256() : _mm256_set1_epi32(sum);
    const I zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(at.zeros + group * 16)));
    return _mm256_mullo_epi32(_mm256_sub_epi32(zero, _mm256_set1_epi32(BITS == 8 ? 128 : 0)), _mm256_set1_epi32(sum));
}

template <int BITS, int R>
void multiply(const Half &at) {
    using U = Unit<BITS>;
    const linear_nbits_call *call = at.call;
    const int64_t units = call->block / (4 * U::QUADS), ratio = call->group / call->block;
    const I ones = _mm256_set1_epi16(1);
    const uint8_t *weight = at.weight;
    const int32_t *a = call->quads + at.x.quad, *sums = call->sums + at.x.block;
    const float *steps = call->steps + at.x.block;
    __m256 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm256_setzero_ps();
    for (int64_t b = 0; b < call->depth / call->block; ++b) {
        const int64_t group = b / ratio;
        I sum[R];
        for (int r = 0; r < R; ++r) sum[r] = begin<BITS>(at, group, sums[b * at.x.rows + r]);
        for (int64_t u = 0; u < units; u += U::FLUSH) {
            I pairs[R];
            for (int r = 0; r < R; ++r) pairs[r] = _mm256_setzero_si256();
            for (int64_t i = u; i < u + U::FLUSH && i < units; ++i) {
                U unit;
                unit.load(weight);
                add_unit<BITS, R>(unit, a, at.x.rows, pairs);
                weight += U::BYTES;
                a += U::QUADS * at.x.rows;
            }
            for (int r = 0; r < R; ++r) sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(pairs[r], ones));
        }
        const __m256 scale = (__m256)scales_at(call, at.scale + group * 16);
        for (int r = 0; r < R; ++r) {
            const __m256 step = _mm256_set1_ps(steps[b * at.x.rows + r]);
            total[r] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[r]), step), scale, total[r]);
        }
    }
    for (int r = 0; r < R; ++r) put(call, at.x.row + r, at.column, (Floats)total[r]);
}

// The rows of a part, 4 at a time.
template <int BITS>
void run_part(const linear_nbits_call *call, int64_t tile, int64_t part, int64_t rows) {
    static constexpr void (*BY_ROWS[4])(const Half &) = {multiply<BITS, 1>, multiply<BITS, 2>, multiply<BITS, 3>,
                                                         multiply<BITS, 4>};
    for (int64_t half = 0; half < 16 && tile * 16 + half < call->columns; half += 8) {
        const int64_t scale = tile * (call->depth / call->group) * 16 + half;
        for (int64_t r = 0; r < rows; r += 4) {
            const Half at{call, call->weight + tile * 2 * BITS * call->depth + half * 4,
                          call->zeros == nullptr ? nullptr : call->zeros + scale, scale, tile * 16 + half,
                          place_of(call, part + r)};
            BY_ROWS[(rows - r < 4 ? rows - r : 4) - 1](at);
        }
    }
}

void run(const linear_nbits_call *call, int64_t start, int64_t stop) {
    by_bits(call, [=](auto bits) {
        for (int64_t tile = start; tile < stop; ++tile)
            by_parts(call, [=](int64_t part, int64_t rows) { run_part<decltype(bits)::VALUE>(call, tile, part, rows); });
    });
}

}  // namespace
}  // namespace edge

extern "C" const linear_nbits_code linear_nbits_avx2 = {edge::quantize_row, edge::run};
