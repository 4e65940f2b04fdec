#pragma once

#include <cstdint>

#include "common/bfloat16.h"
#include "kernels/quantize.h"

// The inner loops that exist once per instruction set. The files that implement them are compiled
// with that set's flags, so this header declares plain structs only: an inline function defined
// here could be emitted with AVX-512 in it and then be linked into code that runs anywhere.
namespace conclave::cpu {

// Rows and panels one LinearTile may have; each instruction set has its own best shape within.
inline constexpr int kMaxTileRows = 6;
inline constexpr int kMaxTilePanels = 4;
inline constexpr int kPanelWidth = 16;

inline constexpr int kSumsStride = kMaxTilePanels * kPanelWidth;  // floats from row to row of sums

// sums[r][16 * p + lane] = sum over pairs of rows[r][2i] * panel p's [i][lane][0], then of
// rows[r][2i + 1] * [i][lane][1]: one chain of additions per sum, so that the bits depend on
// nothing but the row and the weights.
struct LinearTile {
  const BFloat16* const* rows = nullptr;    // [num_rows] to [in_features]
  const BFloat16* const* panels = nullptr;  // [num_panels] to pair_begin, see PackedMatrix
  int num_rows = 0;                         // 1 .. CpuOps::tile_rows[num_panels]
  int num_panels = 0;                       // 1, 2 or 4
  int64_t in_features = 0;
  int64_t pair_begin = 0;  // inputs 2 * pair_begin up to 2 * pair_end
  int64_t pair_end = 0;
  bool resume = false;    // go on from `sums` instead of from zero
  float* sums = nullptr;  // [num_rows][kSumsStride], 64-byte aligned
};

// sums[r][16 * p + lane] += over the groups, in order: (products of the group) * weight scale * row
// scale, every step rounded to FP32; see PackedMatrix for the blocks.
struct Int8Tile {
  const int8_t* const* rows = nullptr;       // [num_rows] to codes as quantize_row writes them
  const float* const* row_scales = nullptr;  // [num_rows] to [num_groups]
  const uint8_t* const* panels = nullptr;    // [num_panels] to num_groups int8 blocks
  int num_rows = 0;                          // 1 .. CpuOps::int8_tile_rows[num_panels]
  int num_panels = 0;                        // 1, 2 or 4
  int64_t num_groups = 0;
  int64_t group_size = 0;  // a multiple of 64
  bool resume = false;     // go on from `sums` instead of from zero
  float* sums = nullptr;   // [num_rows][kSumsStride], 64-byte aligned
};

// A step of AMX is 64 bytes of a row: 32 BF16 or 64 codes.
inline constexpr int kAmxStepBytes = 64;
inline constexpr int kAmxRows = 16;  // of a tile

// The same sums as LinearTile or Int8Tile, from rows in tiles of 16: tile t is
// [steps of the row][height][64 bytes], zero-padded in K. The last tile may be lower than 16; what
// lies behind it may be read, but is not used.
struct AmxBlock {
  const uint8_t* rows = nullptr;           // the first tile
  int64_t row_bytes = 0;                   // of one row; 16 times that is a tile
  const uint8_t* const* panels = nullptr;  // [num_panels] to step_begin; int8: to a block's start
  int num_rows = 0;
  int num_panels = 0;  // 1 .. kMaxTilePanels
  int64_t step_begin = 0, step_end = 0;
  // From a last panel to the one that this thread will want after it, to fetch ahead; 0: the panels
  // are in the cache.
  int64_t next_bytes = 0;
  int last_lines = 16;                       // of the panels that step_end - 1 has
  const float* const* row_scales = nullptr;  // int8: [num_rows] to the first group
  int64_t group_steps = 0;                   // int8: steps of a group
  bool resume = false;
  float* sums = nullptr;  // [num_rows rounded up to 16][kSumsStride], 64-byte aligned
};

// Query rows (token, head) of one tile of one KV head.
inline constexpr int kMaxAttentionRows = 32;
inline constexpr int kAttentionBlock = 16;  // tokens of a KV block
inline constexpr int kAttentionChunk = 64;  // positions of one step of the online softmax
inline constexpr int kMaxHeadDim = 256;

// Online softmax of rows over some positions.
struct AttentionState {
  float* max = nullptr;    // [rows]; -infinity: no position was visible
  float* sum = nullptr;    // [rows]
  float* mix = nullptr;    // [rows][mix_stride], 64-byte aligned: sum of weight * v
  int64_t mix_stride = 0;  // head_dim rounded up to 16
};

// Rows r = token * group + head against the keys at positions [begin, end).
struct AttentionSegment {
  const BFloat16* q = nullptr;  // first token, first head of the group
  int64_t q_stride = 0;         // values from token to token
  int num_tokens = 0;
  int group = 0;               // query heads per KV head
  int64_t first_position = 0;  // of the first token
  int64_t begin = 0;           // on a chunk's edge
  int64_t end = 0;
  const int32_t* block_table = nullptr;
  const BFloat16* k = nullptr;  // this KV head in block 0, laid out as KvCacheLayer says
  const BFloat16* v = nullptr;
  int64_t block_stride = 0;  // values from block to block
  int head_dim = 0;
  float scale = 0;
  AttentionState state;  // out
};

struct CpuOps {
  int tile_rows[kMaxTilePanels + 1];  // most rows of a LinearTile by its panels; 0: no such shape
  int main_panels;                    // panels of the shape for many rows

