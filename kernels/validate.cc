#include "kernels/validate.h"

#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

absl::Status NotNull(absl::string_view what, const void* pointer) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " is null"));
}

absl::Status InRange(absl::string_view what, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return errors::OutOfRange(what, value, absl::StrCat(low, "..", high));
}

absl::Status AtLeast(absl::string_view what, int64_t value, int64_t low) {
  if (value >= low) return absl::OkStatus();
  return errors::OutOfRange(what, value, absl::StrCat("at least ", low));
}

absl::Status ValidateCache(const KvCacheLayer& cache) {
  RETURN_IF_ERROR(AtLeast("num_blocks", cache.num_blocks, 0));
  RETURN_IF_ERROR(AtLeast("num_key_value_heads", cache.num_key_value_heads, 1));
  RETURN_IF_ERROR(AtLeast("block_tokens", cache.block_tokens, 1));
  if (cache.block_tokens % 2 != 0) {
    return errors::OutOfRange("block_tokens", cache.block_tokens, "even");
  }
  RETURN_IF_ERROR(InRange("head_dim", cache.head_dim, 2, kMaxHeadDim));
  if (cache.head_dim % 2 != 0) return errors::OutOfRange("head_dim", cache.head_dim, "even");
  if (cache.num_blocks > 0) {
    RETURN_IF_ERROR(NotNull("kv_cache.k", cache.k));
    RETURN_IF_ERROR(NotNull("kv_cache.v", cache.v));
  }
  return absl::OkStatus();
}

absl::Status ValidateSequence(const AttentionArgs& args, const AttentionSequence& sequence) {
  RETURN_IF_ERROR(AtLeast("first_row", sequence.first_row, 0));
  RETURN_IF_ERROR(AtLeast("num_tokens", sequence.num_tokens, 0));
  RETURN_IF_ERROR(AtLeast("first_position", sequence.first_position, 0));
  if (sequence.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("block_table", sequence.block_table));
  const int64_t last_position = sequence.first_position + sequence.num_tokens - 1;
  for (int64_t i = 0; i <= last_position / args.kv_cache.block_tokens; ++i) {
    RETURN_IF_ERROR(
        InRange("block_table entry", sequence.block_table[i], 0, args.kv_cache.num_blocks - 1));
  }
  return absl::OkStatus();
}

absl::Status ValidateShape(absl::string_view what, const PackedMatrix& matrix, int64_t out_features,
                           int64_t in_features) {
  if (matrix.out_features() == out_features && matrix.in_features() == in_features) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(what, " is [", matrix.out_features(), ", ",
                                                 matrix.in_features(), "], want [", out_features,
                                                 ", ", in_features, "]"));
}

absl::Status ValidateDtype(absl::string_view what, const PackedMatrix& matrix, WeightDtype dtype) {
  if (matrix.dtype() == dtype) return absl::OkStatus();
  return errors::OutOfRange(absl::StrCat(what, ".dtype"), WeightDtypeName(matrix.dtype()),
                            absl::StrCat(WeightDtypeName(dtype), " as in the first group"));
}

absl::Status ValidateGroups(const ExpertFfnArgs& args) {
  int64_t next_pair = 0;
  for (const ExpertGroup& group : args.groups) {
    RETURN_IF_ERROR(InRange("first_pair", group.first_pair, next_pair, next_pair));
    RETURN_IF_ERROR(AtLeast("num_pairs", group.num_pairs, 0));
    RETURN_IF_ERROR(NotNull("weights", group.weights));
    RETURN_IF_ERROR(ValidateShape("gate_up_proj", group.weights->gate_up_proj,
                                  2 * args.moe_intermediate_size, args.hidden_size));
    RETURN_IF_ERROR(ValidateShape("down_proj", group.weights->down_proj, args.hidden_size,
                                  args.moe_intermediate_size));
    RETURN_IF_ERROR(ValidateDtype("gate_up_proj", group.weights->gate_up_proj,
                                  args.groups[0].weights->gate_up_proj.dtype()));
    RETURN_IF_ERROR(ValidateDtype("down_proj", group.weights->down_proj,
                                  args.groups[0].weights->down_proj.dtype()));
    next_pair += group.num_pairs;
  }
  const int64_t num_pairs = static_cast<int64_t>(args.pair_rows.size());
  return InRange("pairs covered by groups", next_pair, num_pairs, num_pairs);
}

}  // namespace

absl::Status Validate(const LinearArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_rows", args.num_rows, 0));
  RETURN_IF_ERROR(NotNull("weight", args.weight));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("input", args.input));
  return NotNull("output", args.output);
}

absl::Status Validate(const LinearSwiGluArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_rows", args.num_rows, 0));
  RETURN_IF_ERROR(NotNull("gate_up_proj", args.gate_up_proj));
  if (args.gate_up_proj->out_features() % 2 != 0) {
    return errors::OutOfRange("gate_up_proj.out_features", args.gate_up_proj->out_features(),
                              "even");
  }
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("input", args.input));
  return NotNull("output", args.output);
}

absl::Status Validate(const RmsNormArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_rows", args.num_rows, 0));
  RETURN_IF_ERROR(AtLeast("hidden_size", args.hidden_size, 1));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("input", args.input));
  RETURN_IF_ERROR(NotNull("weight", args.weight));
  return NotNull("output", args.output);
}

