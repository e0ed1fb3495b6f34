// Residual quantization: each stage quantizes what the stages before it have left. The projections
// around the stages are here, too.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../../cpu/composed_stages.h"
#include "../../cpu/project.h"
#include "../../cpu/search.h"
#include "../checks.h"
#include "arguments.h"
#include "ops.h"

namespace vqvae_fast {
namespace {

// NumberOf<T> is the number type of torch that has the bits of a kernels' element type, and its
// roundings.
template <class T>
struct NumberOf {
  using type = T;
};
template <>
struct NumberOf<BFloat16> {
  using type = torch::headeronly::BFloat16;
};
template <>
struct NumberOf<Half> {
  using type = torch::headeronly::Half;
};

// Subtracts the chosen codes from the residuals and adds them to the totals, [N, D] each.
template <class T>
void move_to_next_stage(const Tensor& codes, const Tensor& residual, const Tensor& total) {
  using Number = typename NumberOf<T>::type;
  const auto* code = elements<const Number>(codes);
  auto* rest = elements<Number>(residual);
  auto* sum = elements<Number>(total);
  torch::stable::parallel_for(0, codes.numel(), 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Number element = code[i];
      rest[i] = rest[i] - element;
      sum[i] = sum[i] + element;
    }
  });
}

// Returns the sizes of the indices of `stages` stages: those of the rows, and the stages.
std::vector<int64_t> sizes_of_indices(const Tensor& rows, int64_t stages) {
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes.back() = stages;
  return sizes;
}

// z: [..., D], codebooks: [Q, K, D]. packed may be null.
std::tuple<Tensor, Tensor> residual_nearest(const Tensor& z, const Tensor& codebooks,
                                            const Tensor* packed) {
  check_value(codebooks.dim() == 3 && codebooks.numel() > 0, "codebooks must be [Q, K, D], got ",
              codebooks.sizes());
  check_search(z, codebooks.scalar_type(), codebooks.sizes().slice(1));  // a stage's
  if (packed != nullptr) check_packed(codebooks, *packed);
  const int64_t stages = codebooks.size(0), count = z.numel() / z.size(-1);
  Tensor indices = make_empty(sizes_of_indices(z, stages), ScalarType::Long, z);
  const Tensor distances = make_empty({count}, distance_dtype(z.scalar_type()), z);
  // The memory is that of rows side by side, whatever the layout of z is.
  const Tensor residual = make_empty(z.sizes(), z.scalar_type(), z);
  copy_into(z, residual);
  Tensor total = make_zeros(z.sizes(), z.scalar_type(), z);
  const Tensor codes = make_empty(z.sizes(), z.scalar_type(), z);
  std::vector<int64_t> chosen(count);
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    const auto rows = as_rows(view_of<const In>(residual));
    const auto out = as_rows(view_of<In>(codes));
    const auto books = view_of<const In>(codebooks);
    const ThreadPool pool = torch_pool();
    for (int64_t q = 0; q < stages; ++q) {
      search_codebook<In>(rows, as_codes(books.at(q)), packed_book(packed, q), chosen.data(),
                          elements<Compute<In>>(distances), out, pool);
      move_to_next_stage<In>(codes, residual, total);
      int64_t* to = elements<int64_t>(indices) + q;
      for (int64_t n = 0; n < count; ++n) to[n * stages] = chosen[n];
    }
  });
  if (total.strides() == z.strides()) return {std::move(indices), std::move(total)};
  Tensor quantized = make_like(z);
  copy_into(total, quantized);
  return {std::move(indices), std::move(quantized)};
}

// The map whose matrix and start have more columns than that, so that all may be read in vectors.
Affine<float> as_map(const Tensor& matrix, const Tensor& start, int64_t columns) {
  return {elements<const float>(matrix), elements<const float>(start), matrix.size(0), columns,
          matrix.size(1)};
}

}  // namespace

std::tuple<Tensor, Tensor> residual_nearest_code(const Tensor& z, const Tensor& codebooks) {
  return residual_nearest(z, codebooks, nullptr);
}

std::tuple<Tensor, Tensor> residual_nearest_packed_code(const Tensor& z, const Tensor& codebooks,
                                                        const Tensor& packed) {
  return residual_nearest(z, codebooks, &packed);
}

// Residual quantization whose projections were composed: vectors [..., C].
std::tuple<Tensor, Tensor> composed_residual_code_op(const Tensor& vectors, const Tensor& entry,
                                                     const Tensor& entry_bias,
                                                     const Tensor& codebooks,
                                                     const Tensor& compared, const Tensor& packed,
                                                     const Tensor& corrections, const Tensor& exit,
                                                     const Tensor& exit_bias, bool cosine) {
  check_composed(vectors, entry, entry_bias, codebooks, compared, corrections, exit, exit_bias);
  check_packed(compared, packed);
  const int64_t number = codebooks.size(0), dim = codebooks.size(2), channels = vectors.size(-1);
  ComposedStages stages{};
  stages.count = number;
  stages.dim = dim;
  stages.entry = as_map(entry, entry_bias, number * dim);
  stages.corrections = elements<const float>(corrections);
  stages.exit = as_map(exit, exit_bias, channels);
  stages.cosine = cosine;
  const auto codes = view_of<const float>(codebooks), others = view_of<const float>(compared);
  for (int64_t q = 0; q < number; ++q) {
    stages.codes.push_back(as_codes(codes.at(q)));
    stages.compared.push_back(as_codes(others.at(q)));
    stages.packed.push_back(packed_book(&packed, q));
  }
  Tensor indices = make_empty(sizes_of_indices(vectors, number), ScalarType::Long, vectors);
  Tensor quantized = make_empty(vectors.sizes(), ScalarType::Float, vectors);
  const Tensor rows = with_rows(vectors);
  composed_residual_code(stages, as_rows(view_of<const float>(rows)), elements<int64_t>(indices),
                         elements<float>(quantized), torch_pool());
  return {std::move(indices), std::move(quantized)};
}

Tensor project_op(const Tensor& vectors, const Tensor& matrix, const Tensor& bias,
                  int64_t columns) {
  check_project(vectors, matrix, bias, columns);
  std::vector<int64_t> sizes = vectors.sizes().vec();
  sizes.back() = columns;
  Tensor products = make_empty(sizes, ScalarType::Float, vectors);
  const Tensor rows = with_rows(vectors);
  project(as_map(matrix, bias, columns), as_rows(view_of<const float>(rows)),
          elements<float>(products), torch_pool());
  return products;
}

}  // namespace vqvae_fast
