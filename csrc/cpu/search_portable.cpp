// Any compiler, any machine: fixed-size loops that compilers turn into whatever vectors there are.
#include "search_kernel.h"

namespace vqvae_fast {
namespace {

template <class Element>
struct Portable {
  using T = Element;
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
  static Vec where_greater(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
    return each([&](int i) { return a.at[i] > b.at[i] ? yes.at[i] : no.at[i]; });
  }
  static bool any_at_least(const Vec& a, const Vec& b) {
    bool any = false;
    for (int i = 0; i < kWidth; ++i) any |= a.at[i] >= b.at[i];
    return any;
  }
};

}  // namespace

extern const InstructionSet kPortable =
    make_instruction_set<Portable<float>, Portable<double>>("portable");

}  // namespace vqvae_fast
