// NEON: sdot adds 4 products a lane where the processor has it (armv8.2 dotprod, asked for at run time), else products
// of 8 bits are widened twice. Four columns are a register; a vector is unpacked once for several rows.
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "activations.h"

#if defined(__APPLE__)
#define DOTPROD ""
#else
#define DOTPROD ".arch armv8.2-a+dotprod\n\t" /* what the assembler may emit; run time decides what runs */
#endif

namespace edge {
namespace {

constexpr int QUARTERS = 4;

bool has_dot() {
#if defined(__APPLE__)
    return true;
#elif defined(__linux__)
    static const bool found = (getauxval(AT_HWCAP) >> 20 & 1) != 0;  // HWCAP_ASIMDDP
    return found;
#else
    return false;
#endif
}

// Sums of 4 columns: one register, or two whose neighbours still have to be added.
template <bool DOT>
struct Sum {
    int32x4_t a = vdupq_n_s32(0), b = vdupq_n_s32(0);

    void add(int8x16_t w, int8x16_t x) {
        if constexpr (DOT) {
            __asm__(DOTPROD "sdot %0.4s, %1.16b, %2.16b" : "+w"(a) : "w"(w), "w"(x));
        } else {
            a = vpadalq_s16(a, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
            b = vpadalq_s16(b, vmull_high_s8(w, x));
        }
    }

    int32x4_t value() const { return DOT ? a : vpaddq_s32(a, b); }
};

// Quad J of a unit, 4 columns of it. Weights of 8 bits are made signed: 128 less.
template <int BITS, int J>
inline int8x16_t weights(const uint8_t *unit) {
    if constexpr (BITS == 8) {
        return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(unit), vdupq_n_u8(128)));
    } else if constexpr (BITS == 3) {
        const uint8x16_t low = vld1q_u8(unit + J / 4 * 64), high = vld1q_u8(unit + 128);
        const uint8x16_t two = vandq_u8(vshlq_u8(low, vdupq_n_s8(-2 * (J % 4))), vdupq_n_u8(3));
        const uint8x16_t third = vandq_u8(vshlq_u8(high, vdupq_n_s8(2 - J)), vdupq_n_u8(4));
        return vreinterpretq_s8_u8(vorrq_u8(two, third));
    } else {
        const uint8x16_t moved = vshlq_u8(vld1q_u8(unit), vdupq_n_s8(-BITS * J));
        return vreinterpretq_s8_u8(vandq_u8(moved, vdupq_n_u8((1 << BITS) - 1)));
    }
}

template <int BITS>
constexpr int QUADS = BITS == 3 ? 8 : 8 / BITS;

template <int BITS, int R, bool DOT, int J = 0>
[[gnu::always_inline]] inline void add_unit(const uint8_t *unit, const int32_t *a, int64_t rows,
                                            Sum<DOT> (&sum)[R][QUARTERS]) {
    if constexpr (J < QUADS<BITS>) {
        int8x16_t x[R];
        for (int r = 0; r < R; ++r) x[r] = vreinterpretq_s8_s32(vdupq_n_s32(a[J * rows + r]));
        for (int c = 0; c < QUARTERS; ++c) {
            const int8x16_t w = weights<BITS, J>(unit + c * 16);
            for (int r = 0; r < R; ++r) sum[r][c].add(w, x[r]);
        }
        add_unit<BITS, R, DOT, J + 1>(unit, a, rows, sum);
    }
}

// Minus the zero points times the sums of the activations, 4 columns. Weights of 8 bits are 128 less than they were.
inline int32x4_t zero_part(const linear_nbits_call *call, int64_t index, int32_t sum) {
    if (call->zeros == nullptr) return vdupq_n_s32(call->bits == 8 ? 0 : sum);
    const int32_t less = call->bits == 8 ? 128 : 0;
    int32_t made[4];
    for (int n = 0; n < 4; ++n) made[n] = (call->zeros[index + n] - less) * sum;
    return vld1q_s32(made);
}

// A tile and R rows of a part, the first of them at `x`.
template <int BITS, int R, bool DOT>
void multiply(const linear_nbits_call *call, int64_t tile, const Place &x) {
    const int64_t units = call->block / (4 * QUADS<BITS>), ratio = call->group / call->block;
    const int64_t groups = call->depth / call->group;
    const uint8_t *weight = call->weight + tile * 2 * BITS * call->depth;
    const int32_t *a = call->quads + x.quad, *sums = call->sums + x.block;
    const float *steps = call->steps + x.block;
    float32x4_t total[R][QUARTERS];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < QUARTERS; ++c) total[r][c] = vdupq_n_f32(0);
    for (int64_t b = 0; b < call->depth / call->block; ++b) {
        Sum<DOT> sum[R][QUARTERS];
        for (int64_t u = 0; u < units; ++u) {
            add_unit<BITS, R, DOT>(weight, a, x.rows, sum);
            weight += BITS == 3 ? 192 : 64;
            a += QUADS<BITS> * x.rows;
        }
        const int64_t index = (tile * groups + b / ratio) * 16;
        for (int c = 0; c < QUARTERS; ++c) {
            const float32x4_t scale = (float32x4_t)scales_at(call, index + 4 * c);
            for (int r = 0; r < R; ++r) {
                const int32x4_t zeros = zero_part(call, index + 4 * c, sums[b * x.rows + r]);
                const float32x4_t all = vcvtq_f32_s32(vaddq_s32(sum[r][c].value(), zeros));
                total[r][c] = vfmaq_f32(total[r][c], vmulq_n_f32(all, steps[b * x.rows + r]), scale);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < QUARTERS; ++c) put(call, x.row + r, tile * 16 + c * 4, (Floats)total[r][c]);
}

// The rows of a part, as many at a time as the registers hold sums for.
template <int BITS, bool DOT>
void run_part(const linear_nbits_call *call, int64_t tile, int64_t part, int64_t rows) {
    constexpr int64_t MOST = DOT ? 4 : 2;
    int64_t row = part;
    for (; row + MOST <= part + rows; row += MOST) multiply<BITS, MOST, DOT>(call, tile, place_of(call, row));
    for (; row < part + rows; ++row) multiply<BITS, 1, DOT>(call, tile, place_of(call, row));
}

void run(const linear_nbits_call *call, int64_t start, int64_t stop) {
    by_bits(call, [=, dot = has_dot()](auto bits) {
        constexpr int BITS = decltype(bits)::VALUE;
        for (int64_t tile = start; tile < stop; ++tile)
            by_parts(call, [=](int64_t part, int64_t rows) {
                dot ? run_part<BITS, true>(call, tile, part, rows) : run_part<BITS, false>(call, tile, part, rows);
            });
    });
}

}  // namespace
}  // namespace edge

extern "C" const linear_nbits_code linear_nbits_neon = {edge::quantize_row, edge::run};
