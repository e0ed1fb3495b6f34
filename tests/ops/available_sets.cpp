// Prints the instruction sets that the processor has, best first.
#include <cstdio>

#include "../../csrc/cpu/dispatch.h"

int main() {
  for (const auto* set : vqvae_fast::available_instruction_sets()) std::printf("%s\n", set->name);
  return 0;
}
