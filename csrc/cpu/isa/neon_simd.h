// This file defines the vectors of NEON: eight lanes of float64 for the exact distances, float32
// and float64 for the float search, float32 and int32 for the int8 filter. A vector of eight lanes
// is two registers, so that a search for few rows has enough sums that do not wait for each other.
#pragma once

#include <arm_neon.h>

#include "../../elements.h"
#include "../../rows.h"
#include "../contract.h"

namespace vqvae_fast {
namespace {

// NeonLanes has eight lanes of float64.
struct NeonLanes {
  struct Vec {
    float64x2_t at[4];
  };
  template <class F>
  static Vec each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static Vec zero() { return broadcast(0); }
  static Vec broadcast(double v) {
    return each([=](int) { return vdupq_n_f64(v); });
  }
  static Vec load(const float* p) { return widened(vld1q_f32(p), vld1q_f32(p + 4)); }
  static Vec load(const double* p) {
    return each([=](int i) { return vld1q_f64(p + 2 * i); });
  }
  static Vec load(const BFloat16* p) {
    const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    return widened(vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
                   vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16)));
  }
  static Vec load(const Half* p) {
    const float16x8_t halves =
        vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
    return widened(vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves));
  }
  static void store(float* p, const Vec& v) {
    vst1q_f32(p, vcvt_high_f32_f64(vcvt_f32_f64(v.at[0]), v.at[1]));
    vst1q_f32(p + 4, vcvt_high_f32_f64(vcvt_f32_f64(v.at[2]), v.at[3]));
  }
  static void store(double* p, const Vec& v) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 4; ++i) vst1q_f64(p + 2 * i, v.at[i]);
  }
  static Vec subtract(const Vec& a, const Vec& b) {
    return each([&](int i) { return vsubq_f64(a.at[i], b.at[i]); });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int i) { return vaddq_f64(a.at[i], b.at[i]); });
  }
  static Vec multiply(const Vec& a, const Vec& b) {
    return each([&](int i) { return vmulq_f64(a.at[i], b.at[i]); });
  }
  static Vec add_square(const Vec& sum, const Vec& v) { return add(sum, multiply(v, v)); }
  // This rounds once, unlike add_square, which must round as every instruction set does.
  static Vec multiply_add(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return vfmaq_f64(c.at[i], a.at[i], b.at[i]); });
  }
  static Vec subtract_product(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return vfmsq_f64(c.at[i], a.at[i], b.at[i]); });
  }
  // The additions have the order of halving a vector three times.
  static void keep_nearer(Vec& nearest, Vec& index, const Vec& distance, const Vec& its_index) {
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint64x2_t nearer = vcltq_f64(distance.at[i], nearest.at[i]);
      index.at[i] = vbslq_f64(nearer, its_index.at[i], index.at[i]);
      nearest.at[i] = vbslq_f64(nearer, distance.at[i], nearest.at[i]);
    }
  }
  static double sum(const Vec& v) {
    return vaddvq_f64(vaddq_f64(vaddq_f64(v.at[0], v.at[2]), vaddq_f64(v.at[1], v.at[3])));
  }
  static Vec widened(float32x4_t low, float32x4_t high) {
    return {{vcvt_f64_f32(vget_low_f32(low)), vcvt_high_f64_f32(low),
             vcvt_f64_f32(vget_low_f32(high)), vcvt_high_f64_f32(high)}};
  }
};

// In NeonFloat and NeonDouble the element of a row stays a number, because a multiply-add can take
// one factor of all lanes from the first lane of a register.
struct NeonFloat {
  using T = float;
  struct Vec {
    float32x4_t low, high;
  };
  using Mask = uint8_t;  // a bit per lane
  using Doubles = NeonLanes;
  static constexpr int kWidth = 8, kTileVecs = 2, kTileRows = 6;
  static constexpr int kTileCodes = kWidth * kTileVecs;

