#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/status_macros.h"
#include "kernels/validate.h"

namespace conclave {
namespace {

// One query head at `position`: softmax(scale * q k^T) v over positions 0 .. position.
void AttendOne(const AttentionArgs& args, const AttentionSequence& sequence, int64_t position,
               int kv_head, const BFloat16* q, BFloat16* output) {
  const KvCacheLayer& cache = args.kv_cache;
  const int head_dim = cache.head_dim;
  auto slot = [&](int64_t p) {
    return int64_t{sequence.block_table[p / cache.block_tokens]} * cache.block_tokens +
           p % cache.block_tokens;
  };
  std::vector<float> weights(position + 1);
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t p = 0; p <= position; ++p) {
    float score = 0;
    for (int i = 0; i < head_dim; ++i) {
      score += ToFloat(q[i]) * ToFloat(cache.k[cache.KeyIndex(slot(p), kv_head, i)]);
    }
    weights[p] = score * args.scale;
    max = std::max(max, weights[p]);
  }
  float sum = 0;
  std::vector<float> mix(head_dim);
  for (int64_t p = 0; p <= position; ++p) {
    const float weight = std::exp(weights[p] - max);
    sum += weight;
    for (int i = 0; i < head_dim; ++i) {
      mix[i] += weight * ToFloat(cache.v[cache.ValueIndex(slot(p), kv_head, i)]);
    }
  }
  for (int i = 0; i < head_dim; ++i) output[i] = ToBFloat16(mix[i] / sum);
}

}  // namespace

absl::Status AttentionReference(const AttentionArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  const int group = args.num_attention_heads / args.kv_cache.num_key_value_heads;
  for (const AttentionSequence& sequence : args.sequences) {
    for (int64_t t = 0; t < sequence.num_tokens; ++t) {
      for (int h = 0; h < args.num_attention_heads; ++h) {
        const int64_t row = (sequence.first_row + t) * args.num_attention_heads + h;
        AttendOne(args, sequence, sequence.first_position + t, h / group,
                  args.q + row * args.kv_cache.head_dim,
                  args.output + row * args.kv_cache.head_dim);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave
