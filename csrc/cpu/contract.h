// This file is the contract between the CPU kernels and their callers. It uses raw pointers and
// includes no torch headers.
//
// The search maximises score(z, e) = z.e - |e|^2/2, which orders codes as the distance does, in
// fast arithmetic whose error is bounded. It then measures every code that the bound cannot rule
// out, as sum((z - e)^2) in float64. So every instruction set returns the same bits.
// docs/exactness.md derives the bound.
#pragma once

#include <stdint.h>

#include "../rows.h"
#include "codes/listed_codes.h"
#include "int8_filter/book.h"
#include "top_codes/measured.h"

// Loops over a tile must be unrolled before the compiler decides what lives in registers: left to
// itself, GCC unrolls them too late and sends every accumulator through the stack.
#if defined(__GNUC__)
#define VQVAE_FAST_UNROLL _Pragma("GCC unroll 16")
// Keeps a function out of line: a loop that needs all registers, or rare code that must not take
// registers from the loop beside it.
#define VQVAE_FAST_ALONE __attribute__((noinline))
#else
#define VQVAE_FAST_UNROLL
#define VQVAE_FAST_ALONE
#endif

// Marks a function that asks the processor for its features. It also runs on machines that lack the
// instruction set of its file, so it is compiled for the baseline of x86-64 or of 64-bit Arm, not
// with the file's flags.
#if defined(__GNUC__) && defined(__x86_64__)
#define VQVAE_FAST_PROBE __attribute__((noinline, target("no-sse3")))
#elif defined(__clang__) && defined(__aarch64__)  // older versions know no target("arch=armv8-a")
#define VQVAE_FAST_PROBE __attribute__((noinline, target("no-dotprod")))
#elif defined(__GNUC__) && defined(__aarch64__)
#define VQVAE_FAST_PROBE __attribute__((noinline, target("arch=armv8-a")))
#else
#define VQVAE_FAST_PROBE
#endif

