// Any compiler, any machine: fixed-size loops that compilers turn into whatever vectors there are.
#include "search_kernel.h"

namespace vqvae_fast {
namespace {

template <class Element>
struct Portable {
  using T = Element;
  using Mask = uint8_t;  // a bit per lane
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
