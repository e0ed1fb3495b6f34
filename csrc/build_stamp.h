// The version and the contract of this build, from vqvae_fast/_version.py, and the torch that it
// was compiled against: setup.py defines all three.
#pragma once

#define VQVAE_FAST_STRING_OF(...) #__VA_ARGS__
#define VQVAE_FAST_STRING(...) VQVAE_FAST_STRING_OF(__VA_ARGS__)

namespace vqvae_fast {

// Python searches the library's file for these bytes before it loads it (vqvae_fast/_native.py).
constexpr char kBuildStamp[] =
    "vqvae_fast build: version " VQVAE_FAST_STRING(VQVAE_FAST_VERSION) ", contract "
    VQVAE_FAST_STRING(VQVAE_FAST_CONTRACT) ", torch " VQVAE_FAST_STRING(VQVAE_FAST_TORCH);
constexpr const char* kBuiltFor = kBuildStamp + sizeof("vqvae_fast build: ") - 1;

}  // namespace vqvae_fast
