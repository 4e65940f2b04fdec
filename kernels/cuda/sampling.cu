#include <cmath>

#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/check_args.h"
#include "kernels/cuda/platform.cuh"
#include "kernels/cuda/sampling.h"

namespace conclave::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBins = 256;  // 8 bits of a key at a time
// Weights, at most 1, as whole numbers: 2^20 ids of them (limits::kMaxVocabSize) are below 2^64 at
// 2^43, the family's 151,936 at 2^45.
constexpr int kMassBits = 45;
constexpr int64_t kMaxIds = int64_t{1} << (63 - kMassBits);
using Mass = unsigned long long;

struct Shared {
  Mass bins[kBins];
  Mass warp_masses[kWarps];
  float values[kMaxSortedTopK];
  uint32_t ids[kMaxSortedTopK];
  float warp_values[kWarps];
  int warp_ids[kWarps];
  uint32_t key;    // found so far, by its upper bits
  Mass remaining;  // to be found below the keys that are above it
  int num_kept;
  int failed;
};

// Philox4x32-10, as kernels/philox.cc.
CONCLAVE_DEVICE double UniformOf(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0,
                         0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * counter[0];
    const uint64_t product1 = uint64_t{0xcd9e8d57u} * counter[2];
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32);
    counter[0] = high1 ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = high0 ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(product0);
    key[0] += 0x9e3779b9u;
    key[1] += 0xbb67ae85u;
  }
  const uint64_t bits = uint64_t{counter[0]} << 32 | counter[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// kernels/cpu/math.inc over kernels/cpu/vec_plain.inc, step by step: no two fused.
CONCLAVE_DEVICE float PlainExp(float x) {
  constexpr float kLow = -87.3f, kHigh = 88.3f;
  float in_range = x < kLow ? kLow : x;
  in_range = kHigh < in_range ? kHigh : in_range;
  const auto mul_add = [](float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); };
  constexpr float kMagic = 12582912.0f;
  const float n = __fsub_rn(mul_add(in_range, 1.44269504f, kMagic), kMagic);
  float r = mul_add(n, -0.693359375f, in_range);
  r = mul_add(n, 2.12194440e-4f, r);
  float y = 1.0f / 5040;
  y = mul_add(y, r, 1.0f / 720);
  y = mul_add(y, r, 1.0f / 120);
  y = mul_add(y, r, 1.0f / 24);
  y = mul_add(y, r, 1.0f / 6);
  y = mul_add(y, r, 0.5f);
  y = mul_add(y, r, 1.0f);
  y = mul_add(y, r, 1.0f);
  y = __fmul_rn(y, __uint_as_float(static_cast<uint32_t>(static_cast<int>(n) + 127) << 23));
  if (x < kLow) return 0;
  return kHigh < x ? INFINITY : y;
}

// Whole numbers in the order of the floats; the zeros are equal.
CONCLAVE_DEVICE uint32_t OrderOf(float value) {
  const uint32_t bits = value == 0 ? 0 : __float_as_uint(value);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

CONCLAVE_DEVICE Mass MassOf(float weight) {
  return static_cast<Mass>(static_cast<double>(weight) * static_cast<double>(Mass{1} << kMassBits));
}

struct RowWork {
  Shared* shared;
  float* logits;
  int num_ids;
  int thread, warp, lane;
};

CONCLAVE_DEVICE Mass WarpSumMass(Mass value) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}

