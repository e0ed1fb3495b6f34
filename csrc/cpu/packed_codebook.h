// A packed codebook is a codebook in the form that searches read, made once and kept in one piece
// of memory. Only the instruction set that packed it can read it. A search also reads the codes
// themselves, because it measures distances from them.
#pragma once

#include <stdint.h>

#include <optional>
#include <vector>

#include "contract.h"
#include "parallel.h"

namespace vqvae_fast {

// The memory of a packed codebook. No bytes mean that the codebook is not packed.
struct PackedBytes {
  const void* data = nullptr;
  int64_t size = 0;
};

// PackedForms points into the memory of a packed codebook. At most one of the forms is there.
template <class In>
struct PackedForms {
  std::optional<Int8Book<In>> integers;
  std::optional<PackedBook<In>> floats;
};

// Packs a codebook for the instruction set in use: in integers where they serve, else in the
// arithmetic of the search. If no code is finite, or all are equal, the memory holds neither form.
template <class In>
std::vector<char> pack_for_searches(const Codes<In>& codes, const ThreadPool& pool);

// Returns the forms in that memory. There are none if another instruction set packed it. Throws
// std::invalid_argument if it does not belong to such a codebook.
template <class In>
PackedForms<In> forms_in(const PackedBytes& packed, const Codes<In>& codes,
                         const InstructionSet& set);

}  // namespace vqvae_fast
