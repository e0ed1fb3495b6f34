// Runs stages of residual quantization of which each sees the vectors through a matrix of its own.
// The products of those matrices were composed beforehand, so that all happens among the few
// dimensions that a stage sees.
#pragma once

#include <stdint.h>

#include <vector>

#include "packed_codebook.h"
#include "parallel.h"

namespace vqvae_fast {

// ComposedStages describes the stages. Everything in it is contiguous but the codes.
struct ComposedStages {
  int64_t count, dim;                  // Q, and D of each stage
  std::vector<Codes<float>> codes;     // [Q]: what the stages give
  std::vector<Codes<float>> compared;  // [Q]: what their searches compare in the codes' place
  std::vector<PackedBytes> packed;     // [Q]: of `compared`
  const float* corrections;  // [Q][D][Q * D]: what an element of a stage's code takes from all
  bool cosine;               // the searches compare directions

  int64_t width() const { return count * dim; }
};

// Finds the codes of N rows. seen: [N][Q * D], what each stage would see if the stages before it
// had taken nothing. Writes indices [N][Q] and the codes to chosen [N][Q * D].
void composed_residual_code(const ComposedStages& stages, const float* seen, int64_t num_rows,
                            int64_t* indices, float* chosen, const ThreadPool& pool);

}  // namespace vqvae_fast