  // Lanes is the result of a comparison: all bits of a lane, or none. select() takes it as it is;
  // to turn it into a Mask takes four more instructions.
  struct Lanes {
    uint32x4_t low, high;

    operator Mask() const {
      const uint16x8_t bits = {1, 2, 4, 8, 16, 32, 64, 128};
      const uint16x8_t halves = vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
      return Mask(vaddvq_u16(vandq_u16(halves, bits)));
    }
  };

  static Vec load(const T* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static void store(T* p, Vec v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
  }
  static Vec broadcast(T v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static T factor(T v) { return v; }
  static Vec multiply_add(T a, Vec b, Vec c) {
    // From the intrinsic GCC 12 makes a copy of `a` in all lanes first.
    __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(c.low) : "w"(b.low), "w"(a));
    __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(c.high) : "w"(b.high), "w"(a));
    return c;
  }
  // If one of the two is NaN, these return the other.
  static Vec max(Vec a, Vec b) { return {vmaxnmq_f32(a.low, b.low), vmaxnmq_f32(a.high, b.high)}; }
  static Vec min(Vec a, Vec b) { return {vminnmq_f32(a.low, b.low), vminnmq_f32(a.high, b.high)}; }
  static Lanes greater(Vec a, Vec b) {
    return {vcgtq_f32(a.low, b.low), vcgtq_f32(a.high, b.high)};
  }
  static Lanes at_least(Vec a, Vec b) {
    return {vcgeq_f32(a.low, b.low), vcgeq_f32(a.high, b.high)};
  }
  static T reduce_max(Vec v) { return vmaxnmvq_f32(vmaxnmq_f32(v.low, v.high)); }
  static Vec subtract(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }

  // Loads the first `count` elements, widened, and fills the rest with zeros.
  static Vec load_some(const float* p, int64_t count) {
    return count >= kWidth ? load(p) : load_fewer(p, count);
  }
  static Vec load_some(const BFloat16* p, int64_t count) {
    if (count < kWidth) return load_fewer(p, count);
    const uint16x8_t bits = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16))};
  }
  static Vec load_some(const Half* p, int64_t count) {
    if (count < kWidth) return load_fewer(p, count);
    const float16x8_t halves =
        vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
    return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
  }

  // Returns the sums of the lanes of eight vectors.
  static Vec sums_of(const Vec (&v)[8]) {
    float32x4_t halves[8];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 8; ++i) halves[i] = vaddq_f32(v[i].low, v[i].high);
    return {vpaddq_f32(vpaddq_f32(halves[0], halves[1]), vpaddq_f32(halves[2], halves[3])),
            vpaddq_f32(vpaddq_f32(halves[4], halves[5]), vpaddq_f32(halves[6], halves[7]))};
  }

 private:
  template <class In>
  VQVAE_FAST_ALONE static Vec load_fewer(const In* p, int64_t count) {
    T elements[kWidth] = {};
    for (int64_t l = 0; l < count; ++l) elements[l] = widen(p[l]);
    return load(elements);
  }
};

