// This is the only CPU file that uses torch. It registers the ops' CPU kernels and defines a small
// Python module.
#include <ATen/Parallel.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "build_stamp.h"
#include "cpu/composed_stages.h"
#include "cpu/dispatch.h"
#include "cpu/project.h"
#include "cpu/search.h"
#include "cpu/sums/moving_average.h"
#include "cpu/sums/residual_backward.h"
#include "cpu/sums/segment_sum.h"
#include "torch_changes.h"
#include "torch_rows.h"

namespace vqvae_fast {
namespace {

using at::Tensor;

ThreadPool torch_pool() {
  return {at::get_num_threads(), [](int64_t count, const std::function<void(int64_t)>& body) {
            at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(i);
            });
          }};
}

PackedBytes as_bytes(const Tensor& packed) {
  if (!packed.defined()) return {};
  return {packed.const_data_ptr(), packed.numel()};
}

// Searches one codebook. packed and quantized may be undefined.
void search_one(const Tensor& z, const Tensor& codebook, const Tensor& packed,
                const Tensor& indices, const Tensor& distances, const Tensor& quantized) {
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor z_copy, quantized_copy;
    const auto rows = as_rows<const In>(z, &z_copy);
    const auto codes = as_codes<In>(codebook);
    Rows<In> out{};
    if (quantized.defined()) out = as_rows<In>(quantized, &quantized_copy);
    search_codebook<In>(rows, codes, as_bytes(packed), indices.mutable_data_ptr<int64_t>(),
                        distances.mutable_data_ptr<Compute<In>>(), out, torch_pool());
    if (quantized.defined() && !quantized_copy.is_same(quantized)) {
      quantized.copy_(quantized_copy);
    }
  });
}

// Returns book h of a tensor that may be undefined.
Tensor of_book(const Tensor& books, int64_t h) { return books.defined() ? books[h] : books; }

void search(const Tensor& z, const Tensor& codebook, const Tensor& packed, const Tensor& indices,
            const Tensor& distances, const Tensor& quantized) {
  if (codebook.dim() == 2) return search_one(z, codebook, packed, indices, distances, quantized);
  for (int64_t h = 0; h < codebook.size(0); ++h) {
    search_one(z[h], codebook[h], of_book(packed, h), indices[h], distances[h],
               of_book(quantized, h));
  }
}

// Counts the rows that the integer filter settles in a search of one codebook. Returns nothing if
// the filter does not serve this search.
std::optional<int64_t> settled_by_filter(const Tensor& z, const Tensor& codebook,
                                         const std::optional<Tensor>& packed) {
  check_search(z, codebook);
  TORCH_CHECK_VALUE(codebook.dim() == 2, "codebook must be [K, D], got ", codebook.sizes());
  int64_t settled = -1;
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor copy;
    settled = rows_settled_by_filter<In>(as_rows<const In>(z, &copy), as_codes<In>(codebook),
                                         as_bytes(packed.value_or(Tensor())), torch_pool());
  });
  if (settled < 0) return std::nullopt;
  return settled;
}

// Packs a codebook [K, D] into bytes, or books [H, K, D] into bytes [H, the most of them].
Tensor pack_codebook(const Tensor& codebook) {
  TORCH_CHECK_VALUE(codebook.dim() == 2 || codebook.dim() == 3,
                    "codebook must be [K, D] or [H, K, D], got ", codebook.sizes());
  const Tensor books = codebook.dim() == 2 ? codebook.unsqueeze(0) : codebook;
  std::vector<std::vector<char>> packed;
  int64_t most = 0;
  with_element_type(codebook.scalar_type(), "codebook", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    for (int64_t h = 0; h < books.size(0); ++h) {
      packed.push_back(pack_for_searches<In>(as_codes<In>(books[h]), torch_pool()));
      most = std::max<int64_t>(most, packed.back().size());
    }
  });
  Tensor bytes = at::zeros({books.size(0), most}, codebook.options().dtype(at::kByte));
  for (int64_t h = 0; h < books.size(0); ++h) {
    std::copy(packed[h].begin(), packed[h].end(),
              static_cast<char*>(bytes.mutable_data_ptr()) + h * most);
  }
  return codebook.dim() == 2 ? bytes.squeeze(0) : bytes;
}

