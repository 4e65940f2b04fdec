#include <cmath>

#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/moe_routing.h"
#include "kernels/cuda/platform.cuh"

namespace conclave::cuda {
namespace {

constexpr int kGateWarps = 4;  // tokens a thread block
constexpr int kSortThreads = 256;
constexpr int kSortWarps = kSortThreads / kWarpSize;

struct Best {
  float logit;
  int id;
};

// The largest logit of the warp's lanes, of equal ones that with the lower id.
CONCLAVE_DEVICE Best WarpBest(Best best) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const float logit = __shfl_xor_sync(kAllLanes, best.logit, lanes);
    const int id = __shfl_xor_sync(kAllLanes, best.id, lanes);
    if (logit > best.logit || (logit == best.logit && id < best.id)) best = {logit, id};
  }
  return best;
}

// Shared: kGateWarps * num_experts floats.
__global__ void MoeGateKernel(const float* gate_logits, int32_t* topk_ids, float* topk_weights,
                              int64_t num_tokens, int num_experts, int top_k, bool norm_topk_prob,
                              const int32_t* num_valid_rows, int32_t* bad_token) {
  AwaitPrevious();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t token = int64_t{blockIdx.x} * kGateWarps + warp;
  if (token >= num_tokens) return;
  int32_t* const ids = topk_ids + token * top_k;
  float* const weights = topk_weights + token * top_k;
  if (num_valid_rows != nullptr && token >= *num_valid_rows) {
    for (int k = lane; k < top_k; k += kWarpSize) {
      ids[k] = -1;
      weights[k] = 0;
    }
    return;
  }
  float* const logits = reinterpret_cast<float*>(DynamicShared()) + warp * num_experts;
  bool finite = true;
  float max = -INFINITY;
  for (int e = lane; e < num_experts; e += kWarpSize) {
    const float logit = gate_logits[token * num_experts + e];
    finite = finite && fabsf(logit) < INFINITY;
    logits[e] = logit;
    max = fmaxf(max, logit);
  }
  max = WarpMax(max);
  if (__ballot_sync(kAllLanes, finite) != kAllLanes) {
    if (lane == 0) atomicMax(bad_token, static_cast<int32_t>(token) + 1);
    // Ids that are in range, so that what follows harms nothing before the host looks.
    for (int k = lane; k < top_k; k += kWarpSize) {
      ids[k] = k;
      weights[k] = 0;
    }
    return;
  }
  float sum = 0;
  for (int e = lane; e < num_experts; e += kWarpSize) sum += expf(logits[e] - max);
  sum = WarpSum(sum);

  // Every lane keeps its own best; the lane that had the overall best looks for its next one.
  Best mine = {-INFINITY, num_experts};
  const auto find_best = [&] {
    mine = {-INFINITY, num_experts};
    for (int e = lane; e < num_experts; e += kWarpSize) {
      if (logits[e] > mine.logit) mine = {logits[e], e};
    }
  };
  find_best();
  float kept = 0;
  for (int k = 0; k < top_k; ++k) {
    const Best best = WarpBest(mine);
    const float probability = expf(best.logit - max) / sum;
    kept += probability;
    if (best.id % kWarpSize == lane) {
      ids[k] = best.id;
      weights[k] = probability;
      logits[best.id] = -INFINITY;
      find_best();
    }
  }
  if (!norm_topk_prob) return;
  __syncwarp();
  for (int k = lane; k < top_k; k += kWarpSize) weights[k] /= kept;
}

// Sums `value` over the thread block; every thread gets the result.
CONCLAVE_DEVICE int BlockSum(int value) {
  __shared__ int warp_sums[kSortWarps];
  value = WarpSumInt(value);
  __syncthreads();  // of an earlier call, all have read
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  int sum = 0;
  for (int warp = 0; warp < kSortWarps; ++warp) sum += warp_sums[warp];
  return sum;
}

