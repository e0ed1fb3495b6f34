#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <stdexcept>

namespace vqvae_fast {

// setup.py lists the files of isa/ that are built for this kind of machine: portable,avx2,...
namespace isa {
extern const InstructionSet VQVAE_FAST_ISAS;
}

namespace {

constexpr const char* kWithoutFilter = "-float32";

template <class... Sets>
std::vector<const InstructionSet*> those_of_this_machine(const Sets&... sets) {
  std::vector<const InstructionSet*> available;
  for (const InstructionSet* set : {&sets...}) {
    if (set->machine_has()) available.push_back(set);
  }
  std::sort(available.begin(), available.end(),
            [](const auto* a, const auto* b) { return a->priority > b->priority; });
  return available;
}

std::atomic<const InstructionSet*> selected{nullptr};

// Returns a set without its integer filter. Its name differs, so that a codebook that was packed
// for one of the two is not read by the other.
const InstructionSet* without_filter(const InstructionSet& set) {
  static std::mutex mutex;
  static std::map<std::string, InstructionSet> made;
  const std::lock_guard lock(mutex);
  const auto entry = made.try_emplace(std::string(set.name) + kWithoutFilter, set).first;
  entry->second.name = entry->first.c_str();
  entry->second.filters = nullptr;
  return &entry->second;
}

}  // namespace

std::vector<const InstructionSet*> available_instruction_sets() {
  using namespace isa;
  return those_of_this_machine(VQVAE_FAST_ISAS);
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
    if (name == std::string(set->name) + kWithoutFilter) {
      selected.store(without_filter(*set), std::memory_order_release);
      return;
    }
    available += (available.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::invalid_argument("the CPU instruction set must be one that this machine has (" +
                              available + "), got '" + name + "'");
}

}  // namespace vqvae_fast
