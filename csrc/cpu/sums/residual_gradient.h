// Runs the backward pass of residual quantization for one row: all stages at once, in float64.
#pragma once

#include <math.h>
#include <stdint.h>

#include "../../elements.h"
#include "../../score_bound.h"
#include "../contract.h"
#include "../exact.h"

namespace vqvae_fast {
namespace {

// Passed holds a, b and c of the gradient a g + b z + c q, which passes from a code q to the row z
// that it quantizes.
struct Passed {
  double of_gradient, of_row, of_code;
};

// Computes the gradient of the rotation trick, |q|/|z| (g - 2 w (w.g) + 2 u (v.g)), from products
// of z, q and g. The unit vectors u, v and w point along z, q and u + v. A length below 1e-6 counts
// as 1e-6.
inline Passed rotated(double zz, double qq, double zq, double zg, double qg) {
  const double least = 1e-6;
  const double length_z = larger(sqrt(zz), least), length_q = larger(sqrt(qq), least);
  const double u_g = zg / length_z, v_g = qg / length_q;
  const double square =
      zz / (length_z * length_z) + qq / (length_q * length_q) + 2 * zq / (length_z * length_q);
  const double w = larger(sqrt(larger(square, 0.0)), least);
  const double along = (u_g + v_g) / (w * w);
  const double ratio = sqrt(qq) / length_z;
  return {ratio, ratio * 2 * (v_g - along) / length_z, ratio * -2 * along / length_q};
}

// Adds the gradient of one row to `sum`. grad and row have D elements. residual (scratch) and sum
// (zeros before the first call) have D elements, rounded up to a multiple of 8.
template <class Simd, class In>
void residual_gradient(const ResidualStages<In>& stages, const In* grad, const In* row,
                       const int64_t* indices, In* residual, double* sum) {
  using Doubles = typename Simd::Doubles;
  const int64_t dim = stages.dim;
  const auto grad_at = [&](int64_t d) { return load_lanes<Doubles>(grad + d, 1, dim - d); };
  for (int64_t d = 0; d < dim; d += 8) {
    Doubles::store(residual + d, load_lanes<Doubles>(row + d, 1, dim - d));
  }
  for (int64_t stage = 0; stage < stages.count; ++stage) {
    const Codes<In>& book = stages.books[stage];
    const In* code = book.row(indices[stage]);
    const auto code_at = [&](int64_t d) {
      return load_lanes<Doubles>(code + d * book.element_stride, book.element_stride, dim - d);
    };
    Passed passed{1, 0, 0};
    if (stages.rotates) {
      auto zz = Doubles::zero(), qq = Doubles::zero(), zq = Doubles::zero(), zg = Doubles::zero(),
           qg = Doubles::zero();
      for (int64_t d = 0; d < dim; d += 8) {
        const auto z = Doubles::load(residual + d), q = code_at(d), g = grad_at(d);
        zz = Doubles::add_square(zz, z);
        qq = Doubles::add_square(qq, q);
        zq = Doubles::add(zq, Doubles::multiply(z, q));
        zg = Doubles::add(zg, Doubles::multiply(z, g));
        qg = Doubles::add(qg, Doubles::multiply(q, g));
      }
      passed = rotated(Doubles::sum(zz), Doubles::sum(qq), Doubles::sum(zq), Doubles::sum(zg),
                       Doubles::sum(qg));
    }
    const double of_error = stages.error_weights[stage];  // the weight of the loss
    const auto of_gradient = Doubles::broadcast(passed.of_gradient);
    const auto of_row = Doubles::broadcast(passed.of_row + of_error);
    const auto of_code = Doubles::broadcast(passed.of_code - of_error);
    for (int64_t d = 0; d < dim; d += 8) {
      const auto z = Doubles::load(residual + d), q = code_at(d);
      auto all = Doubles::add(Doubles::load(sum + d), Doubles::multiply(of_gradient, grad_at(d)));
      all = Doubles::add(all, Doubles::multiply(of_row, z));
      Doubles::store(sum + d, Doubles::add(all, Doubles::multiply(of_code, q)));
      Doubles::store(residual + d, Doubles::subtract(z, q));  // one rounding, as in forward
    }
  }
}

}  // namespace
}  // namespace vqvae_fast
