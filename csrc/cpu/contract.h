// What the CPU kernels and their callers agree on. Raw pointers only: no torch headers here.
//
// The search maximises score(z, e) = z.e - |e|^2/2, which orders codes as the distance does, in
// fast arithmetic whose error is bounded; whatever the bound cannot rule out is measured by
// sum((z - e)^2) in float64. So every instruction set returns the same bits. docs/exactness.md
// derives the bound.
#pragma once

#include <stdint.h>

#include "../rows.h"
#include "codes/listed_codes.h"
#include "int8_filter/book.h"

// Loops over a tile must be unrolled before the compiler decides what lives in registers: left to
// itself, GCC unrolls them too late and sends every accumulator through the stack.
#if defined(__GNUC__)
#define VQVAE_FAST_UNROLL _Pragma("GCC unroll 16")
// A function of its own: for a loop that needs all registers, and for what is rare and must not
// take any from the loop beside it.
#define VQVAE_FAST_ALONE __attribute__((noinline))
#else
#define VQVAE_FAST_UNROLL
#define VQVAE_FAST_ALONE
#endif

// Marks a function that asks the processor for its features. It also runs on machines that lack the
// instruction set of its file, so it is compiled for the x86-64 baseline, not with the file's
// flags.
#if defined(__GNUC__) && defined(__x86_64__)
#define VQVAE_FAST_PROBE __attribute__((noinline, target("no-sse3")))
#else
#define VQVAE_FAST_PROBE
#endif

namespace vqvae_fast {

// The codebook as the kernels read it: panels of `width` codes, [panel][D][width], shifted to
// `centre` and scaled by a power of two so that its largest element is about 1.
template <class In>
struct PackedBook {
  using T = Compute<In>;
  ListedCodes<In> codes;  // as they are: what candidates are measured against
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

// For at most so many rows, reading the codebook as it is costs less than packing it.
constexpr int64_t kFewRows = 8;

// Where one search writes. Distances are float64 here and rounded once, at the end. kNoCode stands
// where no code could be chosen; it loses against every index.
constexpr int64_t kNoCode = INT64_MAX;
// Stands for the code of an unsettled row while the codes of its neighbours are gathered.
constexpr int64_t kAnyCode = 0;
struct Nearest {
  int64_t* indices;
  double* distances;
};

// What a range of panels contributes to the whole book when it is packed.
struct PackedRange {
  double max_norm;
  int64_t first_usable;
};

// The stages of residual quantization, as their backward pass sees them.
template <class In>
struct ResidualStages {
  int64_t dim, count;
  const Codes<In>* books;       // [count]: the codes as they were in the search
  const double* error_weights;  // [count]: how far the loss moves a row along z - q
  bool rotates;                 // the gradient is rotated, else it passes straight through
};

// One input type's functions in one instruction set.
template <class In>
struct Engine {
  int64_t panel_width;
  int64_t tile_rows;
  // The largest magnitude among the elements of codes [first, last) that are finite.
  Compute<In> (*largest_magnitude)(const ListedCodes<In>& codes, int64_t first, int64_t last);
  // Fills panels [first, last) of `book`. All but max_norm and first_usable must be set.
  PackedRange (*pack)(const PackedBook<In>& book, int64_t first, int64_t last);
  // Bytes of scratch that `search` needs for rows of length `dim` and that many panels.
  int64_t (*scratch_bytes)(int64_t dim, int64_t num_panels);
  // Nearest code among panels [first_panel, last_panel) for rows [first_row, last_row). Writes
  // at [row - first_row]. Stops where the codes measured beside the expected few exceed `patience`
  // for each row so far; returns the row before which all are done.
  int64_t (*search)(const PackedBook<In>& book, const Rows<const In>& z, int64_t first_row,
                    int64_t last_row, int64_t first_panel, int64_t last_panel, double patience,
                    void* scratch, Nearest out);
  // Nearest code for a few rows without a packed book, for codes whose elements are neighbours; the
  // scratch is for that many codes. Returns false if `search` must serve.
  int64_t (*few_rows_scratch_bytes)(int64_t dim, int64_t num_codes);
  bool (*search_few_rows)(const Codes<In>& codes, const Rows<const In>& z, int64_t first_code,
                          int64_t last_code, void* scratch, Nearest out);
  // The sum of the listed rows, to sum ([D, rounded up to a multiple of 8]). The `ahead` rows that
  // are listed behind them will be asked for next.
  void (*sum_rows)(const Rows<const In>& src, const int64_t* rows, int64_t count, int64_t ahead,
                   double* sum);
  // The backward pass of residual quantization of one row; float32 and float64 only.
  void (*residual_gradient)(const ResidualStages<In>& stages, const In* grad, const In* row,
                            const int64_t* indices, In* residual, double* sum);
};

// The functions of all input types in one instruction set.
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

// What a file of isa/ defines, under its own name in the namespace isa. It must be a constant:
// its file is compiled for machines that may not be there, so no code of it may run at load.
struct InstructionSet {
  const char* name;        // the file's
  int priority;            // of those that the machine has, the one with the highest serves
  bool (*machine_has)();   // a VQVAE_FAST_PROBE
  const Engines* engines;  // its own, or those of another file
  const Int8Filters* filters = nullptr;  // null where there are none

  template <class In>
  const Engine<In>& engine() const {
    return engines->engine(static_cast<const In*>(nullptr));
  }
};

}  // namespace vqvae_fast
