// This file makes tensors of torch and passes them to kernels. The CPU's and the GPU's ops share
// it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../rows.h"
#include "errors.h"

namespace vqvae_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

// Returns the sizes of t: [..., D] without D.
inline Sizes row_sizes(const Tensor& t) { return t.sizes().slice(0, t.dim() - 1); }

// ---- New tensors --------------------------------------------------------------------------------

// The tensors are uninitialized, and on the device of `beside`. torch::stable::empty() would do the
// same, but it looks the op up by name, which takes longer than a small search.
inline Tensor make_strided(Sizes sizes, Sizes strides, ScalarType dtype, const Tensor& beside) {
  int32_t device_type, device_index;
  check_torch(aoti_torch_get_device_type(beside.get(), &device_type));
  check_torch(aoti_torch_get_device_index(beside.get(), &device_index));
  const auto shim_dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made;
  check_torch(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                       shim_dtype, device_type, device_index, &made));
  return Tensor(made);
}

// Returns a contiguous tensor.
inline Tensor make_empty(Sizes sizes, ScalarType dtype, const Tensor& beside) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max(sizes[d], int64_t{1});
  }
  return make_strided(sizes, strides, dtype, beside);
}

inline Tensor make_zeros(Sizes sizes, ScalarType dtype, const Tensor& beside) {
  Tensor made = make_empty(sizes, dtype, beside);
  check_torch(aoti_torch_zero_(made.get()));
  return made;
}

// Returns a tensor with the layout of t, as torch's empty_like() does.
inline Tensor make_like(const Tensor& t) {
  if (t.is_contiguous() && t.numel() > 0) {
    return make_strided(t.sizes(), t.strides(), t.scalar_type(), t);
  }
  return torch::stable::empty_like(t);
}

// Returns t itself if it is contiguous.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Returns t itself if it has this dtype.
inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// Checks that the memory of t was not taken away, as by untyped_storage().resize_(0).
inline void check_memory(const Tensor& t) {
  int64_t bytes;
  check_torch(aoti_torch_get_storage_size(t.get(), &bytes));
  check_value(bytes > 0 || t.numel() == 0, "a tensor ", t.sizes(),
              " must have memory, got one whose storage has 0 bytes");
}

inline void copy_into(const Tensor& from, const Tensor& to) {
  check_memory(from);  // torch itself does not
  check_torch(aoti_torch_copy_(to.get(), from.get(), /*non_blocking=*/0));
}

// ---- Element types ------------------------------------------------------------------------------

// Calls body with a null pointer of the kernels' element type for `dtype`.
template <class Body>
void with_element_type(ScalarType dtype, const char* name, Body body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return body(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<Half*>(nullptr));
    default:
      check_value(false, name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  }
}

// Returns the dtype of distances and of sums: Compute<In> of the element type In.
inline ScalarType distance_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// ---- Memory -------------------------------------------------------------------------------------

// Returns where the elements lie. The caller has checked the dtype.
template <class T>
T* elements(const Tensor& t) {
  check_memory(t);
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t.const_data_ptr());
  } else {
    return static_cast<T*>(t.mutable_data_ptr());
  }
}

// A View is the memory of a tensor, which must outlive it: sizes and strides lie in the tensor.
template <class T>
struct View {
  T* data;
  Sizes sizes, strides;

  // Returns the part at place i of the first dimension.
  View at(int64_t i) const { return {data + i * strides[0], sizes.slice(1), strides.slice(1)}; }
};

template <class T>
View<T> view_of(const Tensor& t) {
  return {elements<T>(t), t.sizes(), t.strides()};
}

// Returns book h of a tensor that may have books in its first dimension, else all of it.
template <class T>
View<T> book(const Tensor& t, bool has_books, int64_t h) {
  return has_books ? view_of<T>(t).at(h) : view_of<T>(t);
}

// A level is a number of rows at one stride. Dimensions that are contiguous with each other form
// one level.
struct Level {
  int64_t size = 1;
  int64_t stride = 0;
};

// The levels of all dimensions but the last. Only the two innermost are kept; rows need no more.
struct Levels {
  int count = 0;
  Level outer, inner;
};

// A dimension of size 1 is skipped, because torch lets it have any stride and still calls the
// tensor contiguous.
inline Levels levels_of(Sizes sizes, Sizes strides) {
  Levels levels;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    if (levels.count > 0 && levels.inner.stride == strides[d] * sizes[d]) {
      levels.inner = {levels.inner.size * sizes[d], strides[d]};
    } else {
      levels = {levels.count + 1, levels.inner, {sizes[d], strides[d]}};
    }
  }
  return levels;
}

// Returns t if as_rows() can describe it, or each part of it if it has books in its first
// dimension. A layout of more than two levels is rare, and is copied.
inline Tensor with_rows(const Tensor& t, bool has_books = false) {
  const Levels levels = levels_of(t.sizes().slice(has_books), t.strides().slice(has_books));
  return levels.count > 2 ? as_contiguous(t) : t;
}

// Returns a view [..., D] of at most two levels as rows.
template <class T>
Rows<T> as_rows(const View<T>& view) {
  const auto [count, outer, inner] = levels_of(view.sizes, view.strides);
  const int64_t dim = view.sizes.back();
  return {view.data,
          outer.size * inner.size,
          dim,
          std::max<int64_t>(inner.size, 1),
          outer.stride,
          inner.stride,
          dim == 1 ? 1 : view.strides.back()};
}

// Returns a codebook [K, D] as codes.
template <class T>
Codes<T> as_codes(const View<const T>& codebook) {
  const Sizes sizes = codebook.sizes, strides = codebook.strides;
  return {codebook.data, sizes[0], sizes[1], strides[0], sizes[1] == 1 ? 1 : strides[1]};
}

}  // namespace
}  // namespace vqvae_fast