// The largest value and, of equal ones, the lowest id; every thread gets both.
CONCLAVE_DEVICE void FindMax(const RowWork& work, float* max, int* max_id) {
  float best = -INFINITY;
  int best_id = work.num_ids;
  for (int i = work.thread; i < work.num_ids; i += kThreads) {
    if (best_id == work.num_ids || work.logits[i] > best) {
      best = work.logits[i];
      best_id = i;
    }
  }
  const auto take = [&](float value, int id) {
    if (value > best || (value == best && id < best_id)) {
      best = value;
      best_id = id;
    }
  };
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const float value = __shfl_xor_sync(kAllLanes, best, lanes);
    const int id = __shfl_xor_sync(kAllLanes, best_id, lanes);
    take(value, id);
  }
  if (work.lane == 0) {
    work.shared->warp_values[work.warp] = best;
    work.shared->warp_ids[work.warp] = best_id;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) take(work.shared->warp_values[w], work.shared->warp_ids[w]);
  *max = best;
  *max_id = best_id;
  __syncthreads();
}

// Sums over all ids; every thread gets it.
template <typename MassAt>
CONCLAVE_DEVICE Mass SumMass(const RowWork& work, const MassAt& mass_at) {
  Mass sum = 0;
  for (int i = work.thread; i < work.num_ids; i += kThreads) sum += mass_at(i);
  sum = WarpSumMass(sum);
  if (work.lane == 0) work.shared->warp_masses[work.warp] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += work.shared->warp_masses[w];
  __syncthreads();
  return sum;
}

// Finds the key at which the masses of falling keys reach `wanted` (above 0, at most their sum), 8
// bits of it at a time. Leaves in shared->remaining what the keys above it leave of `wanted`.
template <typename KeyAt, typename MassAt>
CONCLAVE_DEVICE uint32_t FindKey(const RowWork& work, Mass wanted, const KeyAt& key_at,
                                 const MassAt& mass_at) {
  Shared& shared = *work.shared;
  if (work.thread == 0) {
    shared.key = 0;
    shared.remaining = wanted;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (work.thread < kBins) shared.bins[work.thread] = 0;
    __syncthreads();
    const uint32_t found = shared.key;
    for (int i = work.thread; i < work.num_ids; i += kThreads) {
      const uint32_t key = key_at(i);
      if (shift < 24 && key >> (shift + 8) != found >> (shift + 8)) continue;
      const Mass mass = mass_at(i);
      if (mass > 0) atomicAdd(&shared.bins[key >> shift & (kBins - 1)], mass);
    }
    __syncthreads();
    if (work.thread == 0) {
      int bin = kBins - 1;
      while (bin > 0 && shared.bins[bin] < shared.remaining) {
        shared.remaining -= shared.bins[bin];
        --bin;
      }
      shared.key = found | static_cast<uint32_t>(bin) << shift;
    }
    __syncthreads();
  }
  return shared.key;
}

// Calls take(i, rank) for each i with is_tie(i), by rising i, rank counting from 0.
template <typename IsTie, typename Take>
CONCLAVE_DEVICE void ForTiesInOrder(const RowWork& work, const IsTie& is_tie, const Take& take) {
  int before = 0;
  for (int first = 0; first < work.num_ids; first += kThreads) {
    const int i = first + work.thread;
    const bool tie = i < work.num_ids && is_tie(i);
    const unsigned votes = __ballot_sync(kAllLanes, tie);
    if (work.lane == 0) work.shared->warp_ids[work.warp] = __popc(votes);
    __syncthreads();
    int rank = before;
    for (int w = 0; w < kWarps; ++w) {
      if (w < work.warp) rank += work.shared->warp_ids[w];
      before += work.shared->warp_ids[w];
    }
    if (tie) take(i, rank + __popc(votes & ((1u << work.lane) - 1)));
    __syncthreads();
  }
}

// The first `size` (a power of two) of values and ids, into the order of sampling.
CONCLAVE_DEVICE void SortKept(const RowWork& work, int size) {
  Shared& shared = *work.shared;
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      const int i = work.thread, j = i ^ step;
      if (i < size && j > i) {
        const bool before = shared.values[i] > shared.values[j] ||
                            (shared.values[i] == shared.values[j] && shared.ids[i] < shared.ids[j]);
        if (before != ((i & run) == 0)) {
          const float value = shared.values[i];
          shared.values[i] = shared.values[j];
          shared.values[j] = value;
          const uint32_t id = shared.ids[i];
          shared.ids[i] = shared.ids[j];
          shared.ids[j] = id;
        }
      }
      __syncthreads();
    }
  }
}

