// This is the only CUDA file that uses torch. It defines a Python module of functions on CUDA
// tensors, and Python chooses when to call them. No function waits for the device, and torch
// allocates all memory on the current stream, so CUDA graphs may capture every function.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "build_stamp.h"
#include "cuda/search.h"
#include "cuda/segment_sum.h"
#include "torch_rows.h"

namespace vqvae_fast {
namespace {

using c10::cuda::CUDAGuard;

void check_cuda(const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.is_cuda(), name, " must be on a CUDA device, got ", tensor.device());
}
void check_together(const Tensor& tensor, const char* name, const Tensor& other,
                    const char* other_name) {
  TORCH_CHECK_VALUE(other.device() == tensor.device(), other_name, " must be on ", name,
                    "'s device ", tensor.device(), ", got ", other.device());
}

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

Tensor allocate(int64_t bytes, const Tensor& beside) {
  return at::empty({bytes}, beside.options().dtype(at::kByte));
}

int processors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Searches one codebook. quantized may be undefined.
void search_one(const Tensor& z, const Tensor& codebook, const Tensor& indices,
                const Tensor& distances, const Tensor& quantized) {
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor z_copy, quantized_copy;
    const auto rows = as_rows<const In>(z, &z_copy);
    if (rows.count == 0) return;
    const auto codes = as_codes<In>(codebook);
    Rows<In> out{};
    if (quantized.defined()) out = as_rows<In>(quantized, &quantized_copy);
    const int device_processors = processors();
    const Tensor workspace = allocate(search_workspace(rows, codes, device_processors), z);
    C10_CUDA_CHECK(search_codebook<In>(
        rows, codes, indices.mutable_data_ptr<int64_t>(), distances.mutable_data_ptr<Compute<In>>(),
        out, workspace.mutable_data_ptr(), device_processors, current_stream()));
    if (quantized.defined() && !quantized_copy.is_same(quantized)) {
      quantized.copy_(quantized_copy);
    }
  });
}

std::tuple<Tensor, Tensor> search(const Tensor& z, const Tensor& codebook,
                                  const Tensor& quantized) {
  const auto shape = z.sizes().slice(0, z.dim() - 1);
  Tensor indices = at::empty(shape, z.options().dtype(at::kLong));
  Tensor distances = at::empty(shape, distance_options(z));
  if (codebook.dim() == 2) {
    search_one(z, codebook, indices, distances, quantized);
  } else {
    for (int64_t h = 0; h < codebook.size(0); ++h) {
      search_one(z[h], codebook[h], indices[h], distances[h],
                 quantized.defined() ? quantized[h] : quantized);
    }
  }
  return {indices, distances};
}

void check_cuda_search(const Tensor& z, const Tensor& codebook) {
  check_cuda(z, "z");
  check_together(z, "z", codebook, "codebook");
  check_search(z, codebook);
}

// Applies a pending negation: a tensor that torch marks as negated stores its numbers without the
// sign.
Tensor as_stored(const Tensor& tensor) { return tensor.resolve_neg(); }

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  check_cuda_search(z, codebook);
  const CUDAGuard guard(z.device());
  return search(as_stored(z), as_stored(codebook), Tensor());
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebook) {
  check_cuda_search(z, codebook);
  const CUDAGuard guard(z.device());
  Tensor quantized = at::empty_like(z);
  auto [indices, distances] = search(as_stored(z), as_stored(codebook), quantized);
  return {quantized, indices, distances};
}

Tensor sum_workspace(int64_t rows, int64_t dim, int64_t num_segments, const Tensor& beside) {
  TORCH_CHECK_VALUE(num_segments < int64_t{UINT32_MAX}, "num_segments must be below ", UINT32_MAX,
                    ", got ", num_segments);
  int64_t bytes = 0;
  C10_CUDA_CHECK(segment_sum_workspace(rows, dim, num_segments, &bytes));
  return allocate(bytes, beside);
}

std::tuple<Tensor, Tensor> segment_sum_op(const Tensor& src, const Tensor& indices,
                                          int64_t num_segments) {
  check_cuda(src, "src");
  check_together(src, "src", indices, "indices");
  check_segment_sum(src, indices, num_segments);
  const CUDAGuard guard(src.device());
  Tensor sums = at::empty({num_segments, src.size(-1)}, distance_options(src));
  Tensor counts = at::empty({num_segments}, distance_options(src));
  const Tensor flat = indices.contiguous(), stored = as_stored(src);
  with_element_type(src.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor copy;
    const auto rows = as_rows<const In>(stored, &copy);
    const Tensor workspace = sum_workspace(rows.count, rows.dim, num_segments, src);
    C10_CUDA_CHECK(segment_sum<In>(
        rows, flat.const_data_ptr<int64_t>(), num_segments, sums.mutable_data_ptr<Compute<In>>(),
        counts.mutable_data_ptr<Compute<In>>(), workspace.mutable_data_ptr(), current_stream()));
  });
  return {sums, counts};
}

