#include "kernels/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "common/errors.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cpu/logit_scan.h"
#include "kernels/cpu/plain_exp.h"

namespace conclave {
namespace {

using cpu::Candidate;

absl::Status ValidateArgs(const SampleArgs& args) {
  if (args.logits == nullptr) return absl::InvalidArgumentError("logits is null");
  if (args.params == nullptr) return absl::InvalidArgumentError("params is null");
  if (args.num_ids < 1 || args.num_ids > args.vocab_size) {
    return errors::OutOfRange("num_ids", args.num_ids, absl::StrCat("1..", args.vocab_size));
  }
  for (const auto& [id, bias] : args.logit_bias) {
    if (id >= args.num_ids) {
      return errors::OutOfRange("logit_bias id", id, absl::StrCat("0..", args.num_ids - 1));
    }
    if (std::isnan(bias) || bias == HUGE_VALF) {
      return errors::OutOfRange("logit_bias", bias, "a finite number or -inf");
    }
  }
  return args.params->Validate();
}

// Id `id` was seen in the prompt or generated before: divide its logit if positive, else multiply.
void Repeat(const SampleArgs& args, uint32_t id) {
  if (id >= args.num_ids) return;
  float& logit = args.logits[id];
  logit =
      logit > 0 ? logit / args.params->repetition_penalty : logit * args.params->repetition_penalty;
}

// Every id is changed on its own, so the maps' order does not matter.
void ApplyPenaltiesAndBias(const SampleArgs& args) {
  const SamplingParams& params = *args.params;
  if (args.counts != nullptr) {
    if (params.repetition_penalty != 1) {
      for (const auto& [id, count] : args.counts->output) Repeat(args, id);
      for (const auto& [id, count] : args.counts->prompt) {
        if (!args.counts->output.contains(id)) Repeat(args, id);
      }
    }
    for (const auto& [id, count] : args.counts->output) {
      if (id >= args.num_ids || count <= 0) continue;
      args.logits[id] -= params.frequency_penalty * static_cast<float>(count);
      args.logits[id] -= params.presence_penalty;
    }
  }
  for (const auto& [id, bias] : args.logit_bias) args.logits[id] += bias;
}

// The model's own distribution, kept because sampling overwrites the logits.
struct ModelDistribution {
  std::vector<float> logits;
  double log_sum = 0;

