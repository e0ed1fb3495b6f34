// Any compiler, any machine: fixed-size loops that compilers turn into whatever vectors there are.
#include "search_kernel.h"

namespace vqvae_fast {
namespace {

// Eight lanes of float64, for the exact distances.
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
  template <class T>
  static Vec load(const T* p) {
    return each([=](int i) { return double(p[i]); });
  }
  template <class T>
  static void store(T* p, const Vec& v) {
    for (int i = 0; i < 8; ++i) p[i] = T(v.at[i]);
  }
  static Vec subtract(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
  }
  static Vec multiply(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Vec add_square(const Vec& sum, const Vec& v) {
    return each([&](int i) { return sum.at[i] + v.at[i] * v.at[i]; });
  }
  // The order of the additions is that of halving a vector three times.
  static double sum(const Vec& v) {
    const double* a = v.at;
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
  }
};

template <class Element>
struct Portable {
  using T = Element;
  using Mask = uint8_t;  // a bit per lane
  using Doubles = PortableLanes;
  static constexpr int kWidth = 4, kTileVecs = 2, kTileRows = 4;
  static constexpr int kTileCodes = kWidth * kTileVecs;
  struct Vec {
    T at[kWidth];
  };
  template <class F>
  static Vec each(F f) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v.at[i] = f(i);
    return v;
  }
  static Vec load(const T* p) {
    return each([=](int i) { return p[i]; });
  }
  static void store(T* p, const Vec& v) {
    for (int i = 0; i < kWidth; ++i) p[i] = v.at[i];
  }
  static Vec broadcast(T value) {
    return each([=](int) { return value; });
  }
  static Vec multiply_add(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return a.at[i] * b.at[i] + c.at[i]; });
  }
  static Vec max(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Vec min(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Mask greater(const Vec& a, const Vec& b) {
    Mask mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= Mask((a.at[i] > b.at[i]) << i);
    return mask;
  }
  static Mask at_least(const Vec& a, const Vec& b) {
    Mask mask = 0;
    for (int i = 0; i < kWidth; ++i) mask |= Mask((a.at[i] >= b.at[i]) << i);
    return mask;
  }
  static T reduce_max(const Vec& v) {
    T top = v.at[0];
    for (int i = 1; i < kWidth; ++i) top = v.at[i] > top ? v.at[i] : top;
    return top;
  }
};

}  // namespace

extern const InstructionSet kPortable =
    make_instruction_set<Portable<float>, Portable<double>>("portable");

}  // namespace vqvae_fast
