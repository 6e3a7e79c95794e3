// AVX-512 VNNI: vpdpbusd multiplies a vector of weights (unsigned) by one quad of activations (signed), which all
// columns share. A vector is unpacked once for up to 8 rows.
#include "units.h"

namespace edge {
namespace {

// How far ahead a tile's weights are fetched into the nearest cache, in bytes; the tiles after these come into the next
// one meanwhile. Without it memory delivers only while nothing is computed.
constexpr int64_t AHEAD = 2048;

// Where the weights, scales and zeros of one tile begin, and its part of the work: C tiles side by side, R rows.
struct Tiles {
    const linear_nbits_call *call;
    int64_t tile, row;
};

// sum += w * x, each lane 4 products. In assembly, for GCC keeps two copies of each sum around the intrinsic, and then
// has too few registers.
inline void add_products(I &sum, I w, I x) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x)); }

template <int BITS, int R, int C, int J>
[[gnu::always_inline]] inline void quads_from(const Unit<BITS> (&unit)[C], const int32_t *a, I (&sum)[C][R]) {
    if constexpr (J < Unit<BITS>::QUADS) {
        I w[C];
        for (int c = 0; c < C; ++c) w[c] = unit[c].template get<J>();
        for (int r = 0; r < R; ++r) {
            const I x = _mm512_set1_epi32(a[J * R + r]);
            for (int c = 0; c < C; ++c) add_products(sum[c][r], w[c], x);
        }
        quads_from<BITS, R, C, J + 1>(unit, a, sum);
    }
}

// Minus the zero points times the sums of the activations.
template <int R, int C>
[[gnu::always_inline]] inline void begin(const linear_nbits_call *call, const uint8_t *const (&zeros)[C], int64_t g,
                                         const int32_t *sums, I (&sum)[C][R]) {
    if (call->zeros == nullptr) {
        for (int r = 0; r < R; ++r) {
            const I x = _mm512_set1_epi32(sums[r]);
            for (int c = 0; c < C; ++c) sum[c][r] = x;
        }
        return;
    }
    for (int c = 0; c < C; ++c) {
        // 16 bits hold both factors; the upper halves of the zero points are 0
        const I z = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(zeros[c] + g * 16)));
        for (int r = 0; r < R; ++r)
            sum[c][r] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), z, _mm512_set1_epi32(sums[r]));
    }
}

template <int BITS, int R, int C>
void multiply(const Tiles &at) {
    const linear_nbits_call *call = at.call;
    const int64_t depth = call->depth, block = call->block, groups = depth / call->group, ratio = call->group / block;
    const int64_t units = block / (4 * Unit<BITS>::QUADS), next = C * 2 * BITS * depth;
    const int64_t size = call->half ? 2 : 4;  // of a scale
    const Place x = place_of(call, at.row);
    const int32_t *a = call->quads + x.quad, *sums = call->sums + x.block;
    const float *steps = call->steps + x.block;
    const uint8_t *weight[C], *zeros[C];
    for (int c = 0; c < C; ++c) {
        weight[c] = call->weight + (at.tile + c) * 2 * BITS * depth;
        zeros[c] = call->zeros == nullptr ? nullptr : call->zeros + (at.tile + c) * groups * 16;
    }
    __m512 total[C][R];
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < R; ++r) total[c][r] = _mm512_setzero_ps();
    int64_t offset = 0;
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t part = 0; part < ratio; ++part) {
            I sum[C][R];
            begin<R, C>(call, zeros, g, sums, sum);
            for (int64_t u = 0; u < units; ++u) {
                Unit<BITS> unit[C];
                for (int c = 0; c < C; ++c) {
                    unit[c].load(weight[c] + offset);
                    for (int line = 0; line < Unit<BITS>::BYTES; line += 64) {
                        _mm_prefetch(weight[c] + offset + line + AHEAD, _MM_HINT_T0);
                        _mm_prefetch(weight[c] + offset + line + next, _MM_HINT_T1);
                    }
                }
                quads_from<BITS, R, C, 0>(unit, a, sum);
                offset += Unit<BITS>::BYTES;
                a += Unit<BITS>::QUADS * R;
            }
            for (int c = 0; c < C; ++c) {
                const int64_t index = ((at.tile + c) * groups + g) * 16;
                if (part == 0)  // those of the tiles after these, as with the weights
                    _mm_prefetch(static_cast<const char *>(call->scales) + (index + C * groups * 16) * size, _MM_HINT_T1);
                const __m512 scale = (__m512)scales_at(call, index);
                for (int r = 0; r < R; ++r)
                    total[c][r] = _mm512_fmadd_ps(
                        _mm512_mul_ps(_mm512_cvtepi32_ps(sum[c][r]), _mm512_set1_ps(steps[r])), scale, total[c][r]);
            }
            steps += R;
            sums += R;
        }
    put_tiles<R, C>(call, at.row, at.tile, total);
}

using Multiply = void (*)(const Tiles &);

// By rows - 1; the wide ones take as many tiles as the registers hold sums for.
template <int BITS>
struct Table {
    static constexpr Multiply NARROW[8] = {multiply<BITS, 1, 1>, multiply<BITS, 2, 1>, multiply<BITS, 3, 1>,
                                           multiply<BITS, 4, 1>, multiply<BITS, 5, 1>, multiply<BITS, 6, 1>,
                                           multiply<BITS, 7, 1>, multiply<BITS, 8, 1>};
    static constexpr Multiply WIDE[8] = {multiply<BITS, 1, 4>, multiply<BITS, 2, 4>, multiply<BITS, 3, 4>,
                                         multiply<BITS, 4, 4>, multiply<BITS, 5, 2>, multiply<BITS, 6, 2>,
                                         multiply<BITS, 7, 2>, multiply<BITS, 8, 2>};
};

template <int BITS>
void run_bits(const linear_nbits_call *call, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop;) {
        const int64_t step = call->rows > 4 ? 2 : 4, width = stop - tile >= step ? step : 1;
        by_parts(call, [=](int64_t row, int64_t rows) {
            const Tiles at{call, tile, row};
            if (width == 1)
                Table<BITS>::NARROW[rows - 1](at);
            else if (width == (rows > 4 ? 2 : 4))
                Table<BITS>::WIDE[rows - 1](at);
            else
                for (int64_t t = 0; t < width; ++t) Table<BITS>::NARROW[rows - 1]({call, tile + t, row});
        });
        tile += width;
    }
}

void run(const linear_nbits_call *call, int64_t start, int64_t stop) {
    by_bits(call, [=](auto bits) { run_bits<decltype(bits)::VALUE>(call, start, stop); });
}

}  // namespace
}  // namespace edge

extern "C" const linear_nbits_code linear_nbits_avx512 = {edge::quantize_row, edge::run};