CONCLAVE_DEVICE double DrawTarget(double uniform, double total) {
  const double target = uniform * total;
  // Rounding must not make it the total: the largest double below.
  return target < total ? target : total * (1 - 0x1p-53);
}

// As kernels/cpu/sampling.cc's DrawId with top_k: the same sums, by one thread.
CONCLAVE_DEVICE uint32_t DrawSorted(const SamplerRow& row, const RowWork& work, float max) {
  Shared& shared = *work.shared;
  const auto one = [](int) { return Mass{1}; };
  const auto key_at = [&](int i) { return OrderOf(work.logits[i]); };
  const uint32_t key = FindKey(work, static_cast<Mass>(row.top_k), key_at, one);
  const int ties = static_cast<int>(shared.remaining);
  if (work.thread == 0) shared.num_kept = 0;
  int size = 1;
  while (size < row.top_k) size *= 2;
  if (work.thread < size) {
    shared.values[work.thread] = -INFINITY;
    shared.ids[work.thread] = 0xffffffffu;
  }
  __syncthreads();
  const auto keep = [&](int i) {
    const int at = atomicAdd(&shared.num_kept, 1);  // in any order: they are sorted below
    shared.values[at] = work.logits[i];
    shared.ids[at] = static_cast<uint32_t>(i);
  };
  for (int i = work.thread; i < work.num_ids; i += kThreads) {
    if (key_at(i) > key) keep(i);
  }
  ForTiesInOrder(
      work, [&](int i) { return key_at(i) == key; },
      [&](int i, int rank) {
        if (rank < ties) keep(i);
      });
  __syncthreads();
  SortKept(work, size);
  const float scale = 1.0f / row.temperature;
  if (work.thread < row.top_k) {
    float& value = shared.values[work.thread];
    value = PlainExp(__fmul_rn(__fsub_rn(value, max), scale));
  }
  __syncthreads();
  if (work.thread != 0) return 0;
  int count = row.top_k;
  double total = 0;
  for (int i = 0; i < count; ++i) total = __dadd_rn(total, static_cast<double>(shared.values[i]));
  if (row.top_p < 1) {
    const double wanted = static_cast<double>(row.top_p) * total;
    double sum = 0;
    int i = 0;
    while (i < count && sum < wanted) sum = __dadd_rn(sum, static_cast<double>(shared.values[i++]));
    count = i;
  }
  const float least = __fmul_rn(row.min_p, shared.values[0]);
  while (shared.values[count - 1] < least) --count;
  total = 0;
  for (int i = 0; i < count; ++i) total = __dadd_rn(total, static_cast<double>(shared.values[i]));
  const double target = DrawTarget(UniformOf(row.seed, row.position), total);
  double sum = 0;
  int i = 0;
  for (; i + 1 < count; ++i) {
    sum = __dadd_rn(sum, static_cast<double>(shared.values[i]));
    if (sum > target) break;
  }
  return shared.ids[i];
}