struct NeonDouble {
  using T = double;
  struct Vec {
    float64x2_t low, high;
  };
  using Mask = uint8_t;  // a bit per lane
  using Doubles = NeonLanes;
  static constexpr int kWidth = 4, kTileVecs = 2, kTileRows = 6;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) { return {vld1q_f64(p), vld1q_f64(p + 2)}; }
  static void store(T* p, Vec v) {
    vst1q_f64(p, v.low);
    vst1q_f64(p + 2, v.high);
  }
  static Vec broadcast(T v) { return {vdupq_n_f64(v), vdupq_n_f64(v)}; }
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return {vfmaq_f64(c.low, a.low, b.low), vfmaq_f64(c.high, a.high, b.high)};
  }
  static T factor(T v) { return v; }
  static Vec multiply_add(T a, Vec b, Vec c) {
    __asm__("fmla %0.2d, %1.2d, %2.d[0]" : "+w"(c.low) : "w"(b.low), "w"(a));
    __asm__("fmla %0.2d, %1.2d, %2.d[0]" : "+w"(c.high) : "w"(b.high), "w"(a));
    return c;
  }
  static Vec max(Vec a, Vec b) { return {vmaxnmq_f64(a.low, b.low), vmaxnmq_f64(a.high, b.high)}; }
  static Vec min(Vec a, Vec b) { return {vminnmq_f64(a.low, b.low), vminnmq_f64(a.high, b.high)}; }
  static Mask greater(Vec a, Vec b) {
    return mask_of(vcgtq_f64(a.low, b.low), vcgtq_f64(a.high, b.high));
  }
  static Mask at_least(Vec a, Vec b) {
    return mask_of(vcgeq_f64(a.low, b.low), vcgeq_f64(a.high, b.high));
  }
  static T reduce_max(Vec v) { return vmaxnmvq_f64(vmaxnmq_f64(v.low, v.high)); }
  static Vec subtract(Vec a, Vec b) { return {vsubq_f64(a.low, b.low), vsubq_f64(a.high, b.high)}; }
  // Loads the first `count` elements, and fills the rest with zeros.
  static Vec load_some(const T* p, int64_t count) {
    if (count >= kWidth) return load(p);
    T elements[kWidth] = {};
    for (int64_t l = 0; l < count; ++l) elements[l] = p[l];
    return load(elements);
  }
  // Returns the sums of the lanes of four vectors.
  static Vec sums_of(const Vec (&v)[4]) {
    float64x2_t halves[4];
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 4; ++i) halves[i] = vaddq_f64(v[i].low, v[i].high);
    return {vpaddq_f64(halves[0], halves[1]), vpaddq_f64(halves[2], halves[3])};
  }

 private:
  static Mask mask_of(uint64x2_t low, uint64x2_t high) {
    const uint32x4_t bits = {1, 2, 4, 8};
    const uint32x4_t lanes = vuzp1q_u32(vreinterpretq_u32_u64(low), vreinterpretq_u32_u64(high));
    return Mask(vaddvq_u32(vandq_u32(lanes, bits)));
  }
};

// NeonFilter adds the operations of the int8 filter to those of the float search.
struct NeonFilter : NeonFloat {
  struct Ints {
    int32x4_t low, high;
  };
  using NeonFloat::at_least;
  using NeonFloat::greater;
  using NeonFloat::max;
  using NeonFloat::reduce_max;

