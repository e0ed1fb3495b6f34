// The instructions of Intel's matrix unit (csrc/cpu/isa/amx_tiles.h) in plain C++, so that the
// kernel over them can be tested on processors without that unit. The program ends where the
// processor would raise an exception: if a tile has no shape in this thread, or if the shapes of
// the tiles of a product do not fit each other.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/cpu/isa/amx_tiles.h"

namespace vqvae_fast {
namespace {

struct StandInTiles {
  struct State {
    TileShapes shapes;
    unsigned char tiles[8][16][64];
  };
  static State& state() {
    static thread_local State of_thread{};
    return of_thread;
  }

  static void configure(const TileShapes& shapes) {
    demand(shapes.palette <= 1 && shapes.start_row == 0, "a palette of 0 or 1, from row 0");
    for (int i = 0; i < 14; ++i) demand(shapes.reserved[i] == 0, "zeros in the reserved bytes");
    for (int i = 0; i < 16; ++i) {
      const int rows = shapes.rows[i], bytes = shapes.row_bytes[i];
      demand(rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0), "at most 16 x 64 bytes");
      demand(rows == 0 || (i < 8 && shapes.palette == 1), "shapes of tiles 0 to 7");
    }
    memset(&state(), 0, sizeof(State));
    state().shapes = shapes;
  }
  static void read_configuration(TileShapes& shapes) { shapes = state().shapes; }
  static void release() { memset(&state(), 0, sizeof(State)); }

  template <int kTile>
  static void load(const int32_t* first, int64_t stride) {
    demand(rows(kTile) > 0, "a tile with a shape");
    memset(state().tiles[kTile], 0, sizeof state().tiles[kTile]);
    for (int r = 0; r < rows(kTile); ++r) {
      memcpy(state().tiles[kTile][r], reinterpret_cast<const char*>(first) + r * stride,
             bytes(kTile));
    }
  }
  template <int kTile>
  static void store(int32_t* first, int64_t stride) {
    demand(rows(kTile) > 0, "a tile with a shape");
    for (int r = 0; r < rows(kTile); ++r) {
      memcpy(reinterpret_cast<char*>(first) + r * stride, state().tiles[kTile][r], bytes(kTile));
    }
  }
  template <int kSum, int kRows, int kCodes>
  static void add_products() {
    static_assert(kSum != kRows && kSum != kCodes && kRows != kCodes);
    demand(rows(kSum) > 0 && rows(kRows) > 0 && rows(kCodes) > 0, "tiles with shapes");
    demand(rows(kSum) == rows(kRows) && bytes(kSum) == bytes(kCodes) &&
               bytes(kRows) == 4 * rows(kCodes) && bytes(kSum) % 4 == 0,
           "shapes that fit each other");
    for (int i = 0; i < rows(kSum); ++i) {
      uint32_t sums[16];  // they wrap around
      memcpy(sums, state().tiles[kSum][i], sizeof sums);
      for (int w = 0; w < rows(kCodes); ++w) {
        for (int j = 0; j < bytes(kSum) / 4; ++j) {
          for (int part = 0; part < 4; ++part) {
            sums[j] += uint32_t(int{signed_byte(kRows, i, 4 * w + part)} *
                                int{signed_byte(kCodes, w, 4 * j + part)});
          }
        }
      }
      memcpy(state().tiles[kSum][i], sums, sizeof sums);
    }
  }

 private:
  static int rows(int tile) { return state().shapes.rows[tile]; }
  static int bytes(int tile) { return state().shapes.row_bytes[tile]; }
  static signed char signed_byte(int tile, int row, int at) {
    return static_cast<signed char>(state().tiles[tile][row][at]);
  }
  static void demand(bool met, const char* expected) {
    if (met) return;
    fprintf(stderr, "the matrix unit's stand-in expected %s\n", expected);
    abort();
  }
};

}  // namespace
}  // namespace vqvae_fast
