// Asks the operating system for a feature of a 64-bit Arm processor.
#pragma once

// GCC 12 loses the file's flags if this header follows a probe.
#include <arm_neon.h>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif

#include "../contract.h"

namespace vqvae_fast {
namespace {

#if defined(__APPLE__)
VQVAE_FAST_PROBE inline bool machine_has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
VQVAE_FAST_PROBE inline bool machine_has_dotprod() {
  return machine_has_feature("hw.optional.arm.FEAT_DotProd");
}
VQVAE_FAST_PROBE inline bool machine_has_i8mm() {
  return machine_has_dotprod() && machine_has_feature("hw.optional.arm.FEAT_I8MM");
}
#else
VQVAE_FAST_PROBE inline bool machine_has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
VQVAE_FAST_PROBE inline bool machine_has_i8mm() {
  return machine_has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
}
#endif

}  // namespace
}  // namespace vqvae_fast