void check_packed(const Tensor& codebook, const Tensor& packed) {
  TORCH_CHECK_VALUE(packed.scalar_type() == at::kByte && packed.is_contiguous() &&
                        packed.dim() == codebook.dim() - 1 &&
                        (packed.dim() == 1 || packed.size(0) == codebook.size(0)),
                    "packed must be contiguous bytes, [B] for a codebook [K, D] or [H, B] for "
                    "books [H, K, D], got ",
                    packed.scalar_type(), " ", packed.sizes(), " for ", codebook.sizes());
}

std::tuple<Tensor, Tensor> nearest_packed_code(const Tensor& z, const Tensor& codebook,
                                               const Tensor& packed) {
  check_search(z, codebook);
  const auto shape = z.sizes().slice(0, z.dim() - 1);
  Tensor indices = at::empty(shape, z.options().dtype(at::kLong));
  Tensor distances = at::empty(shape, distance_options(z));
  if (packed.defined()) check_packed(codebook, packed);
  search(z, codebook, packed, indices, distances, Tensor());
  return {indices, distances};
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  return nearest_packed_code(z, codebook, Tensor());
}

std::tuple<Tensor, Tensor, Tensor> quantize_packed(const Tensor& z, const Tensor& codebook,
                                                   const Tensor& packed) {
  check_search(z, codebook);
  const auto shape = z.sizes().slice(0, z.dim() - 1);
  Tensor indices = at::empty(shape, z.options().dtype(at::kLong));
  Tensor distances = at::empty(shape, distance_options(z));
  Tensor quantized = at::empty_like(z);
  if (packed.defined()) check_packed(codebook, packed);
  search(z, codebook, packed, indices, distances, quantized);
  return {quantized, indices, distances};
}

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebook) {
  return quantize_packed(z, codebook, Tensor());
}

// The number type of torch that has the bits of a kernels' element type, and its roundings.
inline float number_of(float*);
inline double number_of(double*);
inline at::BFloat16 number_of(BFloat16*);
inline at::Half number_of(Half*);

// Subtracts the chosen codes from the residuals and adds them to the totals, [N, D] each.
template <class Number>
void move_to_next_stage(const Tensor& codes, const Tensor& residual, const Tensor& total) {
  const auto* code = static_cast<const Number*>(codes.const_data_ptr());
  auto* rest = static_cast<Number*>(residual.mutable_data_ptr());
  auto* sum = static_cast<Number*>(total.mutable_data_ptr());
  at::parallel_for(0, codes.numel(), 1 << 16, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Number element = code[i];
      rest[i] = rest[i] - element;
      sum[i] = sum[i] + element;
    }
  });
}