// Among all ids in their order.
CONCLAVE_DEVICE uint32_t DrawFromAll(const SamplerRow& row, const RowWork& work, float max) {
  Shared& shared = *work.shared;
  float* const weights = work.logits;
  const float scale = 1.0f / row.temperature;
  for (int i = work.thread; i < work.num_ids; i += kThreads) {
    weights[i] = PlainExp(__fmul_rn(__fsub_rn(weights[i], max), scale));
  }
  __syncthreads();
  const auto mass_at = [&](int i) { return MassOf(weights[i]); };
  if (row.top_p < 1) {
    const Mass total = SumMass(work, mass_at);
    const double share = static_cast<double>(row.top_p) * static_cast<double>(total);
    Mass wanted = static_cast<Mass>(share);
    if (static_cast<double>(wanted) < share) ++wanted;
    if (wanted > total) wanted = total;
    const auto key_at = [&](int i) { return __float_as_uint(weights[i]); };
    const uint32_t key = FindKey(work, wanted, key_at, mass_at);
    const Mass tie_mass = MassOf(__uint_as_float(key));
    // key 0 has no mass: it is found only if there is nothing to be found.
    const Mass ties = tie_mass == 0 ? 0 : (shared.remaining + tie_mass - 1) / tie_mass;
    __syncthreads();
    ForTiesInOrder(
        work, [&](int i) { return key_at(i) == key; },
        [&](int i, int rank) {
          if (static_cast<Mass>(rank) >= ties) weights[i] = 0;
        });
    for (int i = work.thread; i < work.num_ids; i += kThreads) {
      if (key_at(i) < key) weights[i] = 0;
    }
    __syncthreads();
  }
  if (row.min_p > 0) {
    for (int i = work.thread; i < work.num_ids; i += kThreads) {
      if (weights[i] < row.min_p) weights[i] = 0;
    }
    __syncthreads();
  }
  // Each warp sums a stretch of its own; the warp in whose stretch the target lies finds the id.
  const int stretch = (work.num_ids + kThreads - 1) / kThreads * kWarpSize;
  const int begin = work.warp * stretch;
  const int end = begin + stretch < work.num_ids ? begin + stretch : work.num_ids;
  Mass mine = 0;
  for (int i = begin + work.lane; i < end; i += kWarpSize) mine += mass_at(i);
  mine = WarpSumMass(mine);
  if (work.lane == 0) shared.warp_masses[work.warp] = mine;
  __syncthreads();
  Mass total = 0, before = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < work.warp) before += shared.warp_masses[w];
    total += shared.warp_masses[w];
  }
  Mass target = static_cast<Mass>(UniformOf(row.seed, row.position) * static_cast<double>(total));
  if (target >= total) target = total - 1;
  if (target >= before && target - before < mine) {
    Mass left = target - before;
    for (int first = begin; first < end; first += kWarpSize) {
      const int i = first + work.lane;
      Mass through = i < end ? mass_at(i) : 0;
      for (int delta = 1; delta < kWarpSize; delta *= 2) {
        const Mass other = __shfl_up_sync(kAllLanes, through, delta);
        if (work.lane >= delta) through += other;
      }
      const unsigned past = __ballot_sync(kAllLanes, through > left);
      if (past != 0) {
        if (work.lane == 0) shared.key = static_cast<uint32_t>(first + __ffs(past) - 1);
        break;
      }
      left -= __shfl_sync(kAllLanes, through, kWarpSize - 1);
    }
  }
  __syncthreads();
  return shared.key;
}

