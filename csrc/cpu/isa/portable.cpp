// machines: any
//
// This file is the engine for any machine. Its vectors are those types of GCC and Clang that have
// 16 bytes, as the registers of SSE2, NEON and similar sets do.
#include "../float_search/search_kernel.h"

namespace vqvae_fast {
namespace {

// PortableLanes has eight lanes of float64, for the exact distances.
struct PortableLanes {
  typedef double Pair __attribute__((vector_size(16)));
  struct Vec {
    Pair at[4];
  };
  template <class F>
  static Vec each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static Vec zero() { return broadcast(0); }
  static Vec broadcast(double value) {
    return each([=](int) { return Pair{value, value}; });
  }
  static Vec load(const float* p) {
    return each([=](int i) { return Pair{p[2 * i], p[2 * i + 1]}; });
  }
  static Vec load(const double* p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  template <class T>
  static void store(T* p, const Vec& v) {
    for (int i = 0; i < 8; ++i) p[i] = T(v.at[i / 2][i % 2]);
  }
  static Vec subtract(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Vec multiply(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Vec add_square(const Vec& sum, const Vec& v) {
    return each([&](int i) { return sum.at[i] + v.at[i] * v.at[i]; });
  }
  static void keep_nearer(Vec& nearest, Vec& index, const Vec& distance, const Vec& its_index) {
    for (int i = 0; i < 4; ++i) {
      index.at[i] = distance.at[i] < nearest.at[i] ? its_index.at[i] : index.at[i];
      nearest.at[i] = distance.at[i] < nearest.at[i] ? distance.at[i] : nearest.at[i];
    }
  }
  // The additions have the order of halving a vector three times.
  static double sum(const Vec& v) {
    const Pair m = (v.at[0] + v.at[2]) + (v.at[1] + v.at[3]);
    return m[0] + m[1];
  }
};

// From plain arrays in the place of these vectors GCC makes code that is ten times slower.
template <class Element>
struct Portable {
  using T = Element;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = PortableLanes;
  static constexpr int kWidth = 16 / sizeof(T), kTileVecs = 2, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  typedef T Vec __attribute__((vector_size(16)));
  static Vec broadcast(T value) { return value - Vec{}; }  // x - 0 is x, and folds
  static Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec subtract(Vec a, Vec b) { return a - b; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static Vec min(Vec a, Vec b) { return a < b ? a : b; }
  static Vec load(const T* p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, Vec v) { memcpy(p, &v, sizeof v); }
  static Mask greater(Vec a, Vec b) {
    Mask mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= Mask((a[i] > b[i]) << i);
    return mask;
  }
  static Mask at_least(Vec a, Vec b) {
    Mask mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= Mask((a[i] >= b[i]) << i);
    return mask;
  }
  static T reduce_max(Vec v) {
    T top = v[0];
    for (int i = 1; i < kWidth; ++i) top = v[i] > top ? v[i] : top;
    return top;
  }
  // Loads the first `count` elements, and fills the rest with zeros.
  static Vec load_some(const T* p, int64_t count) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = i < count ? p[i] : T(0);
    return v;
  }
  // Returns the sums of the lanes of kWidth vectors.
  static Vec sums_of(const Vec (&v)[kWidth]) {
    Vec sums;
    for (int j = 0; j < kWidth; ++j) {
      sums[j] = v[j][0];
      for (int i = 1; i < kWidth; ++i) sums[j] += v[j][i];
    }
    return sums;
  }
};

constexpr Engines kEngines = make_engines<Portable<float>, Portable<double>>();

bool machine_has() { return true; }

}  // namespace

namespace isa {
extern constinit const InstructionSet portable = {"portable", 0, machine_has, &kEngines};
}  // namespace isa

}  // namespace vqvae_fast