// Each stage quantizes the residual of the stages before it: z [..., D], codebooks [Q, K, D].
// packed may be undefined.
std::tuple<Tensor, Tensor> residual_nearest_packed_code(const Tensor& z, const Tensor& codebooks,
                                                        const Tensor& packed) {
  TORCH_CHECK_VALUE(codebooks.dim() == 3 && codebooks.numel() > 0,
                    "codebooks must be [Q, K, D], got ", codebooks.sizes());
  const Tensor first_book = codebooks[0];
  check_search(z, first_book);
  if (packed.defined()) check_packed(codebooks, packed);
  const auto shape = z.sizes().slice(0, z.dim() - 1);
  const int64_t stages = codebooks.size(0), count = c10::multiply_integers(shape);
  std::vector<int64_t> shape_of_indices(shape.begin(), shape.end());
  shape_of_indices.push_back(stages);
  Tensor indices = at::empty(shape_of_indices, z.options().dtype(at::kLong));
  Tensor distances = at::empty({count}, distance_options(z));
  // The memory is that of rows side by side, whatever the layout of z is.
  Tensor residual = at::empty(z.sizes(), z.options()).copy_(z);
  Tensor total = at::zeros(z.sizes(), z.options()), codes = at::empty(z.sizes(), z.options());
  std::vector<int64_t> chosen(count);
  with_element_type(z.scalar_type(), "z", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor no_copy;
    const auto rows = as_rows<const In>(residual, &no_copy);
    const auto out = as_rows<In>(codes, &no_copy);
    Codes<In> book = as_codes<In>(first_book);
    PackedBytes bytes = packed.defined() ? as_bytes(packed[0]) : PackedBytes{};
    const ThreadPool pool = torch_pool();
    for (int64_t q = 0; q < stages; ++q) {
      search_codebook<In>(rows, book, bytes, chosen.data(),
                          distances.mutable_data_ptr<Compute<In>>(), out, pool);
      move_to_next_stage<decltype(number_of(element))>(codes, residual, total);
      int64_t* to = indices.mutable_data_ptr<int64_t>() + q;
      for (int64_t n = 0; n < count; ++n) to[n * stages] = chosen[n];
      book.data += codebooks.stride(0);
      if (bytes.size > 0) bytes.data = static_cast<const char*>(bytes.data) + packed.stride(0);
    }
  });
  if (total.strides() == z.strides()) return {indices, total};
  return {indices, at::empty_like(z).copy_(total)};
}

std::tuple<Tensor, Tensor> residual_nearest_code(const Tensor& z, const Tensor& codebooks) {
  return residual_nearest_packed_code(z, codebooks, Tensor());
}

// The map whose matrix and start have more columns than that, so that all may be read in vectors.
Affine<float> as_map(const Tensor& matrix, const Tensor& start, int64_t columns) {
  return {matrix.const_data_ptr<float>(), start.const_data_ptr<float>(), matrix.size(0), columns,
          matrix.size(1)};
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
  stages.corrections = corrections.const_data_ptr<float>();
  stages.exit = as_map(exit, exit_bias, channels);
  stages.cosine = cosine;
  Codes<float> codes = as_codes<float>(codebooks[0]), others = as_codes<float>(compared[0]);
  PackedBytes bytes = as_bytes(packed[0]);
  for (int64_t q = 0; q < number; ++q) {
    stages.codes.push_back(codes);
    stages.compared.push_back(others);
    stages.packed.push_back(bytes);
    codes.data += codebooks.stride(0);
    others.data += compared.stride(0);
    bytes.data = static_cast<const char*>(bytes.data) + packed.stride(0);
  }
  std::vector<int64_t> shape_of_indices = vectors.sizes().vec();
  shape_of_indices.back() = number;
  Tensor indices = at::empty(shape_of_indices, vectors.options().dtype(at::kLong));
  Tensor quantized = at::empty(vectors.sizes(), vectors.options());
  Tensor copy;
  composed_residual_code(stages, as_rows<const float>(vectors, &copy),
                         indices.mutable_data_ptr<int64_t>(), quantized.mutable_data_ptr<float>(),
                         torch_pool());
  return {indices, quantized};
}

// Vectors [..., C] through a map: matrix [C, columns up to a multiple of 16] and its bias.
Tensor project_op(const Tensor& vectors, const Tensor& matrix, const Tensor& bias,
                  int64_t columns) {
  check_project(vectors, matrix, bias, columns);
  std::vector<int64_t> shape = vectors.sizes().vec();
  shape.back() = columns;
  Tensor products = at::empty(shape, vectors.options()), copy;
  project(as_map(matrix, bias, columns), as_rows<const float>(vectors, &copy),
          products.mutable_data_ptr<float>(), torch_pool());
  return products;
}

