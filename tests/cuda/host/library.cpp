// The kernels behind C functions, for ctypes. The first argument of each names the element type.
#include <vector>

#include "cuda_runtime.h"
#include "search.cuh"
#include "segment_sum.h"

namespace {

using namespace vqvae_fast;

// Few enough for the codes to be divided among blocks in some tests and not in others.
constexpr int kProcessors = 2;

struct View {
  void* data;
  int64_t count, dim, inner, outer_stride, row_stride, element_stride;
};

template <class In>
Rows<In> rows(const View& v) {
  return {static_cast<In*>(v.data), v.count,      v.dim,           v.inner,
          v.outer_stride,           v.row_stride, v.element_stride};
}
template <class In>
Codes<In> codes(const View& v) {
  return {static_cast<const In*>(v.data), v.count, v.dim, v.row_stride, v.element_stride};
}

template <class Body>
int with_element_type(int type, Body body) {
  switch (type) {
    case 0:
      return body(static_cast<float*>(nullptr));
    case 1:
      return body(static_cast<double*>(nullptr));
    case 2:
      return body(static_cast<BFloat16*>(nullptr));
    default:
      return body(static_cast<Half*>(nullptr));
  }
}

// Memory on a GPU holds what was there before.
std::vector<char> garbage(int64_t bytes) {
  return std::vector<char>(static_cast<size_t>(bytes), '\xa5');
}

}  // namespace

extern "C" {

// Rows of the last search that the bound left unsettled; -1 where there was no bound.
int64_t host_unsettled_rows = -1;

void host_blocks_backwards(int backwards) { host_cuda::blocks_backwards() = backwards != 0; }

int host_search(int type, const View* z, const View* book, int64_t* indices, void* distances,
                const View* quantized) {
  return with_element_type(type, [&](auto* element) -> int {
    using In = std::remove_pointer_t<decltype(element)>;
    const auto latents = rows<const In>(*z);
    const auto all_codes = codes<In>(*book);
    auto workspace = garbage(search_workspace(latents, all_codes, kProcessors));
    const int error =
        search_codebook<In>(latents, all_codes, indices, static_cast<Compute<In>*>(distances),
                            rows<In>(*quantized), workspace.data(), kProcessors, nullptr);
    const SearchPlan plan =
        plan_search<In, SearchTile>(latents, all_codes, kProcessors, workspace.data());
    host_unsettled_rows = plan.filtered ? plan.book.facts->unsettled : -1;
    return error;
  });
}

int host_segment_sum(int type, const View* src, const int64_t* indices, int64_t num_segments,
                     void* sums, void* counts) {
  return with_element_type(type, [&](auto* element) -> int {
    using In = std::remove_pointer_t<decltype(element)>;
    int64_t bytes = 0;
    segment_sum_workspace(src->count, src->dim, num_segments, &bytes);
    auto workspace = garbage(bytes);
    return segment_sum<In>(rows<const In>(*src), indices, num_segments,
                           static_cast<Compute<In>*>(sums), static_cast<Compute<In>*>(counts),
                           workspace.data(), nullptr);
  });
}

int host_quantize_backward(int type, const View* grad_quantized, const void* grad_loss,
                           const View* z, const View* book, const int64_t* indices,
                           double commitment_weight, double codebook_weight, double elements,
                           const View* grad_z, void* grad_codebook) {
  return with_element_type(type, [&](auto* element) -> int {
    using In = std::remove_pointer_t<decltype(element)>;
    int64_t bytes = 0;
    segment_sum_workspace(z->count, z->dim, book->count, &bytes);
    auto workspace = garbage(bytes);
    return quantize_backward<In>(
        {rows<const In>(*grad_quantized), static_cast<const Compute<In>*>(grad_loss),
         rows<const In>(*z), codes<In>(*book), indices, commitment_weight, codebook_weight,
         elements, rows<In>(*grad_z), static_cast<In*>(grad_codebook)},
        workspace.data(), nullptr);
  });
}

}  // extern "C"