namespace vqvae_fast {

// A PackedBook is the codebook as the kernels read it: panels of `width` codes, [panel][D][width],
// less `centre`, and scaled by a power of two so that the largest element is about 1.
template <class In>
struct PackedBook {
  using T = Compute<In>;
  ListedCodes<In> codes;  // not packed: candidates are measured against these
  int64_t width;
  int64_t num_panels;
  T* panels;             // [num_panels][D][width]
  T* half_norm;          // [num_panels][width]: -|e|^2/2; -inf for padding and non-finite codes
  const T* centre;       // [D], scaled
  T scale;               // power of two
  double max_norm;       // upper bound of |e| over the usable codes, scaled and centred
  int64_t first_usable;  // lowest index of a code without NaN or Inf; -1 if there is none
};

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

// A search without a packed book takes so many rows at a time.
constexpr int64_t kFewRows = 32;

// Engine::measure_all takes codes of at most so many dimensions.
constexpr int64_t kLongestMeasured = 32;

// A search writes its answers to a Nearest. Distances are float64 here and are rounded once, at the
// end. kNoCode means that no code could be chosen; it is larger than every index.
constexpr int64_t kNoCode = INT64_MAX;
// An unsettled row has this code while the codes of its neighbours are gathered.
constexpr int64_t kAnyCode = 0;
struct Nearest {
  int64_t* indices;
  double* distances;
};

// Packing a range of panels returns this contribution to the facts about the whole book.
struct PackedRange {
  double max_norm;
  int64_t first_usable;
};

// ResidualStages describes the stages of residual quantization to their backward pass.
template <class In>
struct ResidualStages {
  int64_t dim, count;
  const Codes<In>* books;       // [count]: the codes of the search
  const double* error_weights;  // [count]: how far the loss moves a row along z - q
  bool rotates;                 // rotate the gradient; otherwise it passes straight through
};

// An Engine holds the functions of one instruction set for one input type.
template <class In>
struct Engine {
  int64_t panel_width;
  int64_t tile_rows;
  // Returns the largest magnitude among the finite elements of codes [first, last).
  Compute<In> (*largest_magnitude)(const ListedCodes<In>& codes, int64_t first, int64_t last);
  // Fills panels [first, last) of `book`. All but max_norm and first_usable must be set.
  PackedRange (*pack)(const PackedBook<In>& book, int64_t first, int64_t last);
  // Returns the bytes of scratch that `search` needs for rows of length `dim` and that many panels.
  int64_t (*scratch_bytes)(int64_t dim, int64_t num_panels);
  // Finds the nearest code among panels [first_panel, last_panel) for rows [first_row, last_row).
  // Writes at [row - first_row]. Stops once the codes measured beyond the expected few exceed
  // `patience` times the rows so far. Returns the row before which all are done.
  int64_t (*search)(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
                    int64_t last_row, int64_t first_panel, int64_t last_panel, double patience,
                    void* scratch, Nearest out);
  // Finds the nearest code without a packed book, kFewRows rows at a time. The elements of a code
  // must be contiguous. Returns false if `search` must serve.
  int64_t (*few_rows_scratch_bytes)(int64_t dim);
  bool (*search_few_rows)(const Codes<In>& codes, const Rows<const In>& z, int64_t first_code,
                          int64_t last_code, void* scratch, Nearest out);
  // Finds the nearest among codes [first_code, last_code) for rows [first_row, last_row) by
  // measuring every code, of at most kLongestMeasured dimensions. Writes at [row - first_row].
  // Returns false if `search` must serve.
  bool (*measure_all)(const Codes<In>& codes, const Rows<const In>& z, int64_t first_row,
                      int64_t last_row, int64_t first_code, int64_t last_code, Nearest out);
  // Finds the k nearest codes among all panels for rows [first_row, last_row). A row becomes
  // unsettled if it measures more than `patience` codes before all are scored.
  int64_t (*top_scratch_bytes)(int64_t dim, int64_t k);
  void (*search_top)(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
                     int64_t last_row, double patience, void* scratch, const TopCodes& out);
  // Writes the sum of the listed rows to sum ([D, rounded up to a multiple of 8]). The `ahead` rows
  // listed behind them are prefetched, because the caller needs them next.
  void (*sum_rows)(const Rows<const In>& src, const int64_t* rows, int64_t count, int64_t ahead,
                   double* sum);
  // Writes map(row) of rows [first, last) to out ([rows][columns]); float32 and float64 only.
  int64_t (*multiply_scratch_bytes)(int64_t dim);
  void (*multiply)(const Rows<const In>& rows, int64_t first, int64_t last, const Affine<In>& map,
                   void* scratch, In* out);
  // Runs the backward pass of residual quantization for one row; float32 and float64 only.
  void (*residual_gradient)(const ResidualStages<In>& stages, const In* grad, const In* row,
                            const int64_t* indices, In* residual, double* sum);
};

// Engines holds the functions of one instruction set for all input types.
struct Engines {
  Engine<float> f32;
  Engine<double> f64;
  Engine<BFloat16> bf16;
  Engine<Half> f16;

  const Engine<float>& engine(const float*) const { return f32; }
  const Engine<double>& engine(const double*) const { return f64; }
  const Engine<BFloat16>& engine(const BFloat16*) const { return bf16; }
  const Engine<Half>& engine(const Half*) const { return f16; }
};

// Each file of isa/ defines one InstructionSet, under its own name in the namespace isa. It must be
// a constant: this machine may lack the instructions of the file, so none of its code may run at
// load.
struct InstructionSet {
  const char* name;        // the file's
  int priority;            // the machine uses the set of the highest priority that it has
  bool (*machine_has)();   // a VQVAE_FAST_PROBE
  const Engines* engines;  // its own, or those of another file
  const Int8Filters* filters = nullptr;  // null if there are none

  template <class In>
  const Engine<In>& engine() const {
    return engines->engine(static_cast<const In*>(nullptr));
  }
};

}  // namespace vqvae_fast
