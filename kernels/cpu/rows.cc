// The ops that walk rows: RmsNorm, NormRope, SwiGlu, MoeCombine.
#include <cstring>

#include "common/status_macros.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/moe_combine.h"
#include "kernels/norm_rope.h"
#include "kernels/rms_norm.h"
#include "kernels/swiglu.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

// Puts a key and a value where KvCacheLayer says they lie.
void StoreInCache(const KvCacheLayer& cache, int64_t slot, int kv_head, const BFloat16* key,
                  const BFloat16* value) {
  BFloat16* const k = cache.k + cache.KeyIndex(slot, kv_head, 0);
  const int64_t stride = int64_t{2} * cache.block_tokens;
  for (int pair = 0; pair < cache.head_dim / 2; ++pair) {
    std::memcpy(k + pair * stride, key + 2 * pair, 2 * sizeof(BFloat16));
  }
  BFloat16* const v = cache.v + cache.ValueIndex(slot, kv_head, 0);
  for (int i = 0; i < cache.head_dim; ++i) v[2 * i] = value[i];
}

// Rows that one thread takes at a time.
constexpr int64_t kGrainRows = 8;

}  // namespace

absl::Status RmsNorm(const RmsNormArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const double nanoseconds = static_cast<double>(args.num_rows * args.hidden_size) / 4;
  cpu::ForRange(
      device, args.num_rows, nanoseconds,
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          ops.rms_norm(args.input + r * args.hidden_size, args.weight, args.hidden_size,
                       args.rms_norm_eps, args.output + r * args.hidden_size);
        }
      },
      kGrainRows);
  return absl::OkStatus();
}

absl::Status NormRope(const NormRopeArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const KvCacheLayer& cache = args.kv_cache;
  const int64_t head_dim = cache.head_dim;
  const int64_t num_heads = args.num_attention_heads + int64_t{2} * cache.num_key_value_heads;

  auto run_token = [&](int64_t t) {
    const float* head = args.qkv + t * num_heads * head_dim;
    const float* const cos = args.rope->cos.data() + args.positions[t] * (head_dim / 2);
    const float* const sin = args.rope->sin.data() + args.positions[t] * (head_dim / 2);
    for (int h = 0; h < args.num_attention_heads; ++h, head += head_dim) {
      ops.norm_rope(head, args.q_norm, cos, sin, cache.head_dim, args.rms_norm_eps,
                    args.q + (t * args.num_attention_heads + h) * head_dim);
    }
    for (int h = 0; h < cache.num_key_value_heads; ++h, head += head_dim) {
      BFloat16 key[kMaxHeadDim], value[kMaxHeadDim];
      ops.norm_rope(head, args.k_norm, cos, sin, cache.head_dim, args.rms_norm_eps, key);
      ops.round(head + cache.num_key_value_heads * head_dim, head_dim, value);
      StoreInCache(cache, args.slot_mapping[t], h, key, value);
    }
  };
  cpu::ForRange(
      device, args.num_tokens, static_cast<double>(args.num_tokens * num_heads * head_dim) / 2,
      [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) run_token(t);
      },
      kGrainRows);
  return absl::OkStatus();
}

absl::Status SwiGlu(const SwiGluArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int64_t size = args.intermediate_size;
  cpu::ForRange(
      device, args.num_rows, static_cast<double>(args.num_rows * size) / 2,
      [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const float* const gate = args.gate_up + r * 2 * size;
          ops.swiglu(gate, gate + size, size, args.output + r * size);
        }
      },
      kGrainRows);
  return absl::OkStatus();
}

absl::Status MoeCombine(const MoeCombineArgs& args, const Device& device) {
  RETURN_IF_ERROR(Validate(args));
  const cpu::CpuOps& ops = cpu::OpsFor(device.isa);
  const int top_k = args.num_experts_per_tok;
  cpu::ForRange(
      device, args.num_tokens, static_cast<double>(args.num_tokens * top_k * args.hidden_size) / 8,
      [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          ops.moe_combine(args.expert_rows + t * top_k, args.topk_weights + t * top_k, top_k,
                          args.hidden_size, args.residual + t * args.hidden_size);
        }
      },
      kGrainRows);
  return absl::OkStatus();
}

}  // namespace conclave