  float LogProbOf(float logit) const { return static_cast<float>(logit - log_sum); }
};

// Cuts sorted candidates after the first ones whose weights reach `weight`.
void CutAt(double weight, std::vector<Candidate>* kept) {
  double sum = 0;
  size_t i = 0;
  while (i < kept->size() && sum < weight) sum += (*kept)[i++].value;
  kept->resize(i);
}

// Zeroes all but the fewest ids that reach top_p of the weights, which are 0 .. 1. A sort of a
// vocabulary costs 10 ms, so weights are added up by their upper bits first (exponent and four
// more); only those of the bucket where the sum passes top_p are sorted.
void KeepTopP(float* weights, int64_t num_ids, float top_p) {
  constexpr int kShift = 19;
  constexpr uint32_t kBuckets = (std::bit_cast<uint32_t>(1.0f) >> kShift) + 1;
  auto bucket_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  std::vector<double> sums(kBuckets);
  for (int64_t i = 0; i < num_ids; ++i) sums[bucket_of(weights[i])] += weights[i];
  const double wanted = top_p * std::accumulate(sums.begin(), sums.end(), 0.0);
  double above = 0;
  uint32_t bucket = kBuckets - 1;
  for (; bucket > 0 && above + sums[bucket] < wanted; --bucket) above += sums[bucket];

  std::vector<Candidate> edge;
  for (int64_t i = 0; i < num_ids; ++i) {
    if (bucket_of(weights[i]) == bucket) edge.push_back({weights[i], static_cast<uint32_t>(i)});
  }
  std::sort(edge.begin(), edge.end(), cpu::Before);
  CutAt(wanted - above, &edge);
  // The last that stays. An empty edge would mean that the buckets above reach top_p: they do not.
  const Candidate last = edge.back();
  for (int64_t i = 0; i < num_ids; ++i) {
    if (cpu::Before(last, {weights[i], static_cast<uint32_t>(i)})) weights[i] = 0;
  }
}

// The point of [0, total) at which to stop adding weights; rounding must not make it the total.
double DrawTarget(double uniform, double total) {
  return std::min(uniform * total, std::nextafter(total, 0.0));
}

// Draws among sorted candidates whose values are weights.
uint32_t Draw(std::vector<Candidate> kept, float min_p, double uniform) {
  const float least = min_p * kept[0].value;
  while (kept.back().value < least) kept.pop_back();
  double total = 0;
  for (const Candidate& candidate : kept) total += candidate.value;
  const double target = DrawTarget(uniform, total);
  double sum = 0;
  size_t i = 0;
  while (sum += kept[i].value, sum <= target) ++i;
  return kept[i].id;
}

// Draws among all ids in their order; the largest weight is 1. Finds the stretch by its sum, then
// the id in it.
uint32_t DrawFromAll(float* weights, int64_t num_ids, float min_p, double uniform) {
  constexpr int64_t kStretch = 1024;
  if (min_p > 0) {
    for (int64_t i = 0; i < num_ids; ++i) {
      if (weights[i] < min_p) weights[i] = 0;
    }
  }
  std::vector<double> sums;
  double total = 0;
  for (int64_t i = 0; i < num_ids; i += kStretch) {
    sums.push_back(cpu::SumOf(weights + i, std::min(kStretch, num_ids - i)));
    total += sums.back();
  }
  const double target = DrawTarget(uniform, total);
  double sum = 0;
  size_t stretch = 0;
  for (; sum + sums[stretch] <= target; ++stretch) sum += sums[stretch];

  const int64_t begin = static_cast<int64_t>(stretch) * kStretch;
  int64_t drawn = begin;
  for (int64_t i = begin; i < std::min(begin + kStretch, num_ids) && sum <= target; ++i) {
    if (weights[i] == 0) continue;
    drawn = i;
    sum += weights[i];
  }
  return static_cast<uint32_t>(drawn);
}

// The logits have their penalties and bias, `max` is the largest. Overwrites them.
uint32_t DrawId(const SampleArgs& args, float max) {
  const SamplingParams& params = *args.params;
  const double uniform = UniformAt(params.seed, args.position);
  const float scale = 1.0f / params.temperature;
  if (params.top_k > 0 && params.top_k < args.num_ids) {
    std::vector<Candidate> kept = cpu::Largest(args.logits, args.num_ids, params.top_k);
    double total = 0;
    for (Candidate& candidate : kept) {
      candidate.value = cpu::PlainExp((candidate.value - max) * scale);
      total += candidate.value;
    }
    if (params.top_p < 1) CutAt(params.top_p * total, &kept);
    return Draw(std::move(kept), params.min_p, uniform);
  }
  cpu::PlainExpRow(args.logits, args.num_ids, max, scale, args.logits);
  if (params.top_p < 1) KeepTopP(args.logits, args.num_ids, params.top_p);
  return DrawFromAll(args.logits, args.num_ids, params.min_p, uniform);
}

}  // namespace

absl::Status SamplingParams::Validate() const {
  // Written so that NaN fails.
  if (!(temperature >= 0 && temperature <= 2)) {
    return errors::OutOfRange("temperature", temperature, "0..2");
  }
  if (top_k < 0) return errors::OutOfRange("top_k", top_k, "at least 0");
  if (!(top_p > 0 && top_p <= 1)) return errors::OutOfRange("top_p", top_p, "above 0, at most 1");
  if (!(min_p >= 0 && min_p <= 1)) return errors::OutOfRange("min_p", min_p, "0..1");
  if (!(presence_penalty >= -2 && presence_penalty <= 2)) {
    return errors::OutOfRange("presence_penalty", presence_penalty, "-2..2");
  }
  if (!(frequency_penalty >= -2 && frequency_penalty <= 2)) {
    return errors::OutOfRange("frequency_penalty", frequency_penalty, "-2..2");
  }
  if (!(repetition_penalty > 0 && repetition_penalty <= 10)) {
    return errors::OutOfRange("repetition_penalty", repetition_penalty, "above 0, at most 10");
  }
  if (num_top_logprobs < 0 || num_top_logprobs > limits::kMaxTopLogprobs) {
    return errors::OutOfRange("num_top_logprobs", num_top_logprobs,
                              absl::StrCat("0..", limits::kMaxTopLogprobs));
  }
  return absl::OkStatus();
}

absl::StatusOr<SampleResult> Sample(const SampleArgs& args) {
  RETURN_IF_ERROR(ValidateArgs(args));
  const SamplingParams& params = *args.params;
  if (const int64_t bad = cpu::FirstNotFinite(args.logits, args.num_ids); bad >= 0) {
    return absl::InternalError(
        absl::StrCat("logit of id ", bad, " is ", args.logits[bad], ", want a finite number"));
  }
  SampleResult result;
  ModelDistribution model;
  if (params.logprob || params.num_top_logprobs > 0) {
    model.logits.assign(args.logits, args.logits + args.num_ids);
    model.log_sum = cpu::LogSumExp(args.logits, args.num_ids);
    for (const Candidate& candidate :
         cpu::Largest(args.logits, args.num_ids, params.num_top_logprobs)) {
      result.top_logprobs.push_back({candidate.id, model.LogProbOf(candidate.value)});
    }
  }
  ApplyPenaltiesAndBias(args);
  const float max = cpu::MaxOf(args.logits, args.num_ids);
  if (max == -HUGE_VALF) return absl::InvalidArgumentError("logit_bias forbids every id");
  if (max == HUGE_VALF) {
    return absl::InternalError("a logit overflows under the penalties or the bias");
  }
  result.id = params.temperature == 0 ? ArgMax(args.logits, args.num_ids) : DrawId(args, max);
  if (!model.logits.empty()) result.logprob = model.LogProbOf(model.logits[result.id]);
  return result;
}

float LogProb(const float* logits, int64_t num_ids, uint32_t id) {
  return static_cast<float>(logits[id] - cpu::LogSumExp(logits, num_ids));
}

uint32_t ArgMax(const float* logits, int64_t num_ids) {
  const float max = cpu::MaxOf(logits, num_ids);
  return static_cast<uint32_t>(std::find(logits, logits + num_ids, max) - logits);
}

}  // namespace conclave
