#include "worker/cuda/cuda_buffers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "worker/rope.h"

namespace conclave {
namespace {

// Logits of so many rows are computed and copied at a time: 64 x 151,936 floats are 39 MB.
constexpr int64_t kLogitRows = 64;

struct Sizes {
  Sizes(const Qwen3Config& config, const CudaDecoderOptions& options)
      // Of whole fours, as LibraryGemm wants them with FP8.
      : rows((std::max(options.max_step_tokens, options.max_running) + 3) / 4 * 4),
        slots(rows * std::max(config.num_experts_per_tok, 0)),
        logit_rows(std::min(rows, kLogitRows)),
        // Every sequence at its longest, or every KV block in a sequence of its own; contexts that
        // share blocks may be more than that, and are then attended as prefills.
        segments(std::min<int64_t>(
            int64_t{options.max_running} *
                cuda::NumAttentionSegments(static_cast<int>(options.max_context)),
            options.num_kv_blocks * limits::kKvBlockTokens / cuda::kAttentionSegment +
                options.max_running)),
        table_entries(
            int64_t{options.max_running} *
            ((options.max_context + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens)),
        experts_here(options.experts_here),
        experts_elsewhere(options.experts_elsewhere),
        // Places, up to the next 256 bytes, and rows of two values a word.
        other_words(slots + 64 + slots * config.hidden_size / 2),
        has_dense(config.NumSparseLayers() < config.num_hidden_layers),
        q_width(int64_t{config.num_attention_heads} * config.head_dim),
        kv_width(int64_t{config.num_key_value_heads} * config.head_dim) {}

  int64_t rows, slots, logit_rows, segments, table_entries;
  bool experts_here, experts_elsewhere;
  int64_t other_words;
  bool has_dense;
  int64_t q_width, kv_width;
};

int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Deals out arrays from one block of memory: once to count its bytes, once to place them.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <typename T>
  void Take(int64_t count, T** out) {
    if (base_ != nullptr) *out = reinterpret_cast<T*>(base_ + used_);
    used_ += Aligned(count * static_cast<int64_t>(sizeof(T)));
  }
  int64_t used() const { return used_; }

