// What the ops' CPU kernels pass to csrc/cpu beside rows and codes: torch's threads, and codebooks
// that were packed beforehand.
#pragma once

#include <atomic>
#include <exception>

#include "../../cpu/packed_codebook.h"
#include "../../cpu/parallel.h"
#include "../tensors.h"

namespace vqvae_fast {
namespace {

// Runs the tasks on torch's threads. An exception cannot pass through torch's stable ABI, so the
// first one waits here.
inline void run_in_torch(int64_t count, const std::function<void(int64_t)>& body) {
  std::exception_ptr raised;
  std::atomic_flag has_raised;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t i = begin; i < end; ++i) body(i);
    } catch (...) {
      if (!has_raised.test_and_set()) raised = std::current_exception();
    }
  });
  if (raised) std::rethrow_exception(raised);
}

inline ThreadPool torch_pool() { return {torch::stable::get_num_threads(), run_in_torch}; }

inline void check_packed(const Tensor& codebook, const Tensor& packed) {
  check_value(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                  packed.dim() == codebook.dim() - 1 &&
                  (packed.dim() == 1 || packed.size(0) == codebook.size(0)),
              "packed must be contiguous bytes, [B] for a codebook [K, D] or [H, B] for books "
              "[H, K, D], got ",
              packed.scalar_type(), " ", packed.sizes(), " for ", codebook.sizes());
}

// Returns the bytes of book h: packed is [H, B], or [B] for a single codebook, or null.
inline PackedBytes packed_book(const Tensor* packed, int64_t h) {
  if (packed == nullptr) return {};
  const int64_t size = packed->size(-1);
  return {elements<const char>(*packed) + h * size, size};
}

}  // namespace
}  // namespace vqvae_fast
