// This file defines the instructions of Intel's matrix unit (AMX) and whether a process may use
// them. A tile is a register of up to 16 rows of up to 64 bytes; there are eight.
#pragma once

#include <cpuid.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../../rows.h"
#include "../contract.h"

namespace vqvae_fast {
namespace {

// TileShapes is the operand of LDTILECFG: the size of each tile. A palette of 0 says that the tiles
// have no sizes and must not be used.
struct alignas(64) TileShapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

// AmxTiles has one function for each instruction. They are written in assembler because the
// compiler's own take the number of a tile as a literal, and because some compilers move a tile's
// load before the stores of what it reads.
struct AmxTiles {
  static void configure(const TileShapes& shapes) {
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
  }
  static void read_configuration(TileShapes& shapes) {
    __asm__ volatile("sttilecfg %0" : "=m"(shapes));
  }
  static void release() { __asm__ volatile("tilerelease"); }

  // Loads a tile whose rows lie `stride` bytes apart.
  template <int kTile>
  VQVAE_FAST_INLINE static void load(const int32_t* first, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(first), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  VQVAE_FAST_INLINE static void store(int32_t* first, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(first), "r"(stride), "i"(kTile)
                     : "memory");
  }
  // Adds to sum[i][j] the products of the signed bytes of row i of kRows and of column j of kCodes.
  // Row w of kCodes holds bytes 4 w to 4 w + 3 of every column.
  template <int kSum, int kRows, int kCodes>
  VQVAE_FAST_INLINE static void add_products() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kRows), "i"(kCodes));
  }
};

// Returns whether the processor multiplies tiles of bytes and the system keeps their contents when
// it switches threads.
VQVAE_FAST_PROBE inline bool processor_has_tiles() {
#ifdef VQVAE_FAST_TEST_PROCESSOR_HAS_TILES
  return true;
#else
  constexpr uint32_t kSystemSavesState = 1u << 27;         // OSXSAVE: XGETBV may be used
  constexpr uint32_t kTilesOfBytes = 1u << 24 | 1u << 25;  // AMX-TILE and AMX-INT8
  uint32_t a, b, c, d;
  __cpuid(0, a, b, c, d);
  if (a < 7) return false;
  __cpuid(1, a, b, c, d);
  if ((c & kSystemSavesState) == 0) return false;
  __cpuid_count(7, 0, a, b, c, d);
  if ((d & kTilesOfBytes) != kTilesOfBytes) return false;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t kTileState = 1u << 17 | 1u << 18;  // XTILECFG and XTILEDATA
  return (low & kTileState) == kTileState;
#endif
}

// Asks the system for tiles, for all threads of this process and for those that it forks. Linux
// grants them on request only; a kernel, a container or a sandbox may refuse.
VQVAE_FAST_PROBE inline bool system_grants_tiles() {
#if defined(__linux__)
  constexpr long kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
}  // namespace vqvae_fast
