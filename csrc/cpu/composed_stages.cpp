#include "composed_stages.h"

#include <algorithm>
#include <cmath>

#include "aligned_buffer.h"
#include "dispatch.h"
#include "search.h"

namespace vqvae_fast {
namespace {

// So many rows go through all stages together: what is left of them stays in the L2.
constexpr int64_t kBlockRows = 128;
// A thread is woken for at least so many rows.
constexpr int64_t kRowsOfThread = 8;

// Writes x / |x| for x of `dim` elements, as the formula of that name does: in float64, so that no
// square over- or underflows. Zero, infinity and NaN have no direction and become NaN.
void write_direction(const float* x, int64_t dim, float* direction) {
  double largest = 0, square = 0;
  for (int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(double(x[d])));
  for (int64_t d = 0; d < dim; ++d) {
    const double scaled = double(x[d]) / largest;
    square += scaled * scaled;
  }
  const double norm = std::sqrt(square);
  for (int64_t d = 0; d < dim; ++d) direction[d] = float(double(x[d]) / largest / norm);
}

// The memory of the rows that go through the stages together.
struct BlockOfRows {
  BlockOfRows(const ComposedStages& stages, int64_t rows, int64_t scratch_bytes)
      : left(rows * stages.width()),
        chosen(rows * stages.width()),
        directions(stages.cosine ? rows * stages.dim : 0),
        indices(rows),
        distances(rows),
        scratch(allocate(scratch_bytes)) {}

  std::vector<float> left;        // [rows][Q * D]: what the stages see
  std::vector<float> chosen;      // [rows][Q * D]: their codes
  std::vector<float> directions;  // [rows][D]: of one stage
  std::vector<int64_t> indices;   // [rows]: of one stage
  std::vector<float> distances;   // [rows]
  Buffer scratch;                 // of the products
};

// Returns what the search of a stage compares for `count` rows.
Rows<const float> rows_of_stage(const ComposedStages& stages, int64_t stage, int64_t count,
                                BlockOfRows& block) {
  const float* first = block.left.data() + stage * stages.dim;
  if (!stages.cosine) return {first, count, stages.dim, count, 0, stages.width(), 1};
  for (int64_t n = 0; n < count; ++n) {
    write_direction(first + n * stages.width(), stages.dim,
                    block.directions.data() + n * stages.dim);
  }
  return {block.directions.data(), count, stages.dim, count, 0, stages.dim, 1};
}

// Writes the code that a stage chose for a row, and takes from the row what later stages no longer
// see.
void take_code(const ComposedStages& stages, int64_t stage, int64_t index, float* left,
               float* chosen) {
  const int64_t dim = stages.dim, width = stages.width(), from = (stage + 1) * dim;
  const Codes<float>& codes = stages.codes[stage];
  const float* code = codes.row(index);
  const float* correction = stages.corrections + stage * dim * width;
  for (int64_t d = 0; d < dim; ++d, correction += width) {
    const float element = code[d * codes.element_stride];
    chosen[stage * dim + d] = element;
    for (int64_t i = from; i < width; ++i) left[i] -= element * correction[i];
  }
}

// Finds the codes of `count` rows of a block. Writes indices [count][Q].
void run_stages(const ComposedStages& stages, int64_t count, BlockOfRows& block, int64_t* indices) {
  const int64_t width = stages.width();
  const ThreadPool alone{1, [](int64_t tasks, const std::function<void(int64_t)>& body) {
                           for (int64_t task = 0; task < tasks; ++task) body(task);
                         }};
  for (int64_t q = 0; q < stages.count; ++q) {
    search_codebook<float>(rows_of_stage(stages, q, count, block), stages.compared[q],
                           stages.packed[q], block.indices.data(), block.distances.data(),
                           Rows<float>{}, alone);
    for (int64_t n = 0; n < count; ++n) {
      indices[n * stages.count + q] = block.indices[n];
      take_code(stages, q, block.indices[n], block.left.data() + n * width,
                block.chosen.data() + n * width);
    }
  }
}

}  // namespace

void composed_residual_code(const ComposedStages& stages, const Rows<const float>& vectors,
                            int64_t* indices, float* quantized, const ThreadPool& pool) {
  const Engine<float>& engine = instruction_set().engine<float>();
  const int64_t num_rows = vectors.count, width = stages.width();
  const int64_t scratch_bytes =
      engine.multiply_scratch_bytes(std::max(stages.entry.dim, stages.exit.dim));
  const int64_t parts = std::clamp<int64_t>(num_rows / kRowsOfThread, 1, pool.num_threads);
  pool.run(parts, [&](int64_t part) {
    const int64_t begin = part_begin(num_rows, parts, part);
    const int64_t end = part_begin(num_rows, parts, part + 1);
    BlockOfRows block(stages, std::min(kBlockRows, end - begin), scratch_bytes);
    for (int64_t row = begin; row < end; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, end - row);
      engine.multiply(vectors, row, row + count, stages.entry, block.scratch.get(),
                      block.left.data());
      run_stages(stages, count, block, indices + row * stages.count);
      const Rows<const float> chosen{block.chosen.data(), count, width, count, 0, width, 1};
      engine.multiply(chosen, 0, count, stages.exit, block.scratch.get(),
                      quantized + row * stages.exit.columns);
    }
  });
}

}  // namespace vqvae_fast
