// The ops' kernels for CPU tensors. vqvae_fast/ops.py has the schemas and says what each op does;
// register_kernels() hands the kernels to torch.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "../tensors.h"

namespace vqvae_fast {

// ---- searches.cpp -------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook);
std::tuple<Tensor, Tensor> nearest_codes(const Tensor& z, const Tensor& codebook, int64_t k);
std::tuple<Tensor, Tensor> nearest_packed_codes(const Tensor& z, const Tensor& codebook,
                                                const Tensor& packed, int64_t k);
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& z, const Tensor& codebook);
Tensor pack_codebook(const Tensor& codebook);
std::tuple<Tensor, Tensor> nearest_packed_code(const Tensor& z, const Tensor& codebook,
                                               const Tensor& packed);
std::tuple<Tensor, Tensor, Tensor> quantize_packed(const Tensor& z, const Tensor& codebook,
                                                   const Tensor& packed);
int64_t rows_settled_by_filter_op(const Tensor& z, const Tensor& codebook, const Tensor& packed);

// ---- residual.cpp -------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> residual_nearest_code(const Tensor& z, const Tensor& codebooks);
std::tuple<Tensor, Tensor> residual_nearest_packed_code(const Tensor& z, const Tensor& codebooks,
                                                        const Tensor& packed);
std::tuple<Tensor, Tensor> composed_residual_code_op(const Tensor& vectors, const Tensor& entry,
                                                     const Tensor& entry_bias,
                                                     const Tensor& codebooks,
                                                     const Tensor& compared, const Tensor& packed,
                                                     const Tensor& corrections, const Tensor& exit,
                                                     const Tensor& exit_bias, bool cosine);
Tensor project_op(const Tensor& vectors, const Tensor& matrix, const Tensor& bias, int64_t columns);

// ---- sums.cpp -----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> segment_sum_op(const Tensor& src, const Tensor& indices,
                                          int64_t num_segments);
void moving_average_op(const Tensor& average, const Tensor& cluster_size, const Tensor& codebook,
                       const Tensor& src, const Tensor& indices, double decay, double eps);
Tensor residual_backward_op(const Tensor& grad_quantized, const Tensor& grad_losses,
                            const Tensor& z, const std::vector<Tensor>& books,
                            const Tensor& indices, bool rotates);

}  // namespace vqvae_fast
