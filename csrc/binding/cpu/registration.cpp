#include "registration.h"

#include <torch/csrc/stable/library.h>

#include "ops.h"

namespace vqvae_fast {
namespace {

// A Kernel takes its arguments from a stack and leaves its results there.
struct Kernel {
  const char* op;
  void (*run)(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
};

constexpr Kernel kKernels[] = {
    {"nearest_code", TORCH_BOX(nearest_code)},
    {"nearest_codes", TORCH_BOX(nearest_codes)},
    {"nearest_packed_codes", TORCH_BOX(nearest_packed_codes)},
    {"quantize", TORCH_BOX(quantize)},
    {"pack_codebook", TORCH_BOX(pack_codebook)},
    {"nearest_packed_code", TORCH_BOX(nearest_packed_code)},
    {"quantize_packed", TORCH_BOX(quantize_packed)},
    {"rows_settled_by_filter", TORCH_BOX(rows_settled_by_filter_op)},
    {"residual_nearest_code", TORCH_BOX(residual_nearest_code)},
    {"residual_nearest_packed_code", TORCH_BOX(residual_nearest_packed_code)},
    {"composed_residual_code", TORCH_BOX(composed_residual_code_op)},
    {"project", TORCH_BOX(project_op)},
    {"segment_sum", TORCH_BOX(segment_sum_op)},
    {"moving_average_", TORCH_BOX(moving_average_op)},
    {"residual_backward", TORCH_BOX(residual_backward_op)},
};

TorchLibraryHandle make_library() {
  TorchLibraryHandle library;
  check_torch(aoti_torch_library_init_impl("vqvae_fast", "CPU", __FILE__, __LINE__, &library));
  for (const Kernel& kernel : kKernels) {
    check_torch(torch_library_impl(library, kernel.op, kernel.run, TORCH_ABI_VERSION));
  }
  return library;
}

}  // namespace

void register_kernels() {
  // The library is never deleted, because its deletion would take the kernels back.
  [[maybe_unused]] static const TorchLibraryHandle library = make_library();
}

}  // namespace vqvae_fast