absl::Status Validate(const NormRopeArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_tokens", args.num_tokens, 0));
  RETURN_IF_ERROR(AtLeast("num_attention_heads", args.num_attention_heads, 1));
  RETURN_IF_ERROR(ValidateCache(args.kv_cache));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("qkv", args.qkv));
  RETURN_IF_ERROR(NotNull("q_norm", args.q_norm));
  RETURN_IF_ERROR(NotNull("k_norm", args.k_norm));
  RETURN_IF_ERROR(NotNull("rope", args.rope));
  RETURN_IF_ERROR(NotNull("positions", args.positions));
  RETURN_IF_ERROR(NotNull("slot_mapping", args.slot_mapping));
  RETURN_IF_ERROR(NotNull("q", args.q));
  const int head_dim = args.kv_cache.head_dim;
  RETURN_IF_ERROR(InRange("rope.head_dim", args.rope->head_dim, head_dim, head_dim));
  const int64_t num_slots = args.kv_cache.num_blocks * args.kv_cache.block_tokens;
  for (int64_t i = 0; i < args.num_tokens; ++i) {
    RETURN_IF_ERROR(InRange("position", args.positions[i], 0, args.rope->max_positions - 1));
    RETURN_IF_ERROR(InRange("slot_mapping entry", args.slot_mapping[i], 0, num_slots - 1));
  }
  return absl::OkStatus();
}

absl::Status Validate(const AttentionArgs& args) {
  RETURN_IF_ERROR(ValidateCache(args.kv_cache));
  RETURN_IF_ERROR(InRange("block_tokens", args.kv_cache.block_tokens, limits::kKvBlockTokens,
                          limits::kKvBlockTokens));
  RETURN_IF_ERROR(AtLeast("num_attention_heads", args.num_attention_heads, 1));
  if (args.num_attention_heads % args.kv_cache.num_key_value_heads != 0) {
    return errors::OutOfRange(
        "num_attention_heads", args.num_attention_heads,
        absl::StrCat("a multiple of num_key_value_heads ", args.kv_cache.num_key_value_heads));
  }
  RETURN_IF_ERROR(InRange("query heads per key-value head",
                          args.num_attention_heads / args.kv_cache.num_key_value_heads, 1,
                          kMaxQueryGroup));
  int64_t num_rows = 0;
  for (const AttentionSequence& sequence : args.sequences) {
    RETURN_IF_ERROR(ValidateSequence(args, sequence));
    num_rows += sequence.num_tokens;
  }
  if (num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("q", args.q));
  return NotNull("output", args.output);
}

absl::Status Validate(const MoeGateArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_tokens", args.num_tokens, 0));
  RETURN_IF_ERROR(InRange("num_experts", args.num_experts, 1, limits::kMaxExperts));
  RETURN_IF_ERROR(InRange("num_experts_per_tok", args.num_experts_per_tok, 1, args.num_experts));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("gate_logits", args.gate_logits));
  RETURN_IF_ERROR(NotNull("topk_ids", args.topk_ids));
  return NotNull("topk_weights", args.topk_weights);
}

absl::Status Validate(const SwiGluArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_rows", args.num_rows, 0));
  RETURN_IF_ERROR(AtLeast("intermediate_size", args.intermediate_size, 1));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("gate_up", args.gate_up));
  return NotNull("output", args.output);
}

absl::Status Validate(const ExpertFfnArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_rows", args.num_rows, 0));
  RETURN_IF_ERROR(AtLeast("hidden_size", args.hidden_size, 1));
  RETURN_IF_ERROR(AtLeast("moe_intermediate_size", args.moe_intermediate_size, 1));
  if (args.moe_intermediate_size % PackedMatrix::kPanel != 0) {
    return errors::OutOfRange("moe_intermediate_size", args.moe_intermediate_size,
                              absl::StrCat("a multiple of ", PackedMatrix::kPanel));
  }
  RETURN_IF_ERROR(NotNull("workspace", args.workspace));
  RETURN_IF_ERROR(ValidateGroups(args));
  if (args.pair_rows.empty()) return absl::OkStatus();
  for (const uint32_t row : args.pair_rows) {
    RETURN_IF_ERROR(InRange("pair_rows entry", row, 0, args.num_rows - 1));
  }
  RETURN_IF_ERROR(NotNull("hidden_states", args.hidden_states));
  return NotNull("output", args.output);
}

absl::Status Validate(const MoeCombineArgs& args) {
  RETURN_IF_ERROR(AtLeast("num_tokens", args.num_tokens, 0));
  RETURN_IF_ERROR(InRange("num_experts_per_tok", args.num_experts_per_tok, 1, limits::kMaxExperts));
  RETURN_IF_ERROR(AtLeast("hidden_size", args.hidden_size, 1));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(NotNull("expert_rows", args.expert_rows));
  RETURN_IF_ERROR(NotNull("topk_weights", args.topk_weights));
  RETURN_IF_ERROR(NotNull("residual", args.residual));
  for (int64_t i = 0; i < args.num_tokens * args.num_experts_per_tok; ++i) {
    RETURN_IF_ERROR(NotNull("expert_rows entry", args.expert_rows[i]));
  }
  return absl::OkStatus();
}

}  // namespace conclave
