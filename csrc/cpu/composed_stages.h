// Runs stages of residual quantization of which each sees the vectors through a linear map of its
// own. The products of these maps were composed beforehand, so that all that happens between the
// first map and the last happens among the few dimensions that a stage sees.
#pragma once

#include <stdint.h>

#include <vector>

#include "contract.h"
#include "packed_codebook.h"
#include "parallel.h"

namespace vqvae_fast {

// ComposedStages describes the stages.
struct ComposedStages {
  int64_t count, dim;                  // Q, and D of each stage
  Affine<float> entry;                 // from a vector [C] to what all stages see [Q * D]
  std::vector<Codes<float>> codes;     // [Q]: what the stages give
  std::vector<Codes<float>> compared;  // [Q]: what their searches compare in the codes' place
  std::vector<PackedBytes> packed;     // [Q]: of `compared`
  const float* corrections;  // [Q][D][Q * D]: what an element of a stage's code takes from all
  Affine<float> exit;        // from all codes [Q * D] to the sum of what the stages give [C]
  bool cosine;               // the searches compare directions

  int64_t width() const { return count * dim; }
};

// Writes the indices [N][Q] of the codes, and the sum of what the stages give, [N][C].
void composed_residual_code(const ComposedStages& stages, const Rows<const float>& vectors,
                            int64_t* indices, float* quantized, const ThreadPool& pool);

}  // namespace vqvae_fast
