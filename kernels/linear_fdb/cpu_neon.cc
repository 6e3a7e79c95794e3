// NEON: bit j of each byte of 4 columns' words, made a mask, takes the activations that these bits stand for, and they
// are added in pairs. 16 bits hold the sums of a block.
#include <arm_neon.h>

#include "activations.h"

namespace edge {
namespace {

constexpr int64_t TILE = LINEAR_TILE, TABLE = BY_BIT;
constexpr int QUARTERS = 4;

inline void masked_sums(const uint8_t *plane, const uint8_t *tables, int64_t units, int32x4_t (&sums)[QUARTERS]) {
    int16x8_t pairs[QUARTERS];
    for (int c = 0; c < QUARTERS; ++c) pairs[c] = vdupq_n_s16(0);
    for (int64_t u = 0; u < units; ++u) {
        uint8x16_t bits[QUARTERS];
        for (int c = 0; c < QUARTERS; ++c) bits[c] = vld1q_u8(plane + u * 2 * TILE * 4 + c * 16);
        for (int j = 0; j < 8; ++j) {
            int32_t quad;
            std::memcpy(&quad, tables + u * TABLE + 4 * j, 4);
            const uint8x16_t x = vreinterpretq_u8_s32(vdupq_n_s32(quad)), bit = vdupq_n_u8(1u << j);
            for (int c = 0; c < QUARTERS; ++c)
                pairs[c] = vpadalq_s8(pairs[c], vreinterpretq_s8_u8(vandq_u8(vtstq_u8(bits[c], bit), x)));
        }
    }
    for (int c = 0; c < QUARTERS; ++c) sums[c] = vpaddlq_s16(pairs[c]);
}

inline bool any(const float32x4_t (&scale)[QUARTERS]) {
    uint32x4_t found = vdupq_n_u32(0);
    for (int c = 0; c < QUARTERS; ++c) found = vorrq_u32(found, vreinterpretq_u32_f32(scale[c]));
    return vmaxvq_u32(vshlq_n_u32(found, 1)) != 0;
}

// One block. A plane whose scales are all zero is not read.
inline void add_block(const linear_fdb_call *call, int64_t tile, int64_t row, int64_t block, int64_t group,
                      float32x4_t (&total)[QUARTERS]) {
    const int64_t units = call->block / UNIT;
    const uint8_t *tables = call->tables + (row * (call->depth / UNIT) + block * units) * TABLE;
    float32x4_t made[QUARTERS];
    for (int c = 0; c < QUARTERS; ++c) made[c] = vdupq_n_f32(0);
    for (int plane = 0; plane < 2; ++plane) {
        const int64_t index = ((tile * (call->depth / call->group) + group) * 2 + plane) * TILE;
        float32x4_t scale[QUARTERS];
        for (int c = 0; c < QUARTERS; ++c) scale[c] = (float32x4_t)scales_at(call, index + 4 * c);
        if (!any(scale)) continue;
        int32x4_t sums[QUARTERS];
        masked_sums(call->planes + tile * 4 * call->depth + (block * units * 2 + plane) * TILE * 4, tables, units, sums);
        for (int c = 0; c < QUARTERS; ++c) made[c] = vfmaq_f32(made[c], scale[c], vcvtq_f32_s32(sums[c]));
    }
    const float step = call->steps[row * (call->depth / call->block) + block];
    for (int c = 0; c < QUARTERS; ++c) total[c] = vfmaq_n_f32(total[c], made[c], step);
}

void multiply(const linear_fdb_call *call, int64_t tile, int64_t row) {
    const int64_t ratio = call->group / call->block;
    float32x4_t total[QUARTERS];
    for (int c = 0; c < QUARTERS; ++c) total[c] = vdupq_n_f32(0);
    for (int64_t b = 0; b < call->depth / call->block; ++b) add_block(call, tile, row, b, b / ratio, total);
    for (int c = 0; c < QUARTERS; ++c) put(call, row, tile * TILE + 4 * c, (Floats)total[c]);
}

void run(const linear_fdb_call *call, int64_t start, int64_t stop) {
    for (int64_t tile = start; tile < stop; ++tile)
        for (int64_t row = 0; row < call->rows; ++row) multiply(call, tile, row);
}

}  // namespace
}  // namespace edge

extern "C" const linear_fdb_code linear_fdb_neon = {edge::TABLE, edge::order_by_bit, edge::quantize, edge::run};