 private:
  char* const base_;
  int64_t used_ = 0;
};

// Activations and logits. `B` is Buffers, private to the decoder.
template <typename B>
int64_t PlaceActivations(const Qwen3Config& config, const Sizes& sizes, char* base, B& b) {
  Arena arena(base);
  const int64_t hidden = config.hidden_size;
  arena.Take(int64_t{config.MaxContext()} * (config.head_dim / 2), &b.rope_cos);
  arena.Take(int64_t{config.MaxContext()} * (config.head_dim / 2), &b.rope_sin);
  arena.Take(sizes.rows * hidden, &b.residual);
  arena.Take(sizes.rows * hidden, &b.hidden_states);
  arena.Take(sizes.rows * (sizes.q_width + 2 * sizes.kv_width), &b.qkv);
  arena.Take(sizes.rows * sizes.q_width, &b.q);
  arena.Take(sizes.rows * sizes.q_width, &b.attention);
  arena.Take(static_cast<int64_t>(cuda::DecodeWorkspaceFloats(
                 sizes.segments, config.num_key_value_heads, config.head_dim)),
             &b.attention_workspace);
  if (sizes.has_dense) {
    arena.Take(sizes.rows * 2 * config.intermediate_size, &b.gate_up);
    arena.Take(sizes.rows * config.intermediate_size, &b.intermediate);
  }
  if (config.num_experts > 0) {
    arena.Take(sizes.rows * config.num_experts, &b.gate_logits);
    arena.Take(sizes.slots, &b.topk_ids);
    arena.Take(sizes.slots, &b.topk_weights);
    arena.Take(config.num_experts + 1, &b.expert_offsets);
    arena.Take(sizes.slots, &b.pair_rows);
    arena.Take(sizes.slots, &b.pair_of_slot);
    arena.Take(config.num_experts, &b.place_of_expert);
    arena.Take(sizes.slots * config.moe_intermediate_size, &b.expert_intermediate);
    if (sizes.experts_here) arena.Take(sizes.slots * hidden, &b.expert_rows);
    if (sizes.experts_elsewhere) arena.Take(sizes.other_words, &b.others);
  }
  arena.Take(1, &b.bad_token);
  arena.Take(sizes.rows * hidden, &b.last_hidden);
  arena.Take(sizes.logit_rows * config.vocab_size, &b.logits);
  return arena.used();
}

// What is copied each step: `side` picks host or device of a StepArray.
template <typename B, typename Side>
int64_t PlaceStep(const Sizes& sizes, char* base, B& b, const Side& side) {
  Arena arena(base);
  arena.Take(sizes.rows, side(b.ids));
  arena.Take(sizes.rows, side(b.positions));
  arena.Take(sizes.rows, side(b.slot_mapping));
  arena.Take(sizes.rows, side(b.logit_rows));
  arena.Take(sizes.rows, side(b.sequences));
  arena.Take(1, side(b.num_valid));
  b.step_bytes_before_tables = arena.used();
  arena.Take(sizes.table_entries, side(b.tables));
  return arena.used();
}

template <typename B>
int64_t PlaceHost(const Qwen3Config& config, const Sizes& sizes, char* base, B& b) {
  Arena arena(base);
  arena.Take(sizes.logit_rows * config.vocab_size, &b.host_logits);
  arena.Take(1, &b.host_bad_token);
  if (config.num_experts > 0) {
    arena.Take(sizes.rows * config.hidden_size, &b.host_hidden_states);
    arena.Take(sizes.slots, &b.host_topk_ids);
    if (sizes.experts_elsewhere) arena.Take(sizes.other_words, &b.host_others);
  }
  return arena.used();
}

// Stands in for Buffers where bytes are only counted.
struct Counted {
  float *rope_cos, *rope_sin, *residual, *qkv, *attention_workspace, *gate_up, *gate_logits,
      *topk_weights, *logits;
  BFloat16 *hidden_states, *q, *attention, *intermediate, *expert_intermediate, *expert_rows,
      *last_hidden;
  int32_t *topk_ids, *expert_offsets, *pair_rows, *pair_of_slot, *place_of_expert, *others,
      *bad_token;
  StepArray<uint32_t> ids;
  StepArray<int32_t> positions, num_valid, tables;
  StepArray<int64_t> slot_mapping, logit_rows;
  StepArray<cuda::DeviceAttentionSequence> sequences;
  size_t step_bytes_before_tables;
};

const auto kHostSide = [](auto& array) { return &array.host; };
const auto kDeviceSide = [](auto& array) { return &array.device; };

}  // namespace

cuda::LibraryGemmOptions CudaLibraryGemmOptions(const Qwen3Config& config,
                                                const CudaDecoderOptions& options) {
  const Sizes sizes(config, options);
  cuda::LibraryGemmOptions gemm;
  gemm.compute_major = options.compute_major;
  gemm.max_rows = sizes.rows;
  if (config.quantization == WeightQuantization::kFp8Block128) {
    gemm.max_fp8_in_features = std::max<int64_t>(config.hidden_size, sizes.q_width);
    if (sizes.has_dense) {
      gemm.max_fp8_in_features =
          std::max<int64_t>(gemm.max_fp8_in_features, config.intermediate_size);
    }
  }
  return gemm;
}

int64_t CudaWorkspaceBytes(const Qwen3Config& config, const CudaDecoderOptions& options) {
  const Sizes sizes(config, options);
  Counted counted;
  const int64_t library =
      options.deterministic
          ? 0
          : cuda::LibraryGemm::WorkspaceBytes(CudaLibraryGemmOptions(config, options));
  return PlaceActivations(config, sizes, nullptr, counted) +
         PlaceStep(sizes, nullptr, counted, kDeviceSide) + library;
}

absl::Status CudaDecoder::Buffers::Allocate(const Qwen3Config& config,
                                            const CudaDecoderOptions& options) {
  const Sizes sizes(config, options);
  max_rows = sizes.rows;
  max_logit_rows = sizes.logit_rows;
  max_segments = sizes.segments;
  num_experts_per_tok = config.num_experts_per_tok;
  const auto allocate = [this](int64_t bytes) -> absl::StatusOr<char*> {
    ASSIGN_OR_RETURN(cuda::DeviceMemory memory, cuda::DeviceMemory::Allocate(bytes));
    device_memory_.push_back(std::move(memory));
    return device_memory_.back().As<char>();
  };
  ASSIGN_OR_RETURN(char* const activations,
                   allocate(PlaceActivations(config, sizes, nullptr, *this)));
  PlaceActivations(config, sizes, activations, *this);

  const int64_t step_bytes = PlaceStep(sizes, nullptr, *this, kHostSide);
  ASSIGN_OR_RETURN(step_host, cuda::PinnedMemory::Allocate(step_bytes));
  ASSIGN_OR_RETURN(step_device, cuda::DeviceMemory::Allocate(step_bytes));
  PlaceStep(sizes, step_host.As<char>(), *this, kHostSide);
  PlaceStep(sizes, step_device.As<char>(), *this, kDeviceSide);

  ASSIGN_OR_RETURN(cuda::PinnedMemory host,
                   cuda::PinnedMemory::Allocate(PlaceHost(config, sizes, nullptr, *this)));
  PlaceHost(config, sizes, host.As<char>(), *this);
  host_memory_.push_back(std::move(host));

  kv_values_per_array = options.num_kv_blocks * limits::kKvBlockTokens * sizes.kv_width;
  ASSIGN_OR_RETURN(char* const kv, allocate(2 * config.num_hidden_layers * kv_values_per_array *
                                            static_cast<int64_t>(sizeof(BFloat16))));
  kv_cache = reinterpret_cast<BFloat16*>(kv);
  return absl::OkStatus();
}

absl::Status CudaDecoder::Buffers::Fill(const Qwen3Config& config,
                                        const std::vector<int>& experts_here) {
  // The first of device_memory_ are the activations, the last the KV cache.
  for (const cuda::DeviceMemory& memory : device_memory_) {
    RETURN_IF_ERROR(cuda::FillBytes(memory.As<char>(), 0, memory.bytes(), stream));
  }
  const RopeTable rope = MakeRope(config);
  RETURN_IF_ERROR(
      cuda::CopyToDevice(rope_cos, rope.cos.data(), rope.cos.size() * sizeof(float), stream));
  RETURN_IF_ERROR(
      cuda::CopyToDevice(rope_sin, rope.sin.data(), rope.sin.size() * sizeof(float), stream));
  std::vector<int32_t> places(config.num_experts, -1);
  for (size_t i = 0; i < experts_here.size(); ++i) {
    places[experts_here[i]] = static_cast<int32_t>(i);
  }
  if (!experts_here.empty()) {
    RETURN_IF_ERROR(cuda::CopyToDevice(place_of_expert, places.data(),
                                       places.size() * sizeof(int32_t), stream));
  }
  return stream.Synchronize();
}

absl::Status CudaDecoder::Buffers::CheckGate() const {
  if (*host_bad_token == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("a gate logit of token ", *host_bad_token - 1, " of the step is not finite"));
}

}  // namespace conclave
