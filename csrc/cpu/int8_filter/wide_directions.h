// Finds the few directions in which a codebook is far wider than in all others, as codebooks of
// trained models often are.
//
// In 8 bits the widest direction decides how coarse all integers are. Reflections turn the widest
// ones into the first dimensions, which then get 16 bits.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../rows.h"
#include "../contract.h"
#include "book.h"
#include "centred.h"

namespace vqvae_fast {
namespace {

constexpr int64_t kWideSamples = 64;
// At most this share of the samples' squares may remain in the other dimensions. Random samples of
// an isotropic distribution leave a third or more.
constexpr float kMostRemaining = 1.0f / 8;
// If D is smaller, eight dimensions of 16 bits cost too much.
constexpr int64_t kSmallestDimWithWide = 16;

template <class Simd>
struct WideScratch {
  static constexpr int64_t kWidth = Simd::kWidth, kBatches = kWideSamples / kWidth;

  float* samples;      // [batches][padded D][kWidth], centred
  double* directions;  // [D][8]

  WideScratch(int64_t dim, void* scratch)
      : samples(static_cast<float*>(scratch)),
        directions(reinterpret_cast<double*>(batch(dim, kBatches))) {}

  float* batch(int64_t dim, int64_t number) const {
    return samples + number * padded_dim(dim) * kWidth;
  }
  static int64_t bytes(int64_t dim) {
    return kBatches * centred_bytes<Simd>(dim) + dim * kWideDims * int64_t{sizeof(double)};
  }
};

// Takes one step of the power iteration for the samples' covariance and starts from some of the
// samples. The span of the result is close to that of the widest directions. The result has the
// scale of the samples.
template <class Simd>
void span_widest(const WideScratch<Simd>& scratch, int64_t dim) {
  using Vec = typename Simd::Vec;
  constexpr int64_t kWidth = Simd::kWidth, kBatches = WideScratch<Simd>::kBatches;
  Vec products[kBatches][kWideDims];  // of samples and starting samples
  Vec largest = Simd::broadcast(0);
  for (int64_t s = 0; s < kBatches; ++s) {
    const float* samples = scratch.batch(dim, s);
    for (int64_t i = 0; i < kWideDims; ++i) {
      const int64_t start = kWideSamples / kWideDims * i;
      const float* of_start = scratch.batch(dim, start / kWidth) + start % kWidth;
      Vec sum = Simd::broadcast(0);
      for (int64_t d = 0; d < dim; ++d) {
        sum = Simd::multiply_add(Simd::load(samples + d * kWidth),
                                 Simd::broadcast(of_start[d * kWidth]), sum);
      }
      products[s][i] = sum;
      largest = Simd::max(largest, Simd::abs(sum));
    }
  }
  const float scale = 1 / Simd::reduce_max(largest);
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = 0; i < kWideDims; ++i) {
      Vec sum = Simd::broadcast(0);
      for (int64_t s = 0; s < kBatches; ++s) {
        const Vec share = Simd::multiply(products[s][i], Simd::broadcast(scale));
        sum = Simd::multiply_add(Simd::load(scratch.batch(dim, s) + d * kWidth), share, sum);
      }
      scratch.directions[d * kWideDims + i] = double(Simd::reduce_add(sum));
    }
  }
}

static_assert(kWideDims == 8, "Doubles hold a number for each direction");

// Finds, by Householder's triangularisation, the reflections that map the directions' span to the
// first dimensions. A reflection that is not needed is zeros.
template <class Doubles>
void reflections_of(double* directions, int64_t dim, float* reflections) {
  const auto all_of = [](float element) { return Doubles::broadcast(double(element)); };
  const int64_t padded = padded_dim(dim);
  for (int64_t i = 0; i < kWideDims; ++i) {
    float* reflection = reflections + i * padded;
    for (int64_t d = 0; d < padded; ++d) reflection[d] = 0;
    double square = 0;
    for (int64_t d = i; d < dim; ++d) {
      const double element = directions[d * kWideDims + i];
      square += element * element;
    }
    const double first = directions[i * kWideDims + i];
    const double moved = first + copysign(sqrt(square), first);
    const double length = sqrt(0.5 * (square - first * first + moved * moved));
    if (!(length > 0 && length < kInfinity)) continue;
    auto products = Doubles::zero();
    for (int64_t d = i; d < dim; ++d) {
      const double element = d == i ? moved : directions[d * kWideDims + i];
      reflection[d] = float(element / length);
      products = Doubles::multiply_add(all_of(reflection[d]),
                                       Doubles::load(directions + d * kWideDims), products);
    }
    for (int64_t d = i; d < dim; ++d) {
      double* direction = directions + d * kWideDims;
      Doubles::store(direction, Doubles::subtract_product(all_of(reflection[d]), products,
                                                          Doubles::load(direction)));
    }
  }
}

// Writes the products of neighbouring reflections behind them.
template <class Doubles>
void find_overlaps(int64_t dim, float* reflections) {
  const int64_t padded = padded_dim(dim);
  float* overlaps = reflections + kWideDims * padded;
  for (int64_t i = 0; i < kWideDims; i += 2) {
    const float* v = reflections + i * padded;
    auto sum = Doubles::zero();
    for (int64_t d = 0; d < padded; d += 8) {
      sum = Doubles::multiply_add(Doubles::load(v + d), Doubles::load(v + padded + d), sum);
    }
    overlaps[i / 2] = float(Doubles::sum(sum));
  }
}

// Returns the sum of the samples' squares in dimensions [first, D).
template <class Simd>
float squares_from(const WideScratch<Simd>& scratch, int64_t dim, int64_t first) {
  auto sum = Simd::broadcast(0);
  for (int64_t s = 0; s < scratch.kBatches; ++s) {
    for (int64_t d = first; d < dim; ++d) {
      const auto elements = Simd::load(scratch.batch(dim, s) + d * Simd::kWidth);
      sum = Simd::multiply_add(elements, elements, sum);
    }
  }
  return Simd::reduce_add(sum);
}

template <class Simd, class In>
int64_t find_wide(const ListedCodes<In>& codes, const float* centre, void* memory,
                  float* reflections) {
  using Doubles = typename Simd::Doubles;
  constexpr int64_t kWidth = Simd::kWidth;
  const int64_t dim = codes.dim;
  if (dim < kSmallestDimWithWide) return 0;
  const WideScratch<Simd> scratch(dim, memory);
  for (int64_t s = 0; s < scratch.kBatches; ++s) {
    float* x = scratch.batch(dim, s);
    const In* vectors[kWidth];
    for (int64_t l = 0; l < kWidth; ++l) {
      vectors[l] = codes.row(codes.count * (s * kWidth + l) / kWideSamples);
    }
    const auto in_range =
        subtract_centre<Simd>(vectors, codes.element_stride, centre, dim, x).in_range;
    for (int64_t d = 0; d < dim; ++d) {  // the others would spoil all directions
      float* at = x + d * kWidth;
      Simd::store(at, Simd::select(in_range, Simd::load(at), Simd::broadcast(0)));
    }
  }
  span_widest<Simd>(scratch, dim);
  reflections_of<Doubles>(scratch.directions, dim, reflections);
  find_overlaps<Doubles>(dim, reflections);
  const float all = squares_from(scratch, dim, 0);
  for (int64_t s = 0; s < scratch.kBatches; ++s) {
    reflect<Simd>(reflections, kWideDims, dim, scratch.batch(dim, s));
  }
  return squares_from(scratch, dim, kWideDims) < kMostRemaining * all ? kWideDims : 0;
}

}  // namespace
}  // namespace vqvae_fast
