// This file says what the ops need of their arguments: enough to stay within memory. The public
// functions have checked more in Python (vqvae_fast/functional.py).
#pragma once

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace vqvae_fast {
namespace {

// Checks a search of z: [..., D] in a codebook [K, D], or of [H, ..., D] in books [H, K, D].
inline void check_search(const Tensor& z, ScalarType dtype, Sizes codebook) {
  check_value(z.scalar_type() == dtype, "codebook must have z's dtype ", z.scalar_type(), ", got ",
              dtype);
  const bool has_books = codebook.size() == 3;
  const Sizes rows = z.sizes();
  check_value(rows.size() >= (has_books ? 2 : 1) && (has_books || codebook.size() == 2) &&
                  codebook.back() == rows.back() &&
                  std::count(codebook.begin(), codebook.end(), 0) == 0 &&
                  (!has_books || codebook[0] == rows[0]),
              "z must be [..., D] and codebook [K, D], or [H, ..., D] and [H, K, D], got ", rows,
              " and ", codebook);
}

inline void check_search(const Tensor& z, const Tensor& codebook) {
  check_search(z, codebook.scalar_type(), codebook.sizes());
}

// Returns whether matrix and bias make a map from `rows` to `columns` elements (cpu/project.h). The
// caller fills both with further columns up to a multiple of kMapColumns.
inline bool is_map(const Tensor& matrix, const Tensor& bias, int64_t rows, int64_t columns) {
  const int64_t whole = (columns + kMapColumns - 1) / kMapColumns * kMapColumns;
  return matrix.sizes() == Sizes({rows, whole}) && bias.sizes() == Sizes({whole});
}

inline void check_project(const Tensor& vectors, const Tensor& matrix, const Tensor& bias,
                          int64_t columns) {
  for (const Tensor& t : {vectors, matrix, bias}) {
    check_value(t.scalar_type() == ScalarType::Float, "all must be float32, got ", t.scalar_type());
  }
  check_value(vectors.dim() >= 1 && vectors.size(-1) >= 1 && columns >= 1 &&
                  is_map(matrix, bias, vectors.size(-1), columns) && matrix.is_contiguous() &&
                  bias.is_contiguous(),
              "vectors must be [..., C], matrix [C, columns up to a multiple of 16] and bias of as "
              "many, both contiguous, for columns=",
              columns, ", got ", vectors.sizes(), ", ", matrix.sizes(), " and ", bias.sizes());
}

inline void check_composed(const Tensor& vectors, const Tensor& entry, const Tensor& entry_bias,
                           const Tensor& codebooks, const Tensor& compared,
                           const Tensor& corrections, const Tensor& exit, const Tensor& exit_bias) {
  for (const Tensor& t :
       {vectors, entry, entry_bias, codebooks, compared, corrections, exit, exit_bias}) {
    check_value(t.scalar_type() == ScalarType::Float, "all must be float32, got ", t.scalar_type());
  }
  for (const Tensor& t : {entry, entry_bias, corrections, exit, exit_bias}) {
    check_value(t.is_contiguous(), "all but the vectors and codes must be contiguous, got ",
                t.sizes(), " with strides ", t.strides());
  }
  const bool books = codebooks.dim() == 3 && codebooks.numel() > 0 && vectors.dim() >= 1;
  const int64_t width = books ? codebooks.size(0) * codebooks.size(2) : 0;
  const int64_t channels = books ? vectors.size(-1) : 0;
  check_value(
      books && channels > 0 && compared.sizes() == codebooks.sizes() &&
          corrections.sizes() == Sizes({codebooks.size(0), codebooks.size(2), width}) &&
          is_map(entry, entry_bias, channels, width) && is_map(exit, exit_bias, width, channels),
      "vectors must be [..., C], codebooks and compared [Q, K, D], corrections [Q, D, Q * D], and "
      "with columns up to a multiple of 16 entry [C, Q * D] and exit [Q * D, C] and their biases, "
      "got ",
      vectors.sizes(), ", ", codebooks.sizes(), ", ", compared.sizes(), ", ", corrections.sizes(),
      ", ", entry.sizes(), ", ", exit.sizes(), ", ", entry_bias.sizes(), " and ",
      exit_bias.sizes());
}

inline void check_segment_sum(const Tensor& src, const Tensor& indices, int64_t num_segments) {
  check_value(indices.scalar_type() == ScalarType::Long, "indices must be int64, got ",
              indices.scalar_type());
  check_value(src.dim() >= 1 && indices.sizes() == row_sizes(src) && num_segments >= 1,
              "src must be [..., D] and indices [...] with num_segments >= 1, got ", src.sizes(),
              ", ", indices.sizes(), " and ", num_segments);
}

inline void check_quantize_backward(const Tensor& grad_quantized, const Tensor& grad_loss,
                                    const Tensor& z, const Tensor& indices) {
  check_value(indices.scalar_type() == ScalarType::Long, "indices must be int64, got ",
              indices.scalar_type());
  check_value(grad_quantized.scalar_type() == z.scalar_type(),
              "grad_quantized must have z's dtype ", z.scalar_type(), ", got ",
              grad_quantized.scalar_type());
  check_value(grad_quantized.sizes() == z.sizes() && indices.sizes() == row_sizes(z) &&
                  grad_loss.dim() == 0,
              "grad_quantized must be like z ", z.sizes(),
              ", indices like z without its last "
              "dimension and grad_loss 0-d, got ",
              grad_quantized.sizes(), ", ", indices.sizes(), " and ", grad_loss.sizes());
}

inline void check_residual_backward(const Tensor& grad_quantized, const Tensor& grad_losses,
                                    const Tensor& z, const std::vector<Tensor>& books,
                                    const Tensor& indices) {
  check_value(z.scalar_type() == ScalarType::Float || z.scalar_type() == ScalarType::Double,
              "z must be float32 or float64, got ", z.scalar_type());
  check_value(indices.scalar_type() == ScalarType::Long, "indices must be int64, got ",
              indices.scalar_type());
  const int64_t stages = books.size();
  check_value(z.dim() >= 1 && grad_quantized.sizes() == z.sizes() && grad_losses.dim() == 1 &&
                  grad_losses.size(0) == stages && indices.dim() == z.dim() &&
                  indices.size(-1) == stages && row_sizes(indices) == row_sizes(z),
              "grad_quantized must be like z [..., D], grad_losses [Q] and indices [..., Q] "
              "for Q books, got ",
              grad_quantized.sizes(), ", ", z.sizes(), ", ", grad_losses.sizes(), ", ",
              indices.sizes(), " and ", stages, " books");
  const auto check_dtype = [&](const Tensor& t) {
    check_value(t.scalar_type() == z.scalar_type(), "all must have z's dtype ", z.scalar_type(),
                ", got ", t.scalar_type());
  };
  check_dtype(grad_quantized);
  check_dtype(grad_losses);
  for (const Tensor& book : books) {
    check_dtype(book);
    check_value(book.dim() == 2 && book.size(1) == z.size(-1), "books must be [K, D=", z.size(-1),
                "], got ", book.sizes());
  }
}

inline void check_moving_average(const Tensor& average, const Tensor& cluster_size,
                                 const Tensor& codebook, const Tensor& src, const Tensor& indices) {
  check_value(
      average.scalar_type() == ScalarType::Float || average.scalar_type() == ScalarType::Double,
      "average must be float32 or float64, got ", average.scalar_type());
  check_value((codebook.dim() == 2 || codebook.dim() == 3) && average.sizes() == codebook.sizes() &&
                  cluster_size.sizes() == row_sizes(codebook),
              "average must have the codebook's shape, cluster_size too without D, got ",
              average.sizes(), ", ", cluster_size.sizes(), " and ", codebook.sizes());
  check_value(src.dim() >= codebook.dim() - 1 && src.size(-1) == codebook.size(-1) &&
                  (codebook.dim() == 2 || src.size(0) == codebook.size(0)),
              "src must be [..., D], or [H, ..., D] with a codebook [H, K, D], got ", src.sizes(),
              " and ", codebook.sizes());
  check_segment_sum(src, indices, codebook.size(-2));
}

}  // namespace
}  // namespace vqvae_fast
