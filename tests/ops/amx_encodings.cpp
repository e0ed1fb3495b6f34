// The instructions of csrc/cpu/isa/amx_tiles.h beside the compiler's own for the same operands.
// test_amx.py compares what the assembler made of both, because tests without the matrix unit run
// neither.
#include <immintrin.h>

#include "../../csrc/cpu/isa/amx_tiles.h"

using vqvae_fast::AmxTiles;
using vqvae_fast::TileShapes;

extern "C" {

void ours_load(const int32_t* at, int64_t stride) { AmxTiles::load<6>(at, stride); }
void theirs_load(const int32_t* at, int64_t stride) { _tile_loadd(6, at, stride); }

void ours_store(int32_t* at, int64_t stride) { AmxTiles::store<3>(at, stride); }
void theirs_store(int32_t* at, int64_t stride) { _tile_stored(3, at, stride); }

// The sums, the rows, and the codes.
void ours_add() { AmxTiles::add_products<1, 4, 7>(); }
void theirs_add() { _tile_dpbssd(1, 4, 7); }

void ours_configure(const TileShapes* shapes) { AmxTiles::configure(*shapes); }
void theirs_configure(const TileShapes* shapes) { _tile_loadconfig(shapes); }

void ours_read(TileShapes* shapes) { AmxTiles::read_configuration(*shapes); }
void theirs_read(TileShapes* shapes) { _tile_storeconfig(shapes); }

void ours_release() { AmxTiles::release(); }
void theirs_release() { _tile_release(); }
}
