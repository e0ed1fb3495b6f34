// Sums over the rows that chose a code, moving averages of a codebook, and the backward pass of
// residual quantization.
#include <algorithm>

#include "../../cpu/sums/moving_average.h"
#include "../../cpu/sums/residual_backward.h"
#include "../../cpu/sums/segment_sum.h"
#include "../checks.h"
#include "arguments.h"
#include "ops.h"

namespace vqvae_fast {
namespace {

// Returns t: [..., D] with the elements of a row side by side, copied if need be.
Tensor with_whole_rows(const Tensor& t) {
  return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : as_contiguous(t);
}

template <class In>
Tensor residual_backward_of(const Tensor& grad_quantized, const Tensor& grad_losses,
                            const Tensor& z, const std::vector<Tensor>& books,
                            const Tensor& indices, bool rotates) {
  const int64_t dim = z.size(-1), stages = books.size();
  const Tensor losses = as_contiguous(grad_losses);
  const In* weights = elements<const In>(losses);
  std::vector<double> error_weights(weights, weights + stages);
  for (double& weight : error_weights) weight *= 2.0 / double(std::max<int64_t>(z.numel(), 1));
  const Tensor flat = as_contiguous(indices);
  const int64_t* chosen = elements<const int64_t>(flat);
  std::vector<Codes<In>> codes;
  for (int64_t q = 0; q < stages; ++q) {
    codes.push_back(as_codes(view_of<const In>(books[q])));
    for (int64_t n = q, end = flat.numel(); n < end; n += stages) {
      check_index(chosen[n] >= 0 && chosen[n] < codes[q].count,
                  "indices must be in [0, K=", codes[q].count, ")");
    }
  }
  const Tensor rows = with_rows(with_whole_rows(z));
  const Tensor grad = with_rows(with_whole_rows(grad_quantized));
  const Tensor out = make_empty(z.sizes(), z.scalar_type(), z);
  residual_backward<In>({dim, stages, codes.data(), error_weights.data(), rotates},
                        as_rows(view_of<const In>(grad)), as_rows(view_of<const In>(rows)), chosen,
                        elements<In>(out), torch_pool());
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> segment_sum_op(const Tensor& src, const Tensor& indices,
                                          int64_t num_segments) {
  check_segment_sum(src, indices, num_segments);
  const ScalarType wide = distance_dtype(src.scalar_type());
  Tensor sums = make_zeros({num_segments, src.size(-1)}, wide, src);
  Tensor counts = make_zeros({num_segments}, wide, src);
  const Tensor flat = as_contiguous(indices), rows = with_rows(src);
  with_element_type(src.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    check_index(segment_sum<In>(as_rows(view_of<const In>(rows)), elements<const int64_t>(flat),
                                num_segments, elements<Compute<In>>(sums),
                                elements<Compute<In>>(counts), torch_pool()),
                "indices must be below num_segments=", num_segments);
  });
  return {std::move(sums), std::move(counts)};
}

// vqvae_fast/backends/dispatch.py tells autograd of these writes.
void moving_average_op(const Tensor& average, const Tensor& cluster_size, const Tensor& codebook,
                       const Tensor& src, const Tensor& indices, double decay, double eps) {
  check_moving_average(average, cluster_size, codebook, src, indices);
  const bool has_books = codebook.dim() == 3;
  const int64_t books = has_books ? codebook.size(0) : 1;
  const ScalarType wide = average.scalar_type();
  const Tensor averages = as_contiguous(average),
               sizes = as_contiguous(to_dtype(cluster_size, wide)),
               codes = as_contiguous(to_dtype(codebook, wide)), flat = as_contiguous(indices);
  const bool rows_fit = distance_dtype(src.scalar_type()) == wide;
  const Tensor rows = with_rows(with_whole_rows(rows_fit ? src : to_dtype(src, wide)), has_books);
  const int64_t* index = elements<const int64_t>(flat);
  const int64_t count = flat.numel(), codes_of_book = codebook.size(-2);
  const auto check_indices = [&](bool hold) {
    check_index(hold, "indices must be below K=", codes_of_book);
  };
  if (has_books) {  // The indices of all books are checked before the first book is written.
    check_indices(std::all_of(index, index + count, [&](int64_t i) { return i < codes_of_book; }));
  }
  with_element_type(rows.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    using T = Compute<In>;
    for (int64_t h = 0; h < books; ++h) {
      const int64_t first_code = h * codes_of_book, first_element = first_code * codebook.size(-1);
      check_indices(moving_average<In>(
          as_rows(book<const In>(rows, has_books, h)), index + h * (count / books), codes_of_book,
          decay, eps, elements<T>(sizes) + first_code, elements<T>(averages) + first_element,
          elements<T>(codes) + first_element, torch_pool()));
    }
  });
  if (averages.get() != average.get()) copy_into(averages, average);
  if (sizes.get() != cluster_size.get()) copy_into(sizes, cluster_size);
  if (codes.get() != codebook.get()) copy_into(codes, codebook);
}

Tensor residual_backward_op(const Tensor& grad_quantized, const Tensor& grad_losses,
                            const Tensor& z, const std::vector<Tensor>& books,
                            const Tensor& indices, bool rotates) {
  check_value(!books.empty(), "there must be a book");
  check_residual_backward(grad_quantized, grad_losses, z, books, indices);
  const auto run = z.scalar_type() == ScalarType::Float ? residual_backward_of<float>
                                                        : residual_backward_of<double>;
  return run(grad_quantized, grad_losses, z, books, indices, rotates);
}

}  // namespace vqvae_fast
