// AVX-512 with VBMI: nobody multiplies. The sums of 4 activations under all 16 masks are a table of 16 entries; four
// such tables, for the four bytes of a word, make one of 64, in which vpermb looks 4 bits of 64 bytes up at once. Less
// the smallest of them, which is the sum of the negative activations, the sums are unsigned bytes, and vpdpbusd adds the
// four bytes of each word.
#include "activations.h"

namespace edge {
namespace {

using I = __m512i;
constexpr int64_t TILE = LINEAR_TILE;
constexpr int64_t TABLE = 128;  // of a unit: for bits 0-3 of each byte, then for bits 4-7
constexpr int64_t STEP = 128;   // bytes of a unit of a tile
// How far ahead planes are fetched: bytes of a tile into the nearest cache, tiles into the next one.
constexpr int64_t AHEAD = 1024, NEXT = 8;

void make_tables(const int8_t *q, int64_t units, uint8_t *tables) {
    alignas(64) uint8_t masks[64];
    for (int i = 0; i < 64; ++i) masks[i] = i / 4 >> i % 4 & 1;
    const I under = _mm512_load_si512(masks), one = _mm512_set1_epi8(1), zero = _mm512_setzero_si512();
    for (int64_t i = 0; i < units * 8; ++i) {  // 4 activations each
        int32_t quad;
        std::memcpy(&quad, q + 4 * i, 4);
        const I x = _mm512_set1_epi32(quad);
        const I low = _mm512_dpbusd_epi32(zero, one, _mm512_min_epi8(x, zero));
        const I sums = _mm512_sub_epi32(_mm512_dpbusd_epi32(zero, under, x), low);
        uint8_t *table = tables + i / 8 * TABLE + i % 2 * 64 + i % 8 / 2 * 16;
        _mm_storeu_si128(reinterpret_cast<__m128i *>(table), _mm512_cvtepi32_epi8(sums));
    }
}

// In assembly, since this file is compiled without VBMI, and for GCC keeps two copies of a sum around the intrinsic.
inline I look_up(I index, I table) {
    I found;
    __asm__("vpermb %2, %1, %0" : "=v"(found) : "v"(index), "v"(table));
    return found;
}

inline void add_products(I &sum, I a, I b) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

// Adds a block of R rows' activations under V masks, from V places, less the negative ones; `stride` lies between the
// tables of rows.
template <int R, int V>
[[gnu::always_inline]] inline void masked_sums(const uint8_t *const (&from)[V], const uint8_t *tables, int64_t stride,
                                               int64_t units, I (&sums)[R][V]) {
    const int64_t next = NEXT * STEP * (stride / TABLE);
    const I four = _mm512_set1_epi8(15), which = _mm512_set1_epi32(0x30201000);
    const I one = _mm512_set1_epi8(1);
    for (int64_t u = 0; u < units; ++u, tables += TABLE) {
        I bits[V];
        for (int v = 0; v < V; ++v) {
            bits[v] = _mm512_loadu_si512(from[v] + u * STEP);
            _mm_prefetch(from[v] + u * STEP + AHEAD, _MM_HINT_T0);
            _mm_prefetch(from[v] + u * STEP + next, _MM_HINT_T1);
        }
        for (int part = 0; part < 2; ++part) {
            I index[V];  // (bits & 15) | which
            for (int v = 0; v < V; ++v)
                index[v] = _mm512_ternarylogic_epi32(part ? _mm512_srli_epi16(bits[v], 4) : bits[v], four, which, 0xea);
            for (int r = 0; r < R; ++r) {
                const I table = _mm512_loadu_si512(tables + r * stride + part * 64);
                for (int v = 0; v < V; ++v) add_products(sums[r][v], look_up(index[v], table), one);
            }
        }
    }
}

inline bool any(__m512 scale) {
    return _mm512_test_epi32_mask(_mm512_castps_si512(scale), _mm512_set1_epi32(0x7fffffff)) != 0;
}

// The same of one number, on ports that have nothing else to do.
inline bool is_set(const linear_fdb_call *call, int64_t index) {
    if (call->half) return (static_cast<const uint16_t *>(call->scales)[index] & 0x7fff) != 0;
    return (static_cast<const uint32_t *>(call->scales)[index] & 0x7fffffff) != 0;
}

// C tiles x R rows.
template <int R, int C>
struct Place {
    const linear_fdb_call *call;
    int64_t tile, row;
};

// One block. A plane whose scales are all zero in a tile is not read there: so do zeros pay.
template <int R, int C>
[[gnu::always_inline]] inline void add_block(const Place<R, C> &at, int64_t block, int64_t group, __m512 (&total)[C][R]) {
    const linear_fdb_call *call = at.call;
    const int64_t depth = call->depth, units = call->block / UNIT, stride = depth / UNIT * TABLE;
    const uint8_t *tables = call->tables + at.row * stride + block * units * TABLE, *from[2 * C];
    __m512 scale[2 * C];
    bool all = true;
    for (int v = 0; v < 2 * C; ++v) {
        from[v] = call->planes + ((at.tile + v / 2) * (depth / UNIT) + block * units) * STEP + v % 2 * 64;
        const int64_t index = ((at.tile + v / 2) * (depth / call->group) + group) * 2 * TILE + v % 2 * TILE;
        scale[v] = (__m512)scales_at(call, index);
        all = all && (is_set(call, index) || any(scale[v]));
    }
    I sums[R][2 * C];
    for (int r = 0; r < R; ++r) {
        const I low = _mm512_set1_epi32(call->lows[(at.row + r) * (depth / call->block) + block]);
        for (int v = 0; v < 2 * C; ++v) sums[r][v] = low;
    }
    if (all) {
        masked_sums<R, 2 * C>(from, tables, stride, units, sums);
    } else {
        for (int v = 0; v < 2 * C; ++v) {
            I one[R][1];
            for (int r = 0; r < R; ++r) one[r][0] = sums[r][v];
            const uint8_t *const place[1] = {from[v]};
            masked_sums<R, 1>(place, tables, stride, any(scale[v]) ? units : 0, one);
            for (int r = 0; r < R; ++r) sums[r][v] = one[r][0];
        }
    }
    for (int r = 0; r < R; ++r) {
        const __m512 step = _mm512_set1_ps(call->steps[(at.row + r) * (depth / call->block) + block]);
        for (int c = 0; c < C; ++c) {
            const __m512 first = _mm512_mul_ps(scale[2 * c], _mm512_cvtepi32_ps(sums[r][2 * c]));
            const __m512 both = _mm512_fmadd_ps(scale[2 * c + 1], _mm512_cvtepi32_ps(sums[r][2 * c + 1]), first);
            total[c][r] = _mm512_fmadd_ps(step, both, total[c][r]);
        }
    }
}

template <int R, int C>
void multiply(const linear_fdb_call *call, int64_t tile, int64_t row) {
    const Place<R, C> at{call, tile, row};
    __m512 total[C][R];
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < R; ++r) total[c][r] = _mm512_setzero_ps();
    const int64_t ratio = call->group / call->block;
    for (int64_t group = 0, block = 0; group < call->depth / call->group; ++group)
        for (int64_t i = 0; i < ratio; ++i, ++block) add_block(at, block, group, total);
    put_tiles<R, C>(call, row, tile, total);
}

using Multiply = void (*)(const linear_fdb_call *, int64_t, int64_t);
constexpr Multiply NARROW[4] = {multiply<1, 1>, multiply<2, 1>, multiply<3, 1>, multiply<4, 1>};
constexpr Multiply WIDE[4] = {multiply<1, 4>, multiply<2, 2>, multiply<3, 2>, multiply<4, 2>};

void run(const linear_fdb_call *call, int64_t start, int64_t stop) {
    const int64_t width = call->rows == 1 ? 4 : 2;
    while (start < stop) {
        const bool wide = stop - start >= width;
        for (int64_t row = 0; row < call->rows;) {
            // a last single row has a function for 4 tiles, and here are 2
            const int64_t left = call->rows - row, rows = left > 4 ? (left == 5 ? 3 : 4) : left;
            (wide ? WIDE[rows - 1] : NARROW[rows - 1])(call, start, row);
            row += rows;
        }
        start += wide ? width : 1;
    }
}

}  // namespace
}  // namespace edge

extern "C" const linear_fdb_code linear_fdb_avx512 = {edge::TABLE, edge::make_tables, edge::quantize, edge::run};
