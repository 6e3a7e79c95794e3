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

constexpr int64_t PART = LINEAR_NBITS_ROWS;
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

// A tile and R of the `rows` rows of a part: where they begin.
struct Place {
    const linear_nbits_call *call;
    int64_t tile, row, rows;
    const int32_t *quads, *sums;
    const float *steps;
};

// Minus the zero points times the sums of the activations, 4 columns. Weights of 8 bits are 128 less than they were.
inline int32x4_t zero_part(const linear_nbits_call *call, int64_t index, int32_t sum) {
    if (call->zeros == nullptr) return vdupq_n_s32(call->bits == 8 ? 0 : sum);
    const int32_t less = call->bits == 8 ? 128 : 0;
    int32_t made[4];
    for (int n = 0; n < 4; ++n) made[n] = (call->zeros[index + n] - less) * sum;
    return vld1q_s32(made);
}

inline float32x4_t scales_at(const linear_nbits_call *call, int64_t index) {
    if (!call->half) return vld1q_f32(static_cast<const float *>(call->scales) + index);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t *>(call->scales) + index)));
}

template <int R>
void put(const Place &at, const float32x4_t (&total)[R][QUARTERS]) {
    const linear_nbits_call *call = at.call;
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < QUARTERS; ++c) {
            float made[4];
            vst1q_f32(made, total[r][c]);
            const int64_t column = at.tile * 16 + c * 4;
            float *y = call->output + (at.row + r) * call->columns + column;
            for (int64_t n = 0; n < 4 && column + n < call->columns; ++n)
                y[n] = made[n] + (call->bias == nullptr ? 0.0f : call->bias[column + n]);
        }
}

template <int BITS, int R, bool DOT>
void multiply(const Place &at) {
    const linear_nbits_call *call = at.call;
    const int64_t units = call->block / (4 * QUADS<BITS>), ratio = call->group / call->block;
    const int64_t groups = call->depth / call->group;
    const uint8_t *weight = call->weight + at.tile * 2 * BITS * call->depth;
    const int32_t *a = at.quads;
    float32x4_t total[R][QUARTERS];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < QUARTERS; ++c) total[r][c] = vdupq_n_f32(0);
    for (int64_t b = 0; b < call->depth / call->block; ++b) {
        Sum<DOT> sum[R][QUARTERS];
        for (int64_t u = 0; u < units; ++u) {
            add_unit<BITS, R, DOT>(weight, a, at.rows, sum);
            weight += BITS == 3 ? 192 : 64;
            a += QUADS<BITS> * at.rows;
        }
        const int64_t index = (at.tile * groups + b / ratio) * 16;
        for (int c = 0; c < QUARTERS; ++c) {
            const float32x4_t scale = scales_at(call, index + 4 * c);
            for (int r = 0; r < R; ++r) {
                const int32x4_t zeros = zero_part(call, index + 4 * c, at.sums[b * at.rows + r]);
                const float32x4_t all = vcvtq_f32_s32(vaddq_s32(sum[r][c].value(), zeros));
                total[r][c] = vfmaq_f32(total[r][c], vmulq_n_f32(all, at.steps[b * at.rows + r]), scale);
            }
        }
    }
    put<R>(at, total);
}

// Rows of a part, R at a time.
template <int BITS, bool DOT>
void run_part(const linear_nbits_call *call, int64_t tile, int64_t part, int64_t rows) {
    constexpr int64_t MOST = DOT ? 4 : 2;
    const int64_t blocks = call->depth / call->block;
    for (int64_t r = 0; r < rows;) {
        const Place at{call, tile, part + r, rows, call->quads + part * (call->depth / 4) + r,
                       call->sums + part * blocks + r, call->steps + part * blocks + r};
        const int64_t count = rows - r < MOST ? 1 : MOST;
        if (count == 1)
            multiply<BITS, 1, DOT>(at);
        else
            multiply<BITS, MOST, DOT>(at);
        r += count;
    }
}

template <int BITS>
void run_bits(const linear_nbits_call *call, int64_t start, int64_t stop) {
    const bool dot = has_dot();
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t part = 0; part < call->rows; part += PART) {
            const int64_t rows = call->rows - part < PART ? call->rows - part : PART;
            dot ? run_part<BITS, true>(call, tile, part, rows) : run_part<BITS, false>(call, tile, part, rows);
        }
}

void run(const linear_nbits_call *call, int64_t start, int64_t stop) {
    switch (call->bits) {
        case 2: return run_bits<2>(call, start, stop);
        case 3: return run_bits<3>(call, start, stop);
        case 4: return run_bits<4>(call, start, stop);
        default: return run_bits<8>(call, start, stop);
    }
}

}  // namespace
}  // namespace edge

extern "C" const linear_nbits_code linear_nbits_neon = {edge::quantize_row, edge::run};
