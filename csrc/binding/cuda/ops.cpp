// This file defines torch.ops.vqvae_fast_cuda: the CUDA kernels as ops of their own, because Python
// chooses when to call them (vqvae_fast/backends). Arguments and results are those of the ops in
// vqvae_fast/ops.py. No op waits for the device, and torch allocates all memory on the current
// stream, so CUDA graphs may capture every op.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "../../cuda/search.h"
#include "../../cuda/segment_sum.h"
#include "../checks.h"

namespace vqvae_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

std::string device_of(const Tensor& t) {
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return t.is_cpu() ? "cpu" : "another kind of device";
}

void check_cuda(const Tensor& tensor, const char* name) {
  check_value(tensor.is_cuda(), name, " must be on a CUDA device, got ", device_of(tensor));
}
void check_together(const Tensor& tensor, const char* name, const Tensor& other,
                    const char* other_name) {
  check_value(device_of(other) == device_of(tensor), other_name, " must be on ", name, "'s device ",
              device_of(tensor), ", got ", device_of(other));
}

cudaStream_t current_stream(const Tensor& beside) {
  void* stream = nullptr;
  check_torch(aoti_torch_get_current_cuda_stream(beside.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor allocate(int64_t bytes, const Tensor& beside) {
  return make_empty({bytes}, ScalarType::Byte, beside);
}

int processors() {
  int device = 0, count = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Writes what a search finds: indices, distances and, unless `chosen` is null, the chosen codes.
void search(const Tensor& z, const Tensor& codebook, const Tensor& indices, const Tensor& distances,
            const Tensor* chosen) {
  const bool has_books = codebook.dim() == 3;
  const int64_t books = has_books ? codebook.size(0) : 1;
  const int64_t count = indices.numel() / books;
  if (count == 0) return;
  const Tensor rows = with_rows(z, has_books);
  const int device_processors = processors();
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    for (int64_t h = 0; h < books; ++h) {
      const auto of_book = as_rows(book<const In>(rows, has_books, h));
      const auto codes = as_codes(book<const In>(codebook, has_books, h));
      const Tensor workspace = allocate(search_workspace(of_book, codes, device_processors), z);
      STD_CUDA_CHECK(
          search_codebook<In>(of_book, codes, elements<int64_t>(indices) + h * count,
                              elements<Compute<In>>(distances) + h * count,
                              chosen ? as_rows(book<In>(*chosen, has_books, h)) : Rows<In>{},
                              elements<void>(workspace), device_processors, current_stream(z)));
    }
  });
}

void check_cuda_search(const Tensor& z, const Tensor& codebook) {
  check_cuda(z, "z");
  check_together(z, "z", codebook, "codebook");
  check_search(z, codebook);
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  check_cuda_search(z, codebook);
  const DeviceGuard guard(z.get_device_index());
  Tensor indices = make_empty(row_sizes(z), ScalarType::Long, z);
  Tensor distances = make_empty(row_sizes(z), distance_dtype(z.scalar_type()), z);
  search(z, codebook, indices, distances, nullptr);
  return {std::move(indices), std::move(distances)};
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebook) {
  check_cuda_search(z, codebook);
  const DeviceGuard guard(z.get_device_index());
  Tensor indices = make_empty(row_sizes(z), ScalarType::Long, z);
  Tensor distances = make_empty(row_sizes(z), distance_dtype(z.scalar_type()), z);
  Tensor codes = make_like(z);
  const Tensor chosen = with_rows(codes, codebook.dim() == 3);
  search(z, codebook, indices, distances, &chosen);
  if (chosen.get() != codes.get()) copy_into(chosen, codes);
  return {std::move(codes), std::move(indices), std::move(distances)};
}

Tensor sum_workspace(int64_t rows, int64_t dim, int64_t num_segments, const Tensor& beside) {
  check_value(num_segments < int64_t{UINT32_MAX}, "num_segments must be below ", UINT32_MAX,
              ", got ", num_segments);
  int64_t bytes = 0;
  STD_CUDA_CHECK(segment_sum_workspace(rows, dim, num_segments, &bytes));
  return allocate(bytes, beside);
}

std::tuple<Tensor, Tensor> segment_sum_op(const Tensor& src, const Tensor& indices,
                                          int64_t num_segments) {
  check_cuda(src, "src");
  check_together(src, "src", indices, "indices");
  check_segment_sum(src, indices, num_segments);
  const DeviceGuard guard(src.get_device_index());
  const ScalarType wide = distance_dtype(src.scalar_type());
  Tensor sums = make_empty({num_segments, src.size(-1)}, wide, src);
  Tensor counts = make_empty({num_segments}, wide, src);
  const Tensor flat = as_contiguous(indices), all_rows = with_rows(src);
  with_element_type(src.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    const auto rows = as_rows(view_of<const In>(all_rows));
    const Tensor workspace = sum_workspace(rows.count, rows.dim, num_segments, src);
    STD_CUDA_CHECK(segment_sum<In>(rows, elements<const int64_t>(flat), num_segments,
                                   elements<Compute<In>>(sums), elements<Compute<In>>(counts),
                                   elements<void>(workspace), current_stream(src)));
  });
  return {std::move(sums), std::move(counts)};
}

std::tuple<Tensor, Tensor> quantize_backward_op(const Tensor& grad_quantized,
                                                const Tensor& grad_loss, const Tensor& z,
                                                const Tensor& codebook, const Tensor& indices,
                                                double commitment_weight, double codebook_weight) {
  check_cuda_search(z, codebook);
  check_together(z, "z", grad_quantized, "grad_quantized");
  check_together(z, "z", grad_loss, "grad_loss");
  check_together(z, "z", indices, "indices");
  check_quantize_backward(grad_quantized, grad_loss, z, indices);
  const DeviceGuard guard(z.get_device_index());
  const bool has_books = codebook.dim() == 3;
  const int64_t books = has_books ? codebook.size(0) : 1;
  Tensor grad_z = make_like(z);
  Tensor grad_codebook = make_empty(codebook.sizes(), codebook.scalar_type(), codebook);
  const Tensor grads = with_rows(grad_quantized, has_books), rows = with_rows(z, has_books),
               results = with_rows(grad_z, has_books), flat = as_contiguous(indices),
               loss = to_dtype(grad_loss, distance_dtype(z.scalar_type()));
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    for (int64_t h = 0; h < books; ++h) {
      const auto codes = as_codes(book<const In>(codebook, has_books, h));
      const QuantizeBackward<In> pass{as_rows(book<const In>(grads, has_books, h)),
                                      elements<const Compute<In>>(loss),
                                      as_rows(book<const In>(rows, has_books, h)),
                                      codes,
                                      elements<const int64_t>(flat) + h * (flat.numel() / books),
                                      commitment_weight,
                                      codebook_weight,
                                      static_cast<double>(std::max<int64_t>(z.numel(), 1)),
                                      as_rows(book<In>(results, has_books, h)),
                                      elements<In>(grad_codebook) + h * codes.count * codes.dim};
      const Tensor workspace = sum_workspace(pass.z.count, pass.z.dim, codes.count, z);
      STD_CUDA_CHECK(quantize_backward<In>(pass, elements<void>(workspace), current_stream(z)));
    }
  });
  if (results.get() != grad_z.get()) copy_into(results, grad_z);
  return {std::move(grad_z), std::move(grad_codebook)};
}

}  // namespace
}  // namespace vqvae_fast

STABLE_TORCH_LIBRARY(vqvae_fast_cuda, library) {
  library.def("nearest_code(Tensor z, Tensor codebook) -> (Tensor, Tensor)");
  library.def("quantize(Tensor z, Tensor codebook) -> (Tensor, Tensor, Tensor)");
  // An index that is no segment makes all sums and counts NaN: an error would mean waiting.
  library.def("segment_sum(Tensor src, Tensor indices, int num_segments) -> (Tensor, Tensor)");
  library.def(
      "quantize_backward(Tensor grad_quantized, Tensor grad_loss, Tensor z, Tensor codebook, "
      "Tensor indices, float commitment_weight, float codebook_weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(vqvae_fast_cuda, CUDA, library) {
  library.impl("nearest_code", TORCH_BOX(&vqvae_fast::nearest_code));
  library.impl("quantize", TORCH_BOX(&vqvae_fast::quantize));
  library.impl("segment_sum", TORCH_BOX(&vqvae_fast::segment_sum_op));
  library.impl("quantize_backward", TORCH_BOX(&vqvae_fast::quantize_backward_op));
}