  void (*linear_tile)(const LinearTile& tile);
  int int8_tile_rows[kMaxTilePanels + 1];  // as tile_rows
  int int8_main_panels;
  void (*int8_tile)(const Int8Tile& tile);
  void (*quantize_int8)(const BFloat16* values, int64_t size, int8_t* codes, float* scale);
  // quantize_int8 of each group of a row; the last one is padded with code 0. Codes are stored as
  // int8_tile wants them: some instruction sets add 128.
  void (*quantize_row)(const BFloat16* row, int64_t size, int64_t group_size, int8_t* codes,
                       float* scales);
  // One block of FP8 to 64 lines of BF16; of int4 to one of int8, scales included.
  void (*widen_fp8)(const uint8_t* block, BFloat16* lines);
  void (*widen_int4)(const uint8_t* block, uint8_t* int8_block);
  // Null but on AMX, where they do what linear_tile and int8_tile do elsewhere.
  void (*amx_bf16)(const AmxBlock& block) = nullptr;
  void (*amx_int8)(const AmxBlock& block) = nullptr;
  // Null but with AVX-512. Writes whole lines past the caches: size is a multiple of 16, `output`
  // is 64-byte aligned. After the last one, stream_end makes them visible to other threads.
  void (*stream_row)(const float* sums, int64_t size, float* output) = nullptr;
  void (*stream_end)() = nullptr;
  void (*rms_norm)(const float* input, const float* weight, int64_t size, float eps,
                   BFloat16* output);
  // RMSNorm of a head, then rotation; cos and sin are [head_dim / 2].
  void (*norm_rope)(const float* head, const float* weight, const float* cos, const float* sin,
                    int head_dim, float eps, BFloat16* output);
  void (*round)(const float* input, int64_t size, BFloat16* output);
  void (*swiglu)(const float* gate, const float* up, int64_t size, BFloat16* output);
  // residual += sum over i of weights[i] * rows[i].
  void (*moe_combine)(const BFloat16* const* rows, const float* weights, int num_rows, int64_t size,
                      float* residual);
  void (*attention_segment)(const AttentionSegment& segment);
  // Adds the positions of `from`, which come after those of `into`.
  void (*attention_merge)(const AttentionState& from, int num_rows, const AttentionState& into);
  void (*attention_finish)(const AttentionState& state, int row, int head_dim, BFloat16* output);
};

extern const float* const kE4M3Values;  // [256]: of every E4M3 code

extern const CpuOps kPlainOps;
#if defined(__x86_64__)
extern const CpuOps kAvx2Ops;
extern const CpuOps kAvx512Ops;
extern const CpuOps kAvx512Bf16Ops;
extern const CpuOps kAmxOps;
#endif

}  // namespace conclave::cpu
