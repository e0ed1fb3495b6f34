#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(VQVAE_FAST_X86) && defined(_MSC_VER)
#include <intrin.h>
#endif

namespace vqvae_fast {
namespace {

#if defined(VQVAE_FAST_X86) && defined(_MSC_VER)
// Both need the operating system to save the wide registers (XCR0) beside the processor's word.
bool has(int leaf7_ebx_bits, unsigned long long xcr0_bits) {
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  const bool xsave = leaf1[2] & (1 << 27), fma = leaf1[2] & (1 << 12);
  if (!xsave || !fma || (_xgetbv(0) & xcr0_bits) != xcr0_bits) return false;
  __cpuidex(leaf7, 7, 0);
  return (leaf7[1] & leaf7_ebx_bits) == leaf7_ebx_bits;
}
bool has_avx512() { return has((1 << 16) | (1 << 17) | (1 << 30) | int(1u << 31), 0xe6); }
bool has_vnni() {
  int leaf7[4];
  __cpuidex(leaf7, 7, 0);
  return has_avx512() && leaf7[2] & (1 << 11);
}
bool has_avx2() { return has(1 << 5, 0x6); }
#elif defined(VQVAE_FAST_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

std::atomic<const InstructionSet*> selected{nullptr};

}  // namespace

std::vector<const InstructionSet*> available_instruction_sets() {
  std::vector<const InstructionSet*> sets;
#ifdef VQVAE_FAST_X86
  if (has_vnni()) sets.push_back(&kAvx512Vnni);
  if (has_avx512()) sets.push_back(&kAvx512);
  if (has_avx2()) sets.push_back(&kAvx2);
#endif
  sets.push_back(&kPortable);
  return sets;
}

const InstructionSet& instruction_set() {
  const InstructionSet* set = selected.load(std::memory_order_acquire);
  if (set == nullptr) {
    set = available_instruction_sets().front();
    selected.store(set, std::memory_order_release);
  }
  return *set;
}

void select_instruction_set(const std::string& name) {
  std::string available;
  for (const InstructionSet* set : available_instruction_sets()) {
    if (name == set->name) {
      selected.store(set, std::memory_order_release);
      return;
    }
    available += (available.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("the CPU instruction set must be one that this machine has (" +
                              available + "), got '" + name + "'");
}

}  // namespace vqvae_fast
