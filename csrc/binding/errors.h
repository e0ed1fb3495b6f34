// This file raises the errors of the ops. torch turns std::invalid_argument into Python's
// ValueError and std::out_of_range into IndexError. The stable ABI has nothing that becomes a
// TypeError, so wrong dtypes are ValueErrors too; the public functions check types in Python
// beforehand.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <sstream>
#include <stdexcept>

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

// Raises a ValueError unless the condition holds; its message is the parts, one after another.
template <class... Parts>
void check_value(bool holds, const Parts&... parts) {
  if (!holds) raise<std::invalid_argument>(parts...);
}

// Raises an IndexError unless the condition holds.
template <class... Parts>
void check_index(bool holds, const Parts&... parts) {
  if (!holds) raise<std::out_of_range>(parts...);
}

}  // namespace
}  // namespace vqvae_fast
