// The kernels among sanitizers: odd shapes and adversarial values, in small tiles whose threads are
// real ones, against plain loops. Prints what is wrong, and exits with 1 then.
#include <math.h>
#include <stdio.h>

#include <memory>
#include <random>
#include <vector>

#include "cuda_runtime.h"
#include "search.cuh"
#include "segment_sum.cuh"

namespace {

using namespace vqvae_fast;
using SmallTile = Tile<4>;  // 32 rows, 64 threads: two warps

std::mt19937 generator;
int failures = 0;

void expect(bool right, const char* what, const char* about) {
  if (right) return;
  printf("wrong: %s, %s\n", what, about);
  ++failures;
}

// Of exactly so many elements, so that the address sanitizer sees the first one beyond.
template <class T>
std::unique_ptr<T[]> exactly(int64_t count) {
  return std::make_unique<T[]>(static_cast<size_t>(count));
}

template <class In>
In element(double value) {
  return Narrow<In>::from(static_cast<Compute<In>>(value));
}

template <class In>
struct Matrix {
  int64_t rows, dim;
  bool transposed;
  std::unique_ptr<In[]> data = exactly<In>(rows * dim);

  int64_t row_stride() const { return transposed ? 1 : dim; }
  int64_t element_stride() const { return transposed ? rows : 1; }
  In& at(int64_t n, int64_t d) const { return data[n * row_stride() + d * element_stride()]; }
  Rows<In> view() const { return {data.get(), rows, dim, rows, 0, row_stride(), element_stride()}; }
  Rows<const In> constant() const {
    return {data.get(), rows, dim, rows, 0, row_stride(), element_stride()};
  }
  Codes<In> codes() const { return {data.get(), rows, dim, row_stride(), element_stride()}; }
};

// grain: coarse values tie; offset: far from the origin.
template <class In>
Matrix<In> random_matrix(int64_t rows, int64_t dim, bool transposed, double grain, double offset) {
  Matrix<In> m{rows, dim, transposed};
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < rows * dim; ++i) {
    const double value = normal(generator);
    m.data[i] = element<In>(offset + (grain > 0 ? round(value / grain) * grain : value));
  }
  return m;
}

template <class In>
double distance(const Matrix<In>& z, int64_t n, const Matrix<In>& book, int64_t k) {
  double sum = 0;
  for (int64_t d = 0; d < z.dim; ++d) {
    const double difference = double(widen(z.at(n, d))) - double(widen(book.at(k, d)));
    sum += difference * difference;
  }
  return sum;
}

// The contract of the search, by a plain loop: nothing is compared but distances.
template <class In>
void check_search(const char* about, const Matrix<In>& z, const Matrix<In>& book, int processors) {
  const int64_t bytes =
      plan_search<In, SmallTile>(z.constant(), book.codes(), processors, nullptr).bytes;
  auto workspace = exactly<char>(bytes + 256);
  void* aligned = workspace.get() + (256 - reinterpret_cast<uintptr_t>(workspace.get()) % 256);
  auto indices = exactly<int64_t>(z.rows);
  auto distances = exactly<Compute<In>>(z.rows);
  Matrix<In> quantized{z.rows, z.dim, z.transposed};
  run_search<In, SmallTile>(z.constant(), book.codes(), indices.get(), distances.get(),
                            quantized.view(), aligned, processors, nullptr);
  for (int64_t n = 0; n < z.rows; ++n) {
    double least = HUGE_VAL;
    int64_t lowest = 0;
    bool any = false, row_has_nan = false;
    for (int64_t d = 0; d < z.dim; ++d) row_has_nan |= isnan(double(widen(z.at(n, d))));
    for (int64_t k = 0; k < book.rows; ++k) {
      bool usable = true;
      for (int64_t d = 0; d < z.dim; ++d) usable &= isfinite(double(widen(book.at(k, d)))) != 0;
      const double here = distance(z, n, book, k);
      if (usable && (!any || here < least)) {
        lowest = k;
        least = here;
      }
      any |= usable;
    }
    const int64_t k = indices[n];
    expect(k >= 0 && k < book.rows, "an index", about);
    if (k < 0 || k >= book.rows) return;
    if (row_has_nan) {
      expect(k == 0 && isnan(double(distances[n])), "a row with a NaN", about);
    } else if (!any || isinf(least)) {
      expect(k == lowest, "the lowest index where all is infinitely far", about);
    } else {
      expect(distance(z, n, book, k) <= least * (1 + 1e-12), "the nearest code", about);
      const double rounded = double(static_cast<Compute<In>>(least));  // to infinity, it may be
      expect(double(distances[n]) == rounded || fabs(double(distances[n]) - least) <= 1e-6 * least,
             "a distance", about);
    }
    for (int64_t d = 0; d < z.dim; ++d) {
      expect(memcmp(&quantized.at(n, d), &book.at(k, d), sizeof(In)) == 0, "a quantized row",
             about);
    }
  }
}

