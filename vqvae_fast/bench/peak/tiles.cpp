// Runs products of tiles on Intel's matrix unit (AMX), in its registers (x86-64).
//
// kernels.py defines the instruction (INSTRUCTION) and the processor's required features
// (SUPPORTED). A product has 16 x 16 sums, each of the products of 64 bytes.

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

// A product takes 52 clocks and another may begin every 16, so this many sums cover its latency.
constexpr int kSums = 4;

struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};

}  // namespace

extern "C" {

// Linux grants a process the registers on request.
int loop_is_supported() {
  constexpr long kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return SUPPORTED && syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
}

// One step is a product on each of the tiles of sums.
std::int64_t loop_sums() { return kSums; }

void loop(std::int64_t steps, char*, std::int64_t) {
  const Configuration configuration;
  __asm__ volatile("ldtilecfg %0; tilezero %%tmm4; tilezero %%tmm5" : : "m"(configuration));
  for (std::int64_t s = 0; s < steps; ++s) {
    __asm__ volatile(INSTRUCTION " %tmm5, %tmm4, %tmm0;" INSTRUCTION
                                 " %tmm5, %tmm4, %tmm1;" INSTRUCTION
                                 " %tmm5, %tmm4, %tmm2;" INSTRUCTION " %tmm5, %tmm4, %tmm3");
  }
  __asm__ volatile("tilerelease");
}
}