// Thread block e places the pairs of expert e.
__global__ void SortPairsKernel(const int32_t* topk_ids, const int32_t* place_of_expert,
                                int32_t* expert_offsets, int32_t* pair_rows, int32_t* pair_of_slot,
                                int num_slots, int num_experts, int top_k) {
  AwaitPrevious();
  __shared__ int warp_counts[kSortWarps];
  const int expert = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto place = [&](int slot) -> int {
    const int id = topk_ids[slot];
    return id < 0 || place_of_expert == nullptr ? id : place_of_expert[id];
  };
  int below = 0, equal = 0;
  for (int slot = static_cast<int>(threadIdx.x); slot < num_slots; slot += kSortThreads) {
    const int id = place(slot);
    below += id >= 0 && id < expert ? 1 : 0;
    equal += id == expert ? 1 : 0;
    if (id < 0 && expert == 0) pair_of_slot[slot] = -1;
  }
  below = BlockSum(below);
  equal = BlockSum(equal);
  if (threadIdx.x == 0) {
    expert_offsets[expert] = below;
    if (expert == num_experts - 1) expert_offsets[num_experts] = below + equal;
  }
  if (equal == 0) return;
  int next = below;
  for (int first = 0; first < num_slots; first += kSortThreads) {
    const int slot = first + static_cast<int>(threadIdx.x);
    const bool is_mine = slot < num_slots && place(slot) == expert;
    const unsigned votes = __ballot_sync(kAllLanes, is_mine);
    __syncthreads();  // of the round before, all have read
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < kSortWarps; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      all += warp_counts[w];
    }
    if (is_mine) {
      const int pair = next + before + __popc(votes & ((1u << lane) - 1));
      pair_rows[pair] = slot / top_k;
      pair_of_slot[slot] = pair;
    }
    next += all;
  }
}

}  // namespace

absl::Status MoeGate(const DeviceMoeGateArgs& device_args, const Stream& stream) {
  const MoeGateArgs& args = device_args.args;
  RETURN_IF_ERROR(CheckRange("num_tokens", args.num_tokens, 0, kMaxRows));
  RETURN_IF_ERROR(CheckRange("num_experts", args.num_experts, 1, limits::kMaxExperts));
  RETURN_IF_ERROR(CheckRange("num_experts_per_tok", args.num_experts_per_tok, 1, args.num_experts));
  if (args.num_tokens == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"gate_logits", args.gate_logits},
                                {"topk_ids", args.topk_ids},
                                {"topk_weights", args.topk_weights},
                                {"bad_token", device_args.bad_token}}));
  const auto grid = static_cast<unsigned>((args.num_tokens + kGateWarps - 1) / kGateWarps);
  const size_t shared_bytes = sizeof(float) * kGateWarps * args.num_experts;
  return Launch("MoeGate", MoeGateKernel, grid, kGateWarps * kWarpSize, shared_bytes, stream,
                args.gate_logits, args.topk_ids, args.topk_weights, args.num_tokens,
                args.num_experts, args.num_experts_per_tok, args.norm_topk_prob,
                device_args.num_valid_rows, device_args.bad_token);
}

absl::Status SortPairs(const SortPairsArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckRange("num_tokens", args.num_tokens, 0, kMaxRows));
  RETURN_IF_ERROR(CheckRange("num_experts", args.num_experts, 1, limits::kMaxExperts));
  // Not bounded by num_experts: of those this device may have few.
  RETURN_IF_ERROR(
      CheckRange("num_experts_per_tok", args.num_experts_per_tok, 1, limits::kMaxExperts));
  RETURN_IF_ERROR(CheckNotNull({{"expert_offsets", args.expert_offsets}}));
  if (args.num_tokens > 0) {
    RETURN_IF_ERROR(CheckNotNull({{"topk_ids", args.topk_ids},
                                  {"pair_rows", args.pair_rows},
                                  {"pair_of_slot", args.pair_of_slot}}));
  }
  const auto num_slots = static_cast<int>(args.num_tokens * args.num_experts_per_tok);
  return Launch("SortPairs", SortPairsKernel, static_cast<unsigned>(args.num_experts), kSortThreads,
                0, stream, args.topk_ids, args.place_of_expert, args.expert_offsets, args.pair_rows,
                args.pair_of_slot, num_slots, args.num_experts, args.num_experts_per_tok);
}

}  // namespace conclave::cuda