// Each barrier of so many real threads takes long: not every type meets every shape.
template <class In>
void check_searches(int num_shapes) {
  struct {
    int64_t rows, codes, dim;
  } shapes[] = {{33, 129, 9}, {2, 257, 8}, {65, 5, 17}, {1, 1, 1}};
  for (int i = 0; i < num_shapes; ++i) {
    const auto& shape = shapes[i];
    const bool transposed = i % 2 != 0;
    const auto z = random_matrix<In>(shape.rows, shape.dim, transposed, 0, 0);
    const auto book = random_matrix<In>(shape.codes, shape.dim, !transposed, 0, 0);
    check_search("normal numbers", z, book, transposed ? 2 : 1);
  }
  const auto z = random_matrix<In>(9, 5, false, 1, 3);
  auto book = random_matrix<In>(140, 5, false, 1, 3);
  check_search("ties", z, book, 1);
  book.at(7, 2) = element<In>(NAN);
  book.at(0, 1) = element<In>(HUGE_VAL);
  book.at(9, 0) = element<In>(3e4);
  z.at(3, 3) = element<In>(NAN);
  z.at(4, 4) = element<In>(-HUGE_VAL);
  check_search("what is not finite", z, book, 2);
  for (int64_t k = 0; k < book.rows; ++k) book.at(k, 0) = element<In>(NAN);
  check_search("no usable code", z, book, 1);
}

void check_far_codes() {
  const auto z = random_matrix<float>(10, 4, false, 0, 0);
  const auto book = random_matrix<float>(150, 4, false, 0, 0);
  book.at(3, 1) = 1e30f;
  z.at(5, 1) = 9e29f;
  z.at(6, 0) = 3e38f;
  check_search("codes far away", z, book, 1);
}

template <class In>
void check_sums(int64_t rows, int64_t segments, int64_t dim, bool one_segment) {
  const auto z = random_matrix<In>(rows, dim, one_segment, 1, 0);
  const auto book = random_matrix<In>(segments, dim, false, 1, 0);
  const auto grad = random_matrix<In>(rows, dim, !one_segment, 1, 0);
  auto indices = exactly<int64_t>(rows);
  for (int64_t n = 0; n < rows; ++n) {
    indices[n] = one_segment ? segments / 2 : static_cast<int64_t>(generator() % segments);
  }
  if (rows > 1) indices[rows / 2] = -1;
  int64_t bytes = 0;
  bytes = plan_sum(rows, dim, segments, nullptr).bytes;
  auto workspace = exactly<char>(bytes + 256);
  void* aligned = workspace.get() + (256 - reinterpret_cast<uintptr_t>(workspace.get()) % 256);
  auto sums = exactly<Compute<In>>(segments * dim);
  auto counts = exactly<Compute<In>>(segments);
  run_segment_sum<In>(z.constant(), indices.get(), segments, sums.get(), counts.get(), aligned,
                      nullptr);
  Matrix<In> grad_z{rows, dim, false}, grad_book{segments, dim, false};
  const Compute<In> grad_loss = static_cast<Compute<In>>(rows * dim);
  run_backward<In>({grad.constant(), &grad_loss, z.constant(), book.codes(), indices.get(), 0.5,
                    0.25, double(rows * dim), grad_z.view(), grad_book.data.get()},
                   aligned, nullptr);
  for (int64_t k = 0; k < segments; ++k) {
    for (int64_t d = 0; d < dim; ++d) {
      double sum = 0, errors = 0, count = 0;
      for (int64_t n = 0; n < rows; ++n) {
        if (indices[n] != k) continue;
        sum += double(widen(z.at(n, d)));
        errors += double(widen(z.at(n, d))) - double(widen(book.at(k, d)));
        ++count;
      }
      expect(double(sums[k * dim + d]) == sum && double(counts[k]) == count, "a sum", "segments");
      const double gradient = -0.5 * errors;  // 2 * grad_loss / elements * 0.25
      expect(fabs(double(widen(grad_book.at(k, d))) - gradient) <= 1e-2 * fabs(gradient),
             "a code's gradient", "segments");
    }
  }
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t d = 0; d < dim; ++d) {
      double wanted = double(widen(grad.at(n, d)));  // 2 * grad_loss / elements * 0.5 = 1
      if (indices[n] >= 0) {
        wanted += double(widen(z.at(n, d))) - double(widen(book.at(indices[n], d)));
      }
      expect(double(widen(grad_z.at(n, d))) == wanted, "a row's gradient", "segments");
    }
  }
  indices[0] = segments;  // never followed
  run_segment_sum<In>(z.constant(), indices.get(), segments, sums.get(), counts.get(), aligned,
                      nullptr);
  expect(isnan(double(counts[0])) && isnan(double(sums[0])), "a bad index", "segments");
}

}  // namespace

int main() {
  check_searches<float>(4);
#ifndef VQVAE_FAST_TEST_WITHOUT_BARRIER
  check_searches<Half>(1);
  check_searches<double>(1);
  check_far_codes();
  check_sums<float>(1, 1, 1, false);
  check_sums<float>(300, 17, 3, false);
  check_sums<BFloat16>(4200, 5, 1, true);
  check_sums<double>(70, 200, 2, false);
#endif
  if (failures == 0) puts("all right");
  return failures == 0 ? 0 : 1;
}
