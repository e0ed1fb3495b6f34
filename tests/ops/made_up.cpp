// machines: any
// flags: -DMADE_UP_FLAG=1
//
// An instruction set that no machine has, in plain C++. test_new_instruction_set.py copies this
// file to csrc/cpu/isa and nothing else: the build must find it with its flags, and it must serve.
// Its lanes and tiles differ from those of every other instruction set, so that the templates
// cannot rely on theirs.
#include <string.h>

#include "../float_search/search_kernel.h"
#include "../int8_filter/filter_kernel.h"

#ifndef MADE_UP_FLAG
#error "the flags of this file did not reach the compiler"
#endif

namespace vqvae_fast {
namespace {

template <class T>
struct Lanes {
  T at[8];
};

template <class T, class F>
Lanes<T> each(F f) {
  Lanes<T> v;
  for (int i = 0; i < 8; ++i) v.at[i] = f(i);
  return v;
}

template <class F>
uint8_t bits(F f) {
  uint8_t mask = 0;
  for (int i = 0; i < 8; ++i) mask |= uint8_t(f(i) << i);
  return mask;
}

template <class Element>
struct Plain {
  using T = Element;
  using Vec = Lanes<T>;
  static Vec zero() { return broadcast(0); }
  static Vec broadcast(T value) {
    return each<T>([=](int) { return value; });
  }
  static Vec subtract(Vec a, Vec b) {
    return each<T>([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Vec add(Vec a, Vec b) {
    return each<T>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Vec multiply(Vec a, Vec b) {
    return each<T>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return each<T>([&](int i) { return fused(a.at[i], b.at[i], c.at[i]); });
  }
  static Vec subtract_product(Vec a, Vec b, Vec c) {
    return each<T>([&](int i) { return fused(-a.at[i], b.at[i], c.at[i]); });
  }

 private:
  static float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
};

struct PlainDoubles : Plain<double> {
  static Vec load(const float* p) {
    return each<double>([=](int i) { return double(p[i]); });
  }
  static Vec load(const double* p) {
    return each<double>([=](int i) { return p[i]; });
  }
  template <class To>
  static void store(To* p, Vec v) {
    for (int i = 0; i < 8; ++i) p[i] = To(v.at[i]);
  }
  static Vec add_square(Vec sum, Vec v) { return add(sum, multiply(v, v)); }
  static double sum(Vec v) {
    const double* a = v.at;
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  }
};

// What the float search asks of its lanes.
template <class Element>
struct PlainSimd : Plain<Element> {
  using T = Element;
  using Vec = Lanes<T>;
  using Mask = uint8_t;
  using Doubles = PlainDoubles;
  static constexpr int kWidth = 8, kTileVecs = 2, kTileRows = 6;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  static Vec load(const T* p) {
    return each<T>([=](int i) { return p[i]; });
  }
  static void store(T* p, Vec v) { memcpy(p, v.at, sizeof v); }
  static Vec max(Vec a, Vec b) {
    return each<T>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return each<T>([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Mask greater(Vec a, Vec b) {
    return bits([&](int i) { return a.at[i] > b.at[i]; });
  }
  static Mask at_least(Vec a, Vec b) {
    return bits([&](int i) { return a.at[i] >= b.at[i]; });
  }
  static T reduce_max(Vec v) {
    T top = v.at[0];
    for (int i = 1; i < 8; ++i) top = v.at[i] > top ? v.at[i] : top;
    return top;
  }
  template <class In>
  static Vec load_some(const In* p, int64_t count) {
    return each<T>([&](int i) { return i < count ? widen(p[i]) : 0; });
  }
  static Vec sums_of(const Vec (&v)[8]) {
    return each<T>([&](int j) {
      T sum = 0;
      for (int i = 0; i < 8; ++i) sum += v[j].at[i];
      return sum;
    });
  }
};

// What the int8 filter asks beside it.
struct PlainFilter : PlainSimd<float> {
  using Ints = Lanes<int32_t>;
  using PlainSimd<float>::at_least;
  using PlainSimd<float>::greater;
  using PlainSimd<float>::max;
  using PlainSimd<float>::reduce_max;
  using Plain<float>::add;

  static Vec abs(Vec v) {
    return each<float>([&](int i) { return fabsf(v.at[i]); });
  }
  template <class E>
  static Lanes<E> select(Mask m, Lanes<E> yes, Lanes<E> no) {
    return each<E>([&](int i) { return m >> i & 1 ? yes.at[i] : no.at[i]; });
  }
  static Ints load_ints(const int32_t* p) {
    return each<int32_t>([=](int i) { return p[i]; });
  }
  static void store_ints(int32_t* p, Ints v) { memcpy(p, v.at, sizeof v); }
  static Ints broadcast_int(int32_t value) {
    return each<int32_t>([=](int) { return value; });
  }
  static Ints add(Ints a, Ints b) {
    return each<int32_t>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Ints max(Ints a, Ints b) {
    return each<int32_t>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Mask greater(Ints a, Ints b) {
    return bits([&](int i) { return a.at[i] > b.at[i]; });
  }
  static Mask at_least(Ints a, Ints b) {
    return bits([&](int i) { return a.at[i] >= b.at[i]; });
  }
  static int32_t reduce_max(Ints v) {
    int32_t top = v.at[0];
    for (int i = 1; i < 8; ++i) top = v.at[i] > top ? v.at[i] : top;
    return top;
  }
  static Ints bit_and(Ints a, Ints b) {
    return each<int32_t>([&](int i) { return a.at[i] & b.at[i]; });
  }
  static Ints bit_or(Ints a, Ints b) {
    return each<int32_t>([&](int i) { return a.at[i] | b.at[i]; });
  }
  static Ints bit_xor(Ints a, Ints b) {
    return each<int32_t>([&](int i) { return a.at[i] ^ b.at[i]; });
  }
  static Ints shift_left(Ints v, unsigned count) {
    return each<int32_t>([&](int i) { return int32_t(uint32_t(v.at[i]) << count); });
  }
  static Ints round(Vec v) {
    return each<int32_t>([&](int i) { return rounded(v.at[i]); });
  }
  static Vec to_float(Ints v) {
    return each<float>([&](int i) { return float(v.at[i]); });
  }
  static void to_doubles(Vec v, Doubles::Vec (&parts)[1]) { parts[0] = Doubles::load(v.at); }
  static float reduce_add(Vec v) {
    float sum = 0;
    for (int i = 0; i < 8; ++i) sum += v.at[i];
    return sum;
  }
  static void transpose(Vec (&v)[8]) {
    Vec turned[8];
    for (int i = 0; i < 8; ++i) turned[i] = each<float>([&](int j) { return v[j].at[i]; });
    memcpy(v, turned, sizeof v);
  }
  static uint64_t not_empty(const Mask* masks) {
    uint64_t any = 0;
    for (int g = 0; g < 64; ++g) any |= uint64_t{masks[g] != 0} << g;
    return any;
  }

  // As the processors round: what is not a number in range becomes the least integer.
  static int32_t rounded(float value) {
    return fabsf(value) < 0x1p31f ? int32_t(__builtin_nearbyintf(value)) : INT32_MIN;
  }
};

// Signed times signed bytes, unlike VNNI's. A tile has more rows than a vector has lanes, and three
// codes of a group share a lane.
struct PlainInt8 {
  using Simd = PlainFilter;
  static constexpr int kTileRows = 10, kGroupCodes = 24, kCodeOffset = 0;
  static constexpr int kLargestRow = 127;
  static constexpr int64_t kSmallestDim = 8, kFewestElements = 1 << 14;

  // tile: [kTileRows][words].
  static void pack_rows(int32_t* tile, Int8Words words, int64_t w, int64_t first, Simd::Ints rows) {
    for (int i = 0; i < 8 && first + i < kTileRows; ++i)
      tile[(first + i) * words.all + w] = rows.at[i];
  }
  // group: [kGroupCodes][words].
  static void pack_codes(int32_t* group, Int8Words words, int64_t w, int64_t first,
                         Simd::Ints codes) {
    for (int i = 0; i < 8; ++i) group[(first + i) * words.all + w] = codes.at[i];
  }
  static void score_group(const int32_t* tiles, int64_t num_rows, const float* ratio,
                          const int32_t* group, const float* half_norm, Int8Words words,
                          int32_t* best) {
    for (int64_t row = 0; row < num_rows; ++row) {
      int32_t scores[kGroupCodes];
      score_row(tiles, row, ratio[row / kTileRows], group, half_norm, words, scores);
      for (int code = 0; code < kGroupCodes; ++code) {
        int32_t& of_lane = best[row * 8 + code % 8];
        if (code < 8 || scores[code] > of_lane) of_lane = scores[code];
      }
    }
  }
  static void score_row(const int32_t* tile, int64_t r, float ratio, const int32_t* group,
                        const float* half_norm, Int8Words words, int32_t* scores) {
    for (int code = 0; code < kGroupCodes; ++code) {
      const int32_t start = Simd::rounded(half_norm[code] * ratio);
      scores[code] = (start < kUnusable ? kUnusable : start) +
                     product(tile + r * words.all, group + code * words.all, words);
    }
  }

 private:
  static int32_t product(const int32_t* row, const int32_t* code, Int8Words words) {
    int32_t sum = 0;
    for (int64_t w = 0; w < words.all; ++w) {
      const int width = w < words.wide ? 16 : 8;
      for (int at = 0; at < 32; at += width)
        sum += part(row[w], at, width) * part(code[w], at, width);
    }
    return sum;
  }
  // Bits [at, at + width) of a word as a signed integer.
  static int32_t part(int32_t word, int at, int width) {
    return int32_t(uint32_t(word) << (32 - width - at)) >> (32 - width);
  }
};

constexpr Engines kEngines = make_engines<PlainSimd<float>, PlainSimd<double>>();
constexpr Int8Filters kFilters = make_filters<PlainInt8>();

VQVAE_FAST_PROBE bool machine_has() { return true; }

}  // namespace

namespace isa {
extern constinit const InstructionSet made_up = {"made_up", 100, machine_has, &kEngines, &kFilters};
}  // namespace isa

}  // namespace vqvae_fast
