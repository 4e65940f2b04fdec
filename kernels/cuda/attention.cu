#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/check_args.h"

namespace conclave::cuda {
namespace {

static_assert(kKvBlock == limits::kKvBlockTokens);
static_assert(kDecodeRows == kQueryRows);

absl::Status Check(const DeviceAttentionArgs& args) {
  const DeviceKvCacheLayer& cache = args.kv_cache;
  if (cache.head_dim != 32 && cache.head_dim != 64 && cache.head_dim != 128) {
    return errors::OutOfRange("head_dim", cache.head_dim, "32, 64 or 128");
  }
  RETURN_IF_ERROR(CheckRange("block_tokens", cache.block_tokens, kKvBlock, kKvBlock));
  RETURN_IF_ERROR(
      CheckRange("num_key_value_heads", cache.num_key_value_heads, 1, limits::kMaxAttentionHeads));
  RETURN_IF_ERROR(
      CheckMultiple("num_attention_heads", args.num_attention_heads, cache.num_key_value_heads));
  RETURN_IF_ERROR(CheckRange("query heads per key-value head",
                             args.num_attention_heads / cache.num_key_value_heads, 1, kQueryRows));
  RETURN_IF_ERROR(CheckRange("num_sequences", args.num_sequences, 0, 65535));
  RETURN_IF_ERROR(CheckRange("max_tokens", args.max_tokens, 0, limits::kMaxContextTokens));
  RETURN_IF_ERROR(
      CheckRange("max_context", args.max_context, args.max_tokens, limits::kMaxContextTokens));
  if (args.num_sequences == 0 || args.max_tokens == 0) return absl::OkStatus();
  return CheckNotNull({{"q", args.q},
                       {"kv_cache.k", cache.k},
                       {"kv_cache.v", cache.v},
                       {"sequences", args.sequences},
                       {"block_tables", args.block_tables},
                       {"output", args.output}});
}

AttentionKernelArgs KernelArgs(const DeviceAttentionArgs& args) {
  constexpr float kLog2E = 1.44269504f;
  return {.q = args.q,
          .k = args.kv_cache.k,
          .v = args.kv_cache.v,
          .sequences = args.sequences,
          .block_tables = args.block_tables,
          .output = args.output,
          .workspace = args.workspace,
          .num_heads = args.num_attention_heads,
          .num_kv_heads = args.kv_cache.num_key_value_heads,
          .group = args.num_attention_heads / args.kv_cache.num_key_value_heads,
          .num_segments = NumAttentionSegments(args.max_context),
          .scale_log2 = args.scale * kLog2E};
}

}  // namespace

absl::Status AttentionDecode(const DeviceAttentionArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(Check(args));
  if (args.num_sequences == 0 || args.max_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"workspace", args.workspace}}));
  const AttentionKernelArgs kernel_args = KernelArgs(args);
  RETURN_IF_ERROR(
      CheckRange("max_tokens of a decode", args.max_tokens, 1, kDecodeRows / kernel_args.group));
  const int max_rows = args.max_tokens * kernel_args.group;
  const int num_sequences = args.num_sequences;
  switch (args.kv_cache.head_dim) {
    case 32:
      return LaunchDecode<32>(kernel_args, num_sequences, max_rows, stream);
    case 64:
      return LaunchDecode<64>(kernel_args, num_sequences, max_rows, stream);
    default:
      return LaunchDecode<128>(kernel_args, num_sequences, max_rows, stream);
  }
}

absl::Status AttentionPrefill(const DeviceAttentionArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(Check(args));
  if (args.num_sequences == 0 || args.max_tokens == 0) return absl::OkStatus();
  const AttentionKernelArgs kernel_args = KernelArgs(args);
  const int max_rows = args.max_tokens * kernel_args.group;
  const int num_sequences = args.num_sequences;
  switch (args.kv_cache.head_dim) {
    case 32:
      return LaunchPrefill<32>(kernel_args, num_sequences, max_rows, stream);
    case 64:
      return LaunchPrefill<64>(kernel_args, num_sequences, max_rows, stream);
    default:
      return LaunchPrefill<128>(kernel_args, num_sequences, max_rows, stream);
  }
}

}  // namespace conclave::cuda
