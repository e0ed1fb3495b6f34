// This file raises the errors of the ops. torch turns std::out_of_range into Python's IndexError,
// and std::invalid_argument into ValueError up to torch 2.14 and into RuntimeError from 2.15 on.
// The stable ABI has nothing that becomes a TypeError, or a ValueError in every torch; the public
// functions check types and shapes in Python beforehand.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <sstream>
#include <stdexcept>

// torch has this function from 2.13 on. In an older one its address is null.
extern "C" [[gnu::weak]] const char* torch_exception_get_what_without_backtrace();

namespace vqvae_fast {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

namespace {

inline std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t d = 0; d < sizes.size(); ++d) out << (d == 0 ? "" : ", ") << sizes[d];
  return out << ']';
}

template <class Error, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void raise(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Error(sentence.str());
}

// Raises std::invalid_argument unless the condition holds. Its message is the parts in a row.
template <class... Parts>
void check_value(bool holds, const Parts&... parts) {
  if (!holds) raise<std::invalid_argument>(parts...);
}

// Raises an IndexError unless the condition holds.
template <class... Parts>
void check_index(bool holds, const Parts&... parts) {
  if (!holds) raise<std::out_of_range>(parts...);
}

// Raises a RuntimeError if a C function of torch has failed, with torch's reason if it can be had.
inline void check_torch(AOTITorchError status) {
  if (status == TORCH_SUCCESS) return;
  const auto reason = torch_exception_get_what_without_backtrace;
  raise<std::runtime_error>(reason ? reason() : "a call into torch failed, perhaps for memory");
}

}  // namespace
}  // namespace vqvae_fast
