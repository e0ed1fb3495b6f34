// This file tells whether tensors have changed, without reading their elements.
#pragma once

#include <torch/extension.h>

#include <optional>
#include <tuple>
#include <vector>

namespace vqvae_fast {
namespace {

// Describes tensors so that two descriptions differ if one of the tensors was replaced or written
// to in between: where it lies, its version, dtype, device, shape and strides. Also says whether
// any requires a gradient and whether any has one. Returns nothing for tensors of a special kind.
// Python has the same in nn/codebook/changes.py, where it takes ten times as long.
inline std::optional<std::tuple<pybind11::bytes, bool, bool>> description(
    const std::vector<at::Tensor>& tensors) {
  constexpr c10::DispatchKeySet kSpecial =
      c10::python_ks | c10::DispatchKeySet({c10::DispatchKey::FuncTorchBatched,
                                            c10::DispatchKey::FuncTorchGradWrapper,
                                            c10::DispatchKey::Functionalize});
  std::vector<int64_t> facts;
  bool requires_grad = false, has_gradient = false;
  for (const at::Tensor& t : tensors) {
    if (t.layout() != at::kStrided || t.is_meta() || t.is_inference() ||
        t.key_set().has_any(kSpecial)) {
      return std::nullopt;
    }
    requires_grad |= t.requires_grad();
    has_gradient |= t.is_leaf() && t.grad().defined();
    facts.insert(facts.end(), {reinterpret_cast<int64_t>(t.const_data_ptr()), t._version(),
                               int64_t(t.scalar_type()), int64_t(t.device().type()),
                               t.device().index(), t.dim()});
    facts.insert(facts.end(), t.sizes().begin(), t.sizes().end());
    facts.insert(facts.end(), t.strides().begin(), t.strides().end());
  }
  return std::tuple(
      pybind11::bytes(reinterpret_cast<const char*>(facts.data()), facts.size() * sizeof(int64_t)),
      requires_grad, has_gradient);
}

}  // namespace
}  // namespace vqvae_fast
