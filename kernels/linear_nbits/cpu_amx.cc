// AMX: a tile register is 16 rows of activations, another one 64 weights of 16 columns, in the very order in which they
// are packed; a third one gets their products' sums. Few rows are left to AVX-512, which reads the weights as fast.
#include "scratch.h"
#include "units.h"

namespace edge {
namespace {

constexpr int64_t TILE = LINEAR_TILE, MOST = 16;
constexpr int64_t FEW = 4;  // rows

// Register 0 holds sums, 1 activations, 2 weights.
struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// What was written is in memory: GCC 12 does not know that the tile intrinsics read it.
inline void settle() { __asm__ volatile("" ::: "memory"); }

// For `rows` rows of activations, of which a step multiplies `depth`.
void configure(int64_t rows, int64_t depth) {
    Shapes shapes;
    shapes.bytes[0] = 64, shapes.rows[0] = static_cast<uint8_t>(rows);
    shapes.bytes[1] = static_cast<uint16_t>(depth), shapes.rows[1] = static_cast<uint8_t>(rows);
    shapes.bytes[2] = 64, shapes.rows[2] = static_cast<uint8_t>(depth / 4);
    settle();
    _tile_loadconfig(&shapes);
}

template <int BITS, int J = 0>
inline void store_quads(const Unit<BITS> &unit, uint8_t *to) {
    if constexpr (J < Unit<BITS>::QUADS) {
        _mm512_storeu_si512(to + J * 64, unit.template get<J>());
        store_quads<BITS, J + 1>(unit, to);
    }
}

// Weights of one block of a tile, a byte each.
template <int BITS>
void unpack(const uint8_t *from, int64_t depth, uint8_t *to) {
    for (int64_t quad = 0; quad < depth / 4; quad += Unit<BITS>::QUADS, from += Unit<BITS>::BYTES) {
        Unit<BITS> unit;
        unit.load(from);
        store_quads<BITS>(unit, to + quad * 64);
    }
}

// Rows [row, row + rows) of activations one after another, as AMX wants them.
void gather(const linear_nbits_call *call, int64_t row, int64_t rows, int8_t *to) {
    for (int64_t r = 0; r < rows; ++r) {
        const Place at = place_of(call, row + r);
        for (int64_t i = 0; i < call->depth / 4; ++i)
            std::memcpy(to + r * call->depth + 4 * i, call->quads + at.quad + i * at.rows, 4);
    }
}

// Where a row has its value of block `b`.
inline int64_t index_of(const linear_nbits_call *call, int64_t row, int64_t b) {
    const Place at = place_of(call, row);
    return at.block + b * at.rows;
}

struct Room {
    uint8_t weights[32 * 64];
    int32_t sums[MOST][TILE];
    __m512 total[MOST];
};

// The sums of one block, on top of the zero points' part.
void multiply(const linear_nbits_call *call, const int8_t *a, int64_t step, Room &room) {
    settle();
    _tile_loadd(0, room.sums, 64);
    for (int64_t k = 0; k < call->block; k += step) {
        _tile_loadd(1, a + k, static_cast<size_t>(call->depth));
        _tile_loadd(2, room.weights + k * 16, 64);
        _tile_dpbsud(0, 1, 2);
    }
    _tile_stored(0, room.sums, 64);
}

inline I begin(const linear_nbits_call *call, int64_t group, int32_t sum) {
    if (call->zeros == nullptr) return _mm512_set1_epi32(sum);
    const I zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(call->zeros + group * TILE)));
    return _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum));
}

// `a`: activations of rows [row, row + rows), at most 16.
void run_tile(const linear_nbits_call *call, int64_t tile, const int8_t *a, int64_t row, int64_t rows, int64_t step,
              Room &room) {
    const int64_t ratio = call->group / call->block, groups = call->depth / call->group;
    const uint8_t *weight = call->weight + tile * 2 * call->bits * call->depth;
    for (int64_t r = 0; r < rows; ++r) room.total[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < call->depth / call->block; ++b) {
        const int64_t group = tile * groups + b / ratio;
        by_bits(call, [&](auto bits) {
            constexpr int BITS = decltype(bits)::VALUE;
            unpack<BITS>(weight + b * call->block * 2 * BITS, call->block, room.weights);
        });
        for (int64_t r = 0; r < rows; ++r)
            _mm512_storeu_si512(room.sums[r], begin(call, group, call->sums[index_of(call, row + r, b)]));
        multiply(call, a + b * call->block, step, room);
        const __m512 scale = (__m512)scales_at(call, group * TILE);
        for (int64_t r = 0; r < rows; ++r) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(room.sums[r]));
            const __m512 each = _mm512_mul_ps(sum, _mm512_set1_ps(call->steps[index_of(call, row + r, b)]));
            room.total[r] = _mm512_fmadd_ps(each, scale, room.total[r]);
        }
    }
    for (int64_t r = 0; r < rows; ++r) put(call, row + r, tile * TILE, (Floats)room.total[r]);
}

void run(const linear_nbits_call *call, int64_t start, int64_t stop) {
    if (call->rows <= FEW) return linear_nbits_avx512.run(call, start, stop);
    static thread_local Scratch scratch;
    const int64_t step = call->block % 64 == 0 ? 64 : call->block % 32 == 0 ? 32 : 16;
    int8_t *a = scratch.get<int8_t>(static_cast<size_t>(MOST * call->depth));
    Room room;
    for (int64_t row = 0; row < call->rows; row += MOST) {
        const int64_t rows = call->rows - row < MOST ? call->rows - row : MOST;
        configure(rows, step);
        gather(call, row, rows, a);
        for (int64_t tile = start; tile < stop; ++tile) run_tile(call, tile, a, row, rows, step, room);
        _tile_release();
    }
}

}  // namespace
}  // namespace edge

extern "C" const linear_nbits_code linear_nbits_amx = {edge::quantize_row, edge::run};
