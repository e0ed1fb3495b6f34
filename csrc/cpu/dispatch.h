// Chooses the instruction set that serves this machine.
#pragma once

#include <string>
#include <vector>

#include "contract.h"

namespace vqvae_fast {

// The instruction sets of this build that this machine has, best first.
std::vector<const InstructionSet*> available_instruction_sets();

// The one in use: the best, or the one last selected.
const InstructionSet& instruction_set();

// Selects by name; throws std::invalid_argument with what there is when the machine lacks it.
void select_instruction_set(const std::string& name);

}  // namespace vqvae_fast
