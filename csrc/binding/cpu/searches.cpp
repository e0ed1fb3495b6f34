// Searches of one codebook, or of books [H, K, D] in one call, and codebooks packed for them.
#include <algorithm>

#include "../../cpu/search.h"
#include "../../cpu/top_codes/search.h"
#include "../checks.h"
#include "arguments.h"
#include "ops.h"

namespace vqvae_fast {
namespace {

// Writes what a search finds: indices, distances and, unless `chosen` is null, the chosen codes.
// packed may be null.
void search(const Tensor& z, const Tensor& codebook, const Tensor* packed, const Tensor& indices,
            const Tensor& distances, const Tensor* chosen) {
  const bool has_books = codebook.dim() == 3;
  const int64_t books = has_books ? codebook.size(0) : 1;
  const int64_t count = indices.numel() / books;
  const Tensor rows = with_rows(z, has_books);
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    const ThreadPool pool = torch_pool();
    for (int64_t h = 0; h < books; ++h) {
      search_codebook<In>(as_rows(book<const In>(rows, has_books, h)),
                          as_codes(book<const In>(codebook, has_books, h)), packed_book(packed, h),
                          elements<int64_t>(indices) + h * count,
                          elements<Compute<In>>(distances) + h * count,
                          chosen ? as_rows(book<In>(*chosen, has_books, h)) : Rows<In>{}, pool);
    }
  });
}

std::tuple<Tensor, Tensor> nearest(const Tensor& z, const Tensor& codebook, const Tensor* packed) {
  check_search(z, codebook);
  if (packed != nullptr) check_packed(codebook, *packed);
  Tensor indices = make_empty(row_sizes(z), ScalarType::Long, z);
  Tensor distances = make_empty(row_sizes(z), distance_dtype(z.scalar_type()), z);
  search(z, codebook, packed, indices, distances, nullptr);
  return {std::move(indices), std::move(distances)};
}

std::tuple<Tensor, Tensor, Tensor> quantized(const Tensor& z, const Tensor& codebook,
                                             const Tensor* packed) {
  check_search(z, codebook);
  if (packed != nullptr) check_packed(codebook, *packed);
  Tensor indices = make_empty(row_sizes(z), ScalarType::Long, z);
  Tensor distances = make_empty(row_sizes(z), distance_dtype(z.scalar_type()), z);
  Tensor codes = make_like(z);
  const Tensor chosen = with_rows(codes, codebook.dim() == 3);
  search(z, codebook, packed, indices, distances, &chosen);
  if (chosen.get() != codes.get()) copy_into(chosen, codes);
  return {std::move(codes), std::move(indices), std::move(distances)};
}

std::tuple<Tensor, Tensor> top(const Tensor& z, const Tensor& codebook, const Tensor* packed,
                               int64_t k) {
  check_search(z, codebook);
  if (packed != nullptr) check_packed(codebook, *packed);
  check_value(k >= 1 && k <= codebook.size(-2), "k must be from 1 to K=", codebook.size(-2),
              ", got ", k);
  const Sizes rows_of = row_sizes(z);
  std::vector<int64_t> sizes(rows_of.begin(), rows_of.end());
  sizes.push_back(k);
  Tensor indices = make_empty(sizes, ScalarType::Long, z);
  Tensor distances = make_empty(sizes, distance_dtype(z.scalar_type()), z);
  const bool has_books = codebook.dim() == 3;
  const int64_t books = has_books ? codebook.size(0) : 1;
  const int64_t count = indices.numel() / books;
  const Tensor rows = with_rows(z, has_books);
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    const ThreadPool pool = torch_pool();
    for (int64_t h = 0; h < books; ++h) {
      search_top_codes<In>(as_rows(book<const In>(rows, has_books, h)),
                           as_codes(book<const In>(codebook, has_books, h)), packed_book(packed, h),
                           k, elements<int64_t>(indices) + h * count,
                           elements<Compute<In>>(distances) + h * count, pool);
    }
  });
  return {std::move(indices), std::move(distances)};
}

}  // namespace

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  return nearest(z, codebook, nullptr);
}

std::tuple<Tensor, Tensor> nearest_packed_code(const Tensor& z, const Tensor& codebook,
                                               const Tensor& packed) {
  return nearest(z, codebook, &packed);
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebook) {
  return quantized(z, codebook, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> quantize_packed(const Tensor& z, const Tensor& codebook,
                                                   const Tensor& packed) {
  return quantized(z, codebook, &packed);
}

std::tuple<Tensor, Tensor> nearest_codes(const Tensor& z, const Tensor& codebook, int64_t k) {
  return top(z, codebook, nullptr, k);
}

std::tuple<Tensor, Tensor> nearest_packed_codes(const Tensor& z, const Tensor& codebook,
                                                const Tensor& packed, int64_t k) {
  return top(z, codebook, &packed, k);
}

// Packs a codebook [K, D] into bytes, or books [H, K, D] into bytes [H, the most of them].
Tensor pack_codebook(const Tensor& codebook) {
  const bool has_books = codebook.dim() == 3;
  check_value((has_books || codebook.dim() == 2) && codebook.numel() > 0,
              "codebook must be [K, D] or [H, K, D] and have elements, got ", codebook.sizes());
  const int64_t books = has_books ? codebook.size(0) : 1;
  std::vector<std::vector<char>> packed;
  int64_t most = 0;
  with_element_type(codebook.scalar_type(), "codebook", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    for (int64_t h = 0; h < books; ++h) {
      packed.push_back(
          pack_for_searches<In>(as_codes(book<const In>(codebook, has_books, h)), torch_pool()));
      most = std::max<int64_t>(most, packed.back().size());
    }
  });
  const std::vector<int64_t> sizes =
      has_books ? std::vector{books, most} : std::vector<int64_t>{most};
  Tensor bytes = make_zeros(sizes, ScalarType::Byte, codebook);
  for (int64_t h = 0; h < books; ++h) {
    std::copy(packed[h].begin(), packed[h].end(), elements<char>(bytes) + h * most);
  }
  return bytes;
}

int64_t rows_settled_by_filter_op(const Tensor& z, const Tensor& codebook, const Tensor& packed) {
  check_search(z, codebook);
  check_value(codebook.dim() == 2, "codebook must be [K, D], got ", codebook.sizes());
  check_packed(codebook, packed);
  const Tensor rows = with_rows(z);
  int64_t settled = -1;
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    settled = rows_settled_by_filter<In>(as_rows(view_of<const In>(rows)),
                                         as_codes(view_of<const In>(codebook)),
                                         packed_book(&packed, 0), torch_pool());
  });
  return settled;
}

}  // namespace vqvae_fast