std::tuple<Tensor, Tensor> segment_sum_op(const Tensor& src, const Tensor& indices,
                                          int64_t num_segments) {
  check_segment_sum(src, indices, num_segments);
  Tensor sums = at::zeros({num_segments, src.size(-1)}, distance_options(src));
  Tensor counts = at::zeros({num_segments}, distance_options(src));
  const Tensor flat = indices.contiguous();
  with_element_type(src.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    Tensor copy;
    const auto rows = as_rows<const In>(src, &copy);
    TORCH_CHECK_INDEX(segment_sum<In>(rows, flat.const_data_ptr<int64_t>(), num_segments,
                                      sums.mutable_data_ptr<Compute<In>>(),
                                      counts.mutable_data_ptr<Compute<In>>(), torch_pool()),
                      "indices must be below num_segments=", num_segments);
  });
  return {sums, counts};
}

// Updates one codebook; averages, sizes and codes are contiguous and of one dtype.
void move_average(const Tensor& averages, const Tensor& sizes, const Tensor& codes,
                  const Tensor& src, const Tensor& indices, double decay, double eps) {
  const Tensor flat = indices.contiguous();
  with_element_type(src.scalar_type(), "src", [&](auto* element) {
    using In = std::remove_pointer_t<decltype(element)>;
    using T = Compute<In>;
    Tensor copy;
    const auto rows = as_rows<const In>(src, &copy);
    TORCH_CHECK_INDEX(
        moving_average<In>(rows, flat.const_data_ptr<int64_t>(), codes.size(0), decay, eps,
                           sizes.mutable_data_ptr<T>(), averages.mutable_data_ptr<T>(),
                           codes.mutable_data_ptr<T>(), torch_pool()),
        "indices must be below K=", codes.size(0));
  });
}

void moving_average_op(const Tensor& average, const Tensor& cluster_size, const Tensor& codebook,
                       const Tensor& src, const Tensor& indices, double decay, double eps) {
  check_moving_average(average, cluster_size, codebook, src, indices);
  const auto wide = average.scalar_type();
  const Tensor averages = average.contiguous(), sizes = cluster_size.to(wide).contiguous(),
               codes = codebook.to(wide).contiguous();
  const bool rows_fit = distance_options(src).dtype() == average.dtype();
  Tensor rows = rows_fit ? src : src.to(wide);
  if (rows.size(-1) > 1 && rows.stride(-1) != 1) rows = rows.contiguous();
  if (codebook.dim() == 2) {
    move_average(averages, sizes, codes, rows, indices, decay, eps);
  } else {
    // The indices of all books are checked before the first book is written.
    TORCH_CHECK_INDEX(indices.numel() == 0 || indices.max().item<int64_t>() < codebook.size(1),
                      "indices must be below K=", codebook.size(1));
    for (int64_t h = 0; h < codebook.size(0); ++h) {
      move_average(averages[h], sizes[h], codes[h], rows[h], indices[h], decay, eps);
    }
  }
  const auto write_back = [](const Tensor& to, const Tensor& from) {
    if (!from.is_same(to)) to.copy_(from);
    to.unsafeGetTensorImpl()->bump_version();  // what autograd saved of this tensor is out of date
  };
  write_back(average, averages);
  write_back(cluster_size, sizes);
  write_back(codebook, codes);
}

template <class In>
Tensor residual_backward_of(const Tensor& grad_quantized, const std::vector<double>& error_weights,
                            const Tensor& z, at::TensorList books, const Tensor& indices,
                            bool rotates) {
  const int64_t dim = z.size(-1), stages = books.size();
  const Tensor flat = indices.contiguous();
  const int64_t* chosen = flat.const_data_ptr<int64_t>();
  std::vector<Codes<In>> codes;
  for (int64_t q = 0; q < stages; ++q) {
    codes.push_back(as_codes<In>(books[q]));
    for (int64_t n = q; n < flat.numel(); n += stages) {
      TORCH_CHECK_INDEX(chosen[n] >= 0 && chosen[n] < codes[q].count,
                        "indices must be in [0, K=", codes[q].count, ")");
    }
  }
  const auto together = [](const Tensor& t) {
    return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous();
  };
  Tensor z_copy, grad_copy;
  const Tensor z_together = together(z), grad_together = together(grad_quantized);
  const auto rows = as_rows<const In>(z_together, &z_copy);
  const auto grad = as_rows<const In>(grad_together, &grad_copy);
  Tensor out = at::empty(z.sizes(), z.options());
  residual_backward<In>({dim, stages, codes.data(), error_weights.data(), rotates}, grad, rows,
                        chosen, out.mutable_data_ptr<In>(), torch_pool());
  return out;
}