// Runs the backward pass of one codebook. grad_loss: 0-d, in the type that errors are computed in;
// elements: the number of elements in all of z.
void backward_one(const Tensor& grad_quantized, const Tensor& grad_loss, const Tensor& z,
                  const Tensor& codebook, const Tensor& indices, double commitment_weight,
                  double codebook_weight, double elements, const Tensor& grad_z,
                  const Tensor& grad_codebook) {
  const Tensor flat = indices.contiguous();
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor grad_copy, z_copy, result_copy;
    const QuantizeBackward<In> pass{as_rows<const In>(grad_quantized, &grad_copy),
                                    grad_loss.const_data_ptr<Compute<In>>(),
                                    as_rows<const In>(z, &z_copy),
                                    as_codes<In>(codebook),
                                    flat.const_data_ptr<int64_t>(),
                                    commitment_weight,
                                    codebook_weight,
                                    elements,
                                    as_rows<In>(grad_z, &result_copy),
                                    reinterpret_cast<In*>(grad_codebook.mutable_data_ptr())};
    const Tensor workspace = sum_workspace(pass.z.count, pass.z.dim, pass.codes.count, z);
    C10_CUDA_CHECK(quantize_backward<In>(pass, workspace.mutable_data_ptr(), current_stream()));
    if (!result_copy.is_same(grad_z)) grad_z.copy_(result_copy);
  });
}

std::tuple<Tensor, Tensor> quantize_backward_op(const Tensor& grad_quantized,
                                                const Tensor& grad_loss, const Tensor& z,
                                                const Tensor& codebook, const Tensor& indices,
                                                double commitment_weight, double codebook_weight) {
  check_cuda_search(z, codebook);
  check_together(z, "z", grad_quantized, "grad_quantized");
  check_together(z, "z", grad_loss, "grad_loss");
  check_together(z, "z", indices, "indices");
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong, "indices must be int64, got ",
                   indices.scalar_type());
  TORCH_CHECK_TYPE(grad_quantized.scalar_type() == z.scalar_type(),
                   "grad_quantized must have z's dtype ", z.scalar_type(), ", got ",
                   grad_quantized.scalar_type());
  TORCH_CHECK_VALUE(grad_quantized.sizes() == z.sizes() &&
                        indices.sizes() == z.sizes().slice(0, z.dim() - 1) && grad_loss.dim() == 0,
                    "grad_quantized must be like z ", z.sizes(), ", indices like z without its ",
                    "last dimension and grad_loss 0-d, got ", grad_quantized.sizes(), ", ",
                    indices.sizes(), " and ", grad_loss.sizes());
  const CUDAGuard guard(z.device());
  Tensor grad_z = at::empty_like(z);
  Tensor grad_codebook = at::empty(codebook.sizes(), codebook.options());
  const auto elements = static_cast<double>(std::max<int64_t>(z.numel(), 1));
  const Tensor grad = as_stored(grad_quantized), rows = as_stored(z), books = as_stored(codebook);
  const Tensor loss = as_stored(grad_loss).to(distance_options(z).dtype());
  if (books.dim() == 2) {
    backward_one(grad, loss, rows, books, indices, commitment_weight, codebook_weight, elements,
                 grad_z, grad_codebook);
  } else {
    for (int64_t h = 0; h < books.size(0); ++h) {
      backward_one(grad[h], loss, rows[h], books[h], indices[h], commitment_weight, codebook_weight,
                   elements, grad_z[h], grad_codebook[h]);
    }
  }
  return {grad_z, grad_codebook};
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["vqvae_fast"] = kBuiltFor;
  info["torch"] = TORCH_VERSION;
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["archs"] = compiled_for();
  return info;
}

}  // namespace
}  // namespace vqvae_fast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using pybind11::arg;
  m.doc() = "CUDA kernels of vqvae_fast, on CUDA tensors; arguments and results are the ops'.";
  m.def("nearest_code", vqvae_fast::nearest_code, arg("z"), arg("codebook"));
  m.def("quantize", vqvae_fast::quantize, arg("z"), arg("codebook"));
  m.def("segment_sum", vqvae_fast::segment_sum_op, arg("src"), arg("indices"), arg("num_segments"),
        "An index that is no segment makes all sums and counts NaN: an error would mean waiting.");
  m.def("quantize_backward", vqvae_fast::quantize_backward_op, arg("grad_quantized"),
        arg("grad_loss"), arg("z"), arg("codebook"), arg("indices"), arg("commitment_weight"),
        arg("codebook_weight"));
  m.def("build_info", vqvae_fast::build_info, "What this module was built with.");
}
