// Chooses the instruction set that serves this machine.
#pragma once

#include <string>
#include <vector>

#include "contract.h"

namespace vqvae_fast {

// Returns the instruction sets of this build that this machine has, best first.
std::vector<const InstructionSet*> available_instruction_sets();

// Returns the instruction set in use: the best, or the one that was selected last.
const InstructionSet& instruction_set();

// Selects an instruction set by name. With "-float32" behind its name it serves without its integer
// filter, so that both forms can be compared. If the machine lacks the set, throws
// std::invalid_argument with the names of those that it has.
void select_instruction_set(const std::string& name);

}  // namespace vqvae_fast