CONCLAVE_DEVICE void ApplyPenalties(const SamplerRow& row, const SamplerCount* counts,
                                    const RowWork& work) {
  for (int i = work.thread; i < row.num_counts; i += kThreads) {
    const SamplerCount count = counts[row.first_count + i];
    if (count.id >= static_cast<uint32_t>(work.num_ids)) continue;
    float logit = work.logits[count.id];
    if (row.repetition_penalty != 1) {
      logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                        : __fmul_rn(logit, row.repetition_penalty);
    }
    if (count.num_generated > 0) {
      logit = __fsub_rn(logit,
                        __fmul_rn(row.frequency_penalty, static_cast<float>(count.num_generated)));
      logit = __fsub_rn(logit, row.presence_penalty);
    }
    work.logits[count.id] = logit;
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(const DeviceSampleArgs args) {
  AwaitPrevious();
  __shared__ Shared shared;
  const SamplerRow row = args.rows[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  const RowWork work{&shared,
                     args.logits + int64_t{blockIdx.x} * args.vocab_size,
                     static_cast<int>(args.num_ids),
                     thread,
                     thread / kWarpSize,
                     thread % kWarpSize};
  if (thread == 0) shared.failed = 0;
  __syncthreads();
  for (int i = thread; i < work.num_ids; i += kThreads) {
    if (!(fabsf(work.logits[i]) < INFINITY)) shared.failed = 1;
  }
  __syncthreads();
  SampleFailure failure = shared.failed != 0 ? SampleFailure::kNotFinite : SampleFailure::kNone;
  uint32_t id = 0;
  if (failure == SampleFailure::kNone) {
    ApplyPenalties(row, args.counts, work);
    __syncthreads();
    for (int i = thread; i < row.num_biases; i += kThreads) {
      const SamplerBias bias = args.biases[row.first_bias + i];
      work.logits[bias.id] = __fadd_rn(work.logits[bias.id], bias.bias);
    }
    __syncthreads();
    float max = 0;
    int max_id = 0;
    FindMax(work, &max, &max_id);
    if (max == -INFINITY) {
      failure = SampleFailure::kAllForbidden;
    } else if (max == INFINITY) {
      failure = SampleFailure::kOverflow;
    } else if (row.temperature == 0) {
      id = static_cast<uint32_t>(max_id);
    } else if (row.top_k > 0 && row.top_k < work.num_ids) {
      id = DrawSorted(row, work, max);
    } else {
      id = DrawFromAll(row, work, max);
    }
  }
  if (thread != 0) return;
  args.ids[blockIdx.x] = id;
  args.failures[blockIdx.x] = static_cast<int32_t>(failure);
}

}  // namespace

absl::Status ToStatus(SampleFailure failure) {
  switch (failure) {
    case SampleFailure::kNone:
      return absl::OkStatus();
    case SampleFailure::kNotFinite:
      return absl::InternalError("a logit is not a finite number");
    case SampleFailure::kAllForbidden:
      return absl::InvalidArgumentError("logit_bias forbids every id");
    case SampleFailure::kOverflow:
      return absl::InternalError("a logit overflows under the penalties or the bias");
  }
  return absl::InternalError("unknown failure of the sampler");
}

absl::StatusOr<SamplerRow> MakeSamplerRow(const SamplingParams& params, uint64_t position,
                                          int64_t num_ids) {
  if (params.logprob || params.num_top_logprobs > 0) {
    return absl::UnimplementedError("log probabilities are computed on the host");
  }
  if (params.temperature > 0 && params.top_k > kMaxSortedTopK && params.top_k < num_ids) {
    return absl::UnimplementedError(
        absl::StrCat("top_k is ", params.top_k, ", the device sorts ", kMaxSortedTopK));
  }
  SamplerRow row;
  row.temperature = params.temperature;
  row.top_p = params.top_p;
  row.min_p = params.min_p;
  row.presence_penalty = params.presence_penalty;
  row.frequency_penalty = params.frequency_penalty;
  row.repetition_penalty = params.repetition_penalty;
  row.top_k = params.top_k;
  row.seed = params.seed;
  row.position = position;
  return row;
}

absl::Status Sample(const DeviceSampleArgs& args, const Stream& stream) {
  RETURN_IF_ERROR(CheckRange("num_rows", args.num_rows, 0, 65535));
  RETURN_IF_ERROR(CheckRange("num_ids", args.num_ids, 1, kMaxIds));
  RETURN_IF_ERROR(CheckRange("vocab_size", args.vocab_size, args.num_ids, limits::kMaxVocabSize));
  if (args.num_rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckNotNull({{"logits", args.logits},
                                {"rows", args.rows},
                                {"ids", args.ids},
                                {"failures", args.failures}}));
  return Launch("Sample", SampleKernel, static_cast<unsigned>(args.num_rows), kThreads, 0, stream,
                args);
}

}  // namespace conclave::cuda
