#include "kernels/attention.h"

#include <algorithm>
#include <vector>

#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

static_assert(cpu::kMaxHeadDim == kMaxHeadDim);
static_assert(cpu::kAttentionBlock == limits::kKvBlockTokens);
static_assert(cpu::kMaxAttentionRows >= kMaxQueryGroup);

// The softmax of a row is summed apart over each stretch of this many positions, and the parts are
// merged in order: always, so that a long context may be spread over threads or not.
constexpr int64_t kSegmentPositions = 1024;
static_assert(kSegmentPositions % cpu::kAttentionChunk == 0);

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Some tokens of one sequence; each KV head of a tile is one piece of work.
struct Tile {
  const AttentionSequence* sequence = nullptr;
  int64_t first_token = 0;
  int num_tokens = 0;

  int64_t end_position() const { return sequence->first_position + first_token + num_tokens; }
  int64_t num_segments() const {
    return RoundUp(end_position(), kSegmentPositions) / kSegmentPositions;
  }
};

// The tiles of all sequences, longest context first: the last to finish is then a short one.
std::vector<Tile> MakeTiles(const AttentionArgs& args, int group) {
  const int64_t tile_tokens = std::max(1, cpu::kMaxAttentionRows / group);
  std::vector<Tile> tiles;
  for (const AttentionSequence& sequence : args.sequences) {
    for (int64_t token = 0; token < sequence.num_tokens; token += tile_tokens) {
      tiles.push_back(
          {.sequence = &sequence,
           .first_token = token,
           .num_tokens = static_cast<int>(std::min(tile_tokens, sequence.num_tokens - token))});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(), [](const Tile& a, const Tile& b) {
    return a.end_position() > b.end_position();
  });
  return tiles;
}

class AttentionRun {
 public:
  AttentionRun(const AttentionArgs& args, const Device& device)
      : args_(args),
        device_(device),
        ops_(cpu::OpsFor(device.isa)),
        num_kv_heads_(args.kv_cache.num_key_value_heads),
        group_(args.num_attention_heads / num_kv_heads_),
        mix_stride_(RoundUp(args.kv_cache.head_dim, 16)),
        tiles_(MakeTiles(args, group_)) {}

  void Run() const {
    const int64_t num_items = static_cast<int64_t>(tiles_.size()) * num_kv_heads_;
    const int num_threads = device_.pool == nullptr ? 1 : device_.pool->num_threads();
    if (!tiles_.empty() && num_items < 4 * num_threads && tiles_[0].num_segments() > 1 &&
        num_threads > 1) {
      return RunSegmentsApart(num_items);
    }
    cpu::ForRange(device_, num_items, Nanoseconds(), [&](int64_t begin, int64_t end) {
      alignas(64) float total_floats[kStateFloats], part_floats[kStateFloats];
      const cpu::AttentionState total = State(total_floats), part = State(part_floats);
      for (int64_t i = begin; i < end; ++i) {
        const Tile& tile = tiles_[i / num_kv_heads_];
        const int kv_head = static_cast<int>(i % num_kv_heads_);
        for (int64_t s = 0; s < tile.num_segments(); ++s) {
          RunSegment(tile, kv_head, s, s == 0 ? total : part);
          if (s > 0) ops_.attention_merge(part, NumRows(tile), total);
        }
        Finish(tile, kv_head, total);
      }
    });
  }

 private:
  // A state lies in one array: mix, then max, then sum.
  static constexpr int kStateFloats = cpu::kMaxAttentionRows * (kMaxHeadDim + 2);

  int NumRows(const Tile& tile) const { return tile.num_tokens * group_; }

  cpu::AttentionState State(float* floats, int num_rows = cpu::kMaxAttentionRows) const {
    float* const max = floats + num_rows * mix_stride_;
    return {.max = max, .sum = max + num_rows, .mix = floats, .mix_stride = mix_stride_};
  }

  // Few items and a long context: the segments are the items; merged below in their order.
  void RunSegmentsApart(int64_t num_items) const {
    const int64_t num_segments = tiles_[0].num_segments();  // the most of all
    int max_rows = 0;
    for (const Tile& tile : tiles_) max_rows = std::max(max_rows, NumRows(tile));
    const int64_t floats = RoundUp(max_rows * (mix_stride_ + 2), 16);
    std::vector<float> storage(num_items * num_segments * floats + 16);
    float* const states = reinterpret_cast<float*>(
        RoundUp(static_cast<int64_t>(reinterpret_cast<intptr_t>(storage.data())), 64));
    cpu::ForRange(device_, num_items * num_segments, Nanoseconds(),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t item = i / num_segments, s = i % num_segments;
                      const Tile& tile = tiles_[item / num_kv_heads_];
                      if (s >= tile.num_segments()) continue;
                      RunSegment(tile, static_cast<int>(item % num_kv_heads_), s,
                                 State(states + i * floats, max_rows));
                    }
                  });
    for (int64_t item = 0; item < num_items; ++item) {
      const Tile& tile = tiles_[item / num_kv_heads_];
      float* const first = states + item * num_segments * floats;
      const cpu::AttentionState total = State(first, max_rows);
      for (int64_t s = 1; s < tile.num_segments(); ++s) {
        ops_.attention_merge(State(first + s * floats, max_rows), NumRows(tile), total);
      }
      Finish(tile, static_cast<int>(item % num_kv_heads_), total);
    }
  }

  void RunSegment(const Tile& tile, int kv_head, int64_t segment,
                  const cpu::AttentionState& state) const {
    const KvCacheLayer& cache = args_.kv_cache;
    const int64_t head_values = int64_t{cache.block_tokens} * cache.head_dim;
    ops_.attention_segment({.q = args_.q + RowOffset(tile, 0, kv_head),
                            .q_stride = int64_t{args_.num_attention_heads} * cache.head_dim,
                            .num_tokens = tile.num_tokens,
                            .group = group_,
                            .first_position = tile.sequence->first_position + tile.first_token,
                            .begin = segment * kSegmentPositions,
                            .end = std::min((segment + 1) * kSegmentPositions, tile.end_position()),
                            .block_table = tile.sequence->block_table,
                            .k = cache.k + kv_head * head_values,
                            .v = cache.v + kv_head * head_values,
                            .block_stride = num_kv_heads_ * head_values,
                            .head_dim = cache.head_dim,
                            .scale = args_.scale,
                            .state = state});
  }

  void Finish(const Tile& tile, int kv_head, const cpu::AttentionState& state) const {
    for (int row = 0; row < NumRows(tile); ++row) {
      ops_.attention_finish(state, row, args_.kv_cache.head_dim,
                            args_.output + RowOffset(tile, row / group_, kv_head) +
                                int64_t{row % group_} * args_.kv_cache.head_dim);
    }
  }

  // Of the first query head that reads kv_head, in q and output.
  int64_t RowOffset(const Tile& tile, int token, int kv_head) const {
    const int64_t row = tile.sequence->first_row + tile.first_token + token;
    return (row * args_.num_attention_heads + int64_t{kv_head} * group_) * args_.kv_cache.head_dim;
  }

  // On one core, at 20 GFLOP/s: a decode row waits for its keys and values.
  double Nanoseconds() const {
    double positions = 0;
    for (const Tile& tile : tiles_) {
      positions += static_cast<double>(tile.num_tokens) * static_cast<double>(tile.end_position());
    }
    return positions * 4 * args_.num_attention_heads * args_.kv_cache.head_dim / 20;
  }

  const AttentionArgs& args_;
  const Device& device_;
  const cpu::CpuOps& ops_;
  const int64_t num_kv_heads_;
  const int group_;
  const int64_t mix_stride_;
  const std::vector<Tile> tiles_;
};

}  // namespace

absl::Status Attention(const AttentionArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  AttentionRun(args, device).Run();
  return absl::OkStatus();
}

}  // namespace conclave
