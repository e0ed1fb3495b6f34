// This file checks tensors and passes them to kernels. The CPU's and the GPU's bindings share it.
#pragma once

#include <torch/extension.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "rows.h"

namespace vqvae_fast {
namespace {

using at::Tensor;

// Calls body with a null pointer of the kernels' element type for `dtype`.
template <class Body>
void with_element_type(at::ScalarType dtype, const char* name, Body body) {
  switch (dtype) {
    case at::kFloat:
      return body(static_cast<float*>(nullptr));
    case at::kDouble:
      return body(static_cast<double*>(nullptr));
    case at::kBFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case at::kHalf:
      return body(static_cast<Half*>(nullptr));
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  }
}

inline at::TensorOptions distance_options(const Tensor& z) {
  return z.options().dtype(z.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

// A level is a number of rows at one stride. Dimensions that are contiguous with each other form
// one level.
struct Level {
  int64_t size;
  int64_t stride;
};

// Returns the levels of all dimensions but the last, the outermost first. A dimension of size 1 is
// skipped, because torch lets it have any stride and still calls the tensor contiguous.
inline std::vector<Level> levels_of(const Tensor& t) {
  std::vector<Level> levels;
  for (int64_t d = 0; d < t.dim() - 1; ++d) {
    if (t.size(d) == 1) continue;
    if (!levels.empty() && levels.back().stride == t.stride(d) * t.size(d)) {
      levels.back() = {levels.back().size * t.size(d), t.stride(d)};
    } else {
      levels.push_back({t.size(d), t.stride(d)});
    }
  }
  return levels;
}

// Returns t: [..., D] as rows. A layout that has more than two levels is rare, and is copied into
// `copy`.
template <class In>
Rows<In> as_rows(const Tensor& t, Tensor* copy) {
  *copy = t;
  std::vector<Level> levels = levels_of(t);
  if (levels.size() > 2) {
    *copy = t.contiguous();
    levels = levels_of(*copy);
  }
  levels.insert(levels.begin(), 2 - levels.size(), Level{1, 0});
  const auto [outer, inner] = std::pair(levels[0], levels[1]);
  return {reinterpret_cast<In*>(copy->data_ptr()),
          outer.size * inner.size,
          t.size(-1),
          std::max<int64_t>(inner.size, 1),
          outer.stride,
          inner.stride,
          t.size(-1) == 1 ? 1 : copy->stride(-1)};
}

// Returns a codebook [K, D] as codes.
template <class In>
Codes<In> as_codes(const Tensor& codebook) {
  return {reinterpret_cast<const In*>(codebook.const_data_ptr()), codebook.size(0),
          codebook.size(1), codebook.stride(0), codebook.size(1) == 1 ? 1 : codebook.stride(1)};
}

inline void check_search(const Tensor& z, const Tensor& codebook) {
  TORCH_CHECK_TYPE(z.scalar_type() == codebook.scalar_type(), "codebook must have z's dtype ",
                   z.scalar_type(), ", got ", codebook.scalar_type());
  const bool books = codebook.dim() == 3;
  TORCH_CHECK_VALUE(z.dim() >= (books ? 2 : 1) && (books || codebook.dim() == 2) &&
                        codebook.size(-1) == z.size(-1) && codebook.numel() > 0 &&
                        (!books || codebook.size(0) == z.size(0)),
                    "z must be [..., D] and codebook [K, D], or [H, ..., D] and [H, K, D], got ",
                    z.sizes(), " and ", codebook.sizes());
}

inline void check_composed(const Tensor& vectors, const Tensor& entry, const Tensor& entry_bias,
                           const Tensor& codebooks, const Tensor& compared,
                           const Tensor& corrections, const Tensor& exit, const Tensor& exit_bias) {
  for (const Tensor& t :
       {vectors, entry, entry_bias, codebooks, compared, corrections, exit, exit_bias}) {
    TORCH_CHECK_TYPE(t.scalar_type() == at::kFloat, "all must be float32, got ", t.scalar_type());
  }
  for (const Tensor& t : {entry, entry_bias, corrections, exit, exit_bias}) {
    TORCH_CHECK_VALUE(t.is_contiguous(), "all but the vectors and codes must be contiguous, got ",
                      t.sizes(), " with strides ", t.strides());
  }
  const bool books = codebooks.dim() == 3 && codebooks.numel() > 0 && vectors.dim() >= 1;
  const int64_t width = books ? codebooks.size(0) * codebooks.size(2) : 0;
  const int64_t channels = books ? vectors.size(-1) : 0;
  const auto are_columns = [](const Tensor& map, const Tensor& bias, int64_t rows,
                              int64_t columns) {
    const int64_t whole = (columns + kMapColumns - 1) / kMapColumns * kMapColumns;
    return map.sizes() == at::IntArrayRef({rows, whole}) &&
           bias.sizes() == at::IntArrayRef({whole});
  };
  TORCH_CHECK_VALUE(
      books && channels > 0 && compared.sizes() == codebooks.sizes() &&
          corrections.sizes() == at::IntArrayRef({codebooks.size(0), codebooks.size(2), width}) &&
          are_columns(entry, entry_bias, channels, width) &&
          are_columns(exit, exit_bias, width, channels),
      "vectors must be [..., C], codebooks and compared [Q, K, D], corrections [Q, D, Q * D], and "
      "with columns up to a multiple of 16 entry [C, Q * D] and exit [Q * D, C] and their biases, "
      "got ",
      vectors.sizes(), ", ", codebooks.sizes(), ", ", compared.sizes(), ", ", corrections.sizes(),
      ", ", entry.sizes(), ", ", exit.sizes(), ", ", entry_bias.sizes(), " and ",
      exit_bias.sizes());
}

inline void check_project(const Tensor& vectors, const Tensor& matrix, const Tensor& bias,
                          int64_t columns) {
  for (const Tensor& t : {vectors, matrix, bias}) {
    TORCH_CHECK_TYPE(t.scalar_type() == at::kFloat, "all must be float32, got ", t.scalar_type());
  }
  const int64_t whole = (columns + kMapColumns - 1) / kMapColumns * kMapColumns;
  TORCH_CHECK_VALUE(vectors.dim() >= 1 && vectors.size(-1) >= 1 && columns >= 1 &&
                        matrix.sizes() == at::IntArrayRef({vectors.size(-1), whole}) &&
                        bias.sizes() == at::IntArrayRef({whole}) && matrix.is_contiguous() &&
                        bias.is_contiguous(),
                    "vectors must be [..., C], matrix [C, columns up to a multiple of 16] and bias "
                    "of as many, both contiguous, for columns=",
                    columns, ", got ", vectors.sizes(), ", ", matrix.sizes(), " and ",
                    bias.sizes());
}

inline void check_segment_sum(const Tensor& src, const Tensor& indices, int64_t num_segments) {
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong, "indices must be int64, got ",
                   indices.scalar_type());
  TORCH_CHECK_VALUE(
      src.dim() >= 1 && indices.sizes() == src.sizes().slice(0, src.dim() - 1) && num_segments >= 1,
      "src must be [..., D] and indices [...] with num_segments >= 1, got ", src.sizes(), ", ",
      indices.sizes(), " and ", num_segments);
}

inline void check_residual_backward(const Tensor& grad_quantized, const Tensor& grad_losses,
                                    const Tensor& z, at::TensorList books, const Tensor& indices) {
  TORCH_CHECK_TYPE(z.scalar_type() == at::kFloat || z.scalar_type() == at::kDouble,
                   "z must be float32 or float64, got ", z.scalar_type());
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong, "indices must be int64, got ",
                   indices.scalar_type());
  const int64_t stages = books.size();
  TORCH_CHECK_VALUE(z.dim() >= 1 && grad_quantized.sizes() == z.sizes() && grad_losses.dim() == 1 &&
                        grad_losses.size(0) == stages && indices.dim() == z.dim() &&
                        indices.size(-1) == stages &&
                        indices.sizes().slice(0, z.dim() - 1) == z.sizes().slice(0, z.dim() - 1),
                    "grad_quantized must be like z [..., D], grad_losses [Q] and indices [..., Q] "
                    "for Q books, got ",
                    grad_quantized.sizes(), ", ", z.sizes(), ", ", grad_losses.sizes(), ", ",
                    indices.sizes(), " and ", stages, " books");
  const auto check_dtype = [&](const Tensor& t) {
    TORCH_CHECK_TYPE(t.scalar_type() == z.scalar_type(), "all must have z's dtype ",
                     z.scalar_type(), ", got ", t.scalar_type());
  };
  check_dtype(grad_quantized);
  check_dtype(grad_losses);
  for (const Tensor& book : books) {
    check_dtype(book);
    TORCH_CHECK_VALUE(book.dim() == 2 && book.size(1) == z.size(-1),
                      "books must be [K, D=", z.size(-1), "], got ", book.sizes());
  }
}

inline void check_moving_average(const Tensor& average, const Tensor& cluster_size,
                                 const Tensor& codebook, const Tensor& src, const Tensor& indices) {
  TORCH_CHECK_TYPE(average.scalar_type() == at::kFloat || average.scalar_type() == at::kDouble,
                   "average must be float32 or float64, got ", average.scalar_type());
  TORCH_CHECK_VALUE((codebook.dim() == 2 || codebook.dim() == 3) &&
                        average.sizes() == codebook.sizes() &&
                        cluster_size.sizes() == codebook.sizes().slice(0, codebook.dim() - 1),
                    "average must have the codebook's shape, cluster_size too without D, got ",
                    average.sizes(), ", ", cluster_size.sizes(), " and ", codebook.sizes());
  TORCH_CHECK_VALUE(src.dim() >= codebook.dim() - 1 && src.size(-1) == codebook.size(-1) &&
                        (codebook.dim() == 2 || src.size(0) == codebook.size(0)),
                    "src must be [..., D], or [H, ..., D] with a codebook [H, K, D], got ",
                    src.sizes(), " and ", codebook.sizes());
  check_segment_sum(src, indices, codebook.size(-2));
}

}  // namespace
}  // namespace vqvae_fast