  static Vec add(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
  static Vec multiply(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static Vec subtract_product(Vec a, Vec b, Vec c) {
    return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
  }
  static Vec abs(Vec v) { return {vabsq_f32(v.low), vabsq_f32(v.high)}; }
  static T reduce_add(Vec v) { return vaddvq_f32(vaddq_f32(v.low, v.high)); }
  static Vec select(Lanes m, Vec yes, Vec no) {
    return {vbslq_f32(m.low, yes.low, no.low), vbslq_f32(m.high, yes.high, no.high)};
  }
  static Vec select(Mask m, Vec yes, Vec no) { return select(lanes_of(m), yes, no); }

  static Ints load_ints(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static void store_ints(int32_t* p, Ints v) {
    vst1q_s32(p, v.low);
    vst1q_s32(p + 4, v.high);
  }
  static Ints broadcast_int(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(v)}; }
  static Ints add(Ints a, Ints b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
  static Ints max(Ints a, Ints b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
  static Lanes greater(Ints a, Ints b) {
    return {vcgtq_s32(a.low, b.low), vcgtq_s32(a.high, b.high)};
  }
  static Lanes at_least(Ints a, Ints b) {
    return {vcgeq_s32(a.low, b.low), vcgeq_s32(a.high, b.high)};
  }
  static int32_t reduce_max(Ints v) { return vmaxvq_s32(vmaxq_s32(v.low, v.high)); }
  static Ints select(Lanes m, Ints yes, Ints no) {
    return {vbslq_s32(m.low, yes.low, no.low), vbslq_s32(m.high, yes.high, no.high)};
  }
  static Ints select(Mask m, Ints yes, Ints no) { return select(lanes_of(m), yes, no); }
  static Ints bit_and(Ints a, Ints b) {
    return {vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)};
  }
  static Ints bit_or(Ints a, Ints b) {
    return {vorrq_s32(a.low, b.low), vorrq_s32(a.high, b.high)};
  }
  static Ints bit_xor(Ints a, Ints b) {
    return {veorq_s32(a.low, b.low), veorq_s32(a.high, b.high)};
  }
  static Ints shift_left(Ints v, unsigned bits) {
    const int32x4_t by = vdupq_n_s32(int32_t(bits));
    return {vshlq_s32(v.low, by), vshlq_s32(v.high, by)};
  }
  static Ints round(Vec v) { return {vcvtnq_s32_f32(v.low), vcvtnq_s32_f32(v.high)}; }
  static Vec to_float(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }

  static void to_doubles(Vec v, Doubles::Vec (&parts)[1]) {
    parts[0] = Doubles::widened(v.low, v.high);
  }

  // Returns what the scores of four codes begin with.
  static int32x4_t start_of(const float* half_norm, float ratio) {
    const float32x4_t start = vmulq_n_f32(vld1q_f32(half_norm), ratio);
    return vmaxq_s32(vcvtnq_s32_f32(start), vdupq_n_s32(kUnusable));
  }

  // Returns a bit for each of 64 masks: whether the mask has any lane.
  static uint64_t not_empty(const Mask* masks) {
    const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const auto bits_of = [&](int i) {
      const uint8x16_t sixteen = vld1q_u8(masks + 16 * i);
      return vandq_u8(vtstq_u8(sixteen, sixteen), bits);
    };
    // Each addition of neighbours halves the bytes of a mask's bit: after three, one byte has
    // eight.
    const uint8x16_t all =
        vpaddq_u8(vpaddq_u8(bits_of(0), bits_of(1)), vpaddq_u8(bits_of(2), bits_of(3)));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
  }

  // Turns eight vectors of eight elements each into eight elements of all vectors.
  static void transpose(Vec (&v)[8]) {
    float32x4_t quarters[2][2][4];  // [vectors 0-3 or 4-7][elements 0-3 or 4-7]
    VQVAE_FAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Vec* of = v + 4 * half;
      transpose(of[0].low, of[1].low, of[2].low, of[3].low, quarters[half][0]);
      transpose(of[0].high, of[1].high, of[2].high, of[3].high, quarters[half][1]);
    }
    VQVAE_FAST_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = {quarters[0][i / 4][i % 4], quarters[1][i / 4][i % 4]};
  }

 private:
  static Lanes lanes_of(Mask m) {
    const uint32x4_t bits = vdupq_n_u32(m), low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
    return {vtstq_u32(bits, low), vtstq_u32(bits, high)};
  }

  static void transpose(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d,
                        float32x4_t (&out)[4]) {
    const auto pair = [](float32x4_t x, float32x4_t y, auto halves) {
      return vreinterpretq_f32_f64(halves(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)));
    };
    const auto low = [](float64x2_t x, float64x2_t y) { return vzip1q_f64(x, y); };
    const auto high = [](float64x2_t x, float64x2_t y) { return vzip2q_f64(x, y); };
    const float32x4_t ab_even = vtrn1q_f32(a, b), ab_odd = vtrn2q_f32(a, b);
    const float32x4_t cd_even = vtrn1q_f32(c, d), cd_odd = vtrn2q_f32(c, d);
    out[0] = pair(ab_even, cd_even, low);
    out[1] = pair(ab_odd, cd_odd, low);
    out[2] = pair(ab_even, cd_even, high);
    out[3] = pair(ab_odd, cd_odd, high);
  }
};

}  // namespace
}  // namespace vqvae_fast
