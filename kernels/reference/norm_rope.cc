#include "kernels/norm_rope.h"

#include <cmath>

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

// RMSNorm of one head, then rotation of (i, i + head_dim / 2) by the angle of i.
void NormRopeHead(const float* head, const float* weight, const float* cos, const float* sin,
                  int head_dim, float eps, BFloat16* output) {
  float squares = 0;
  for (int i = 0; i < head_dim; ++i) squares += head[i] * head[i];
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(head_dim) + eps);
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float low = head[i] * scale * weight[i];
    const float high = head[i + half] * scale * weight[i + half];
    output[i] = ToBFloat16(low * cos[i] - high * sin[i]);
    output[i + half] = ToBFloat16(high * cos[i] + low * sin[i]);
  }
}

}  // namespace

absl::Status NormRopeReference(const NormRopeArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  const KvCacheLayer& cache = args.kv_cache;
  const int head_dim = cache.head_dim;
  const int64_t num_heads = args.num_attention_heads + 2 * cache.num_key_value_heads;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    const float* head = args.qkv + t * num_heads * head_dim;
    const float* const cos = args.rope->cos.data() + int64_t{args.positions[t]} * (head_dim / 2);
    const float* const sin = args.rope->sin.data() + int64_t{args.positions[t]} * (head_dim / 2);
    for (int h = 0; h < args.num_attention_heads; ++h, head += head_dim) {
      NormRopeHead(head, args.q_norm, cos, sin, head_dim, args.rms_norm_eps,
                   args.q + (t * args.num_attention_heads + h) * head_dim);
    }
    for (int h = 0; h < cache.num_key_value_heads; ++h, head += head_dim) {
      BFloat16 key[kMaxHeadDim];
      NormRopeHead(head, args.k_norm, cos, sin, head_dim, args.rms_norm_eps, key);
      const float* const v = head + int64_t{cache.num_key_value_heads} * head_dim;
      for (int i = 0; i < head_dim; ++i) {
        cache.k[cache.KeyIndex(args.slot_mapping[t], h, i)] = key[i];
        cache.v[cache.ValueIndex(args.slot_mapping[t], h, i)] = ToBFloat16(v[i]);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
