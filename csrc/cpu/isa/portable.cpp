// machines: any
//
// This file is the engine for any compiler and machine. Its loops have fixed sizes, so that a
// compiler turns them into the vectors that the machine has.
#include "../float_search/search_kernel.h"

namespace vqvae_fast {
namespace {

// PortableLanes has eight lanes of float64, for the exact distances.
struct PortableLanes {
  struct Vec {
    double at[8];
  };
  template <class F>
  static Vec each(F f) {
    Vec v;
    for (int i = 0; i < 8; ++i) v.at[i] = f(i);
    return v;
  }
  static Vec zero() { return broadcast(0); }
  static Vec broadcast(double value) {
    return each([=](int) { return value; });
  }
  static Vec load(const float* p) {
    return each([=](int i) { return double(p[i]); });
  }
  static Vec load(const double* p) {
    return each([=](int i) { return p[i]; });
  }
  template <class T>
  static void store(T* p, const Vec& v) {
    for (int i = 0; i < 8; ++i) p[i] = T(v.at[i]);
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
  // The additions have the order of halving a vector three times.
  static double sum(const Vec& v) {
    const double* a = v.at;
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  }
};

// These vectors have 16 bytes, as SSE2, NEON and similar sets do. Compilers that support GCC's
// vector types keep them in registers; from plain arrays GCC makes code that is ten times slower.
template <class Element>
struct Portable {
  using T = Element;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = PortableLanes;
  static constexpr int kWidth = 16 / sizeof(T), kTileVecs = 2, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
#if defined(__GNUC__)
  typedef T Vec __attribute__((vector_size(16)));
  static Vec broadcast(T value) { return value - Vec{}; }  // x - 0 is x, and folds
  static Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec subtract(Vec a, Vec b) { return a - b; }
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static Vec min(Vec a, Vec b) { return a < b ? a : b; }
#else
  struct Vec {
    T lane[kWidth];
    T& operator[](int i) { return lane[i]; }
    T operator[](int i) const { return lane[i]; }
  };
  template <class F>
  static Vec each(F f) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = f(i);
    return v;
  }
  static Vec broadcast(T value) {
    return each([=](int) { return value; });
  }
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return each([&](int i) { return a[i] * b[i] + c[i]; });
  }
  static Vec subtract(Vec a, Vec b) {
    return each([&](int i) { return a[i] - b[i]; });
  }
  static Vec max(Vec a, Vec b) {
    return each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
  }
#endif
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