Tensor residual_backward_op(const Tensor& grad_quantized, const Tensor& grad_losses,
                            const Tensor& z, at::TensorList books, const Tensor& indices,
                            bool rotates) {
  TORCH_CHECK_VALUE(!books.empty(), "there must be a book");
  check_residual_backward(grad_quantized, grad_losses, z, books, indices);
  const Tensor weights = grad_losses.to(at::kDouble).contiguous();
  std::vector<double> error_weights(weights.const_data_ptr<double>(),
                                    weights.const_data_ptr<double>() + weights.numel());
  for (double& weight : error_weights) weight *= 2.0 / double(std::max<int64_t>(z.numel(), 1));
  return z.scalar_type() == at::kFloat ? residual_backward_of<float>(grad_quantized, error_weights,
                                                                     z, books, indices, rotates)
                                       : residual_backward_of<double>(grad_quantized, error_weights,
                                                                      z, books, indices, rotates);
}

// Python calls this after loading the module, and so decides whether these kernels serve
// (vqvae_fast/backends/dispatch.py).
void register_kernels() {
  static const torch::Library registered = [] {
    torch::Library cpu = MAKE_TORCH_LIBRARY_IMPL(vqvae_fast, CPU);
    cpu.impl("nearest_code", nearest_code);
    cpu.impl("quantize", quantize);
    cpu.impl("residual_nearest_code", residual_nearest_code);
    cpu.impl("pack_codebook", pack_codebook);
    cpu.impl("nearest_packed_code", nearest_packed_code);
    cpu.impl("quantize_packed", quantize_packed);
    cpu.impl("residual_nearest_packed_code", residual_nearest_packed_code);
    cpu.impl("composed_residual_code", composed_residual_code_op);
    cpu.impl("project", project_op);
    cpu.impl("segment_sum", segment_sum_op);
    cpu.impl("moving_average_", moving_average_op);
    cpu.impl("residual_backward", residual_backward_op);
    return cpu;
  }();
}

std::vector<std::string> available_cpu_isas() {
  std::vector<std::string> names;
  for (const InstructionSet* set : available_instruction_sets()) names.push_back(set->name);
  return names;
}

}  // namespace
}  // namespace vqvae_fast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of vqvae_fast for CPU tensors.";
  m.def("register_kernels", vqvae_fast::register_kernels,
        "Let these kernels serve torch.ops.vqvae_fast.* on CPU tensors, for good.");
  m.def(
      "cpu_isa", [] { return std::string(vqvae_fast::instruction_set().name); },
      "Name of the instruction set in use.");
  m.def("available_cpu_isas", vqvae_fast::available_cpu_isas,
        "Names of the instruction sets of this build that this machine has, best first.");
  m.def("set_cpu_isa", vqvae_fast::select_instruction_set, pybind11::arg("name"),
        "Use the named instruction set; ValueError where this machine lacks it.");
  m.def("rows_settled_by_filter", vqvae_fast::settled_by_filter, pybind11::arg("z"),
        pybind11::arg("codebook"), pybind11::arg("packed") = pybind11::none(),
        "How many rows of this search the integer filter settles; None where it does not serve.");
  m.def("description", vqvae_fast::description, pybind11::arg("tensors"),
        "(bytes that differ after a change, whether one requires a gradient, whether one has one), "
        "or None for special tensors.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["vqvae_fast"] = vqvae_fast::kBuiltFor;
        info["torch"] = TORCH_VERSION;
        info["cxx"] = __cplusplus;
#ifdef __VERSION__
        info["compiler"] = __VERSION__;
#endif
        return info;
      },
      "What this module was built with.");
}
