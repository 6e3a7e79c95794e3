// AVX2: bit j of each byte of 8 columns' words times the activations that these bits stand for, by vpmaddubsw, which
// also adds pairs. 16 bits hold the sums of a block.
#include <immintrin.h>

#include "activations.h"

namespace edge {
namespace {

using I = __m256i;
constexpr int64_t TILE = LINEAR_TILE, HALF = 8, TABLE = BY_BIT;

// Half a tile and R rows.
struct Half {
    const linear_fdb_call *call;
    const uint8_t *planes;
    int64_t scale, column, row;  // `scale`: index of its first one
};

template <int R>
[[gnu::always_inline]] inline void masked_sums(const uint8_t *plane, const uint8_t *tables, int64_t stride,
                                               int64_t units, I (&sums)[R]) {
    I pairs[R];
    for (int r = 0; r < R; ++r) pairs[r] = _mm256_setzero_si256();
    for (int64_t u = 0; u < units; ++u) {
        I bits = _mm256_loadu_si256(reinterpret_cast<const I *>(plane + u * 2 * TILE * 4));
        for (int j = 0; j < 8; ++j) {
            const I bit = _mm256_and_si256(bits, _mm256_set1_epi8(1));
            bits = _mm256_srli_epi16(bits, 1);
            for (int r = 0; r < R; ++r) {
                int32_t quad;
                std::memcpy(&quad, tables + r * stride + u * TABLE + 4 * j, 4);
                pairs[r] = _mm256_add_epi16(pairs[r], _mm256_maddubs_epi16(bit, _mm256_set1_epi32(quad)));
            }
        }
    }
    for (int r = 0; r < R; ++r) sums[r] = _mm256_madd_epi16(pairs[r], _mm256_set1_epi16(1));
}

// One block. A plane whose scales are all zero is not read.
template <int R>
[[gnu::always_inline]] inline void add_block(const Half &at, int64_t block, int64_t group, __m256 (&total)[R]) {
    const linear_fdb_call *call = at.call;
    const int64_t units = call->block / UNIT, stride = call->depth / UNIT * TABLE;
    const uint8_t *tables = call->tables + at.row * stride + block * units * TABLE;
    __m256 made[R];
    for (int r = 0; r < R; ++r) made[r] = _mm256_setzero_ps();
    for (int plane = 0; plane < 2; ++plane) {
        const __m256 scale = (__m256)scales_at(call, at.scale + (group * 2 + plane) * TILE);
        if (_mm256_testz_si256(_mm256_castps_si256(scale), _mm256_set1_epi32(0x7fffffff))) continue;
        I sums[R];
        masked_sums<R>(at.planes + (block * units * 2 + plane) * TILE * 4, tables, stride, units, sums);
        for (int r = 0; r < R; ++r) made[r] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r]), made[r]);
    }
    for (int r = 0; r < R; ++r) {
        const float step = call->steps[(at.row + r) * (call->depth / call->block) + block];
        total[r] = _mm256_fmadd_ps(_mm256_set1_ps(step), made[r], total[r]);
    }
}

template <int R>
void multiply(const Half &at) {
    const linear_fdb_call *call = at.call;
    __m256 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm256_setzero_ps();
    const int64_t ratio = call->group / call->block;
    for (int64_t block = 0; block < call->depth / call->block; ++block) add_block(at, block, block / ratio, total);
    for (int r = 0; r < R; ++r) put(call, at.row + r, at.column, (Floats)total[r]);
}

void run(const linear_fdb_call *call, int64_t start, int64_t stop) {
    static constexpr void (*BY_ROWS[4])(const Half &) = {multiply<1>, multiply<2>, multiply<3>, multiply<4>};
    const int64_t scales = call->depth / call->group * 2 * TILE;
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t n = 0; n < TILE && tile * TILE + n < call->columns; n += HALF)
            for (int64_t row = 0; row < call->rows; row += 4) {
                const Half at{call, call->planes + tile * 4 * call->depth + n * 4,
                              tile * scales + n, tile * TILE + n, row};
                BY_ROWS[(call->rows - row < 4 ? call->rows - row : 4) - 1](at);
            }
}

}  // namespace
}  // namespace edge

extern "C" const linear_fdb_code linear_fdb_avx2 = {edge::TABLE, edge::order_by_bit, edge::quantize, edge::run};
