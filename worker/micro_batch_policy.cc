#include "worker/micro_batch_policy.h"

#include <algorithm>

#include "common/errors.h"

namespace conclave {
namespace {

// Of a running average: it follows a growing context, and one slow step does not turn it.
constexpr double kWeight = 1.0 / 8;
// A step that waited for a lost shard, or for a neighbour's burst, counts as at most this much.
constexpr double kLargestStep = 2;
// The way in use stays in use unless the other takes less than this share of its time.
constexpr double kWins = 0.97;
// Nothing is tried where all that could be hidden is less than this share of a step.
constexpr double kWorthTrying = 0.05;

}  // namespace

absl::StatusOr<MicroBatchMode> ParseMicroBatchMode(absl::string_view name) {
  if (name == "auto") return MicroBatchMode::kAuto;
  if (name == "off") return MicroBatchMode::kOff;
  if (name == "on") return MicroBatchMode::kOn;
  return errors::OutOfRange("micro_batch", std::string(name), "auto, off or on");
}

void MicroBatchPolicy::Average::Add(double seconds) {
  if (++count == 1) {
    value = seconds;
    return;
  }
  // The first few weigh alike.
  const double weight = std::max(kWeight, 1.0 / count);
  value += weight * (std::min(seconds, kLargestStep * value) - value);
}

MicroBatchPolicy::Bucket& MicroBatchPolicy::BucketOf(int64_t num_tokens) {
  int64_t unit = 1;  // the leading bit and the two behind it
  while (num_tokens / unit >= 8) unit *= 2;
  return buckets_[num_tokens / unit * unit];
}

bool MicroBatchPolicy::Split(int64_t num_tokens) {
  if (mode_ == MicroBatchMode::kOff || num_tokens < 2) return false;
  if (mode_ == MicroBatchMode::kOn) return true;
  const Bucket& bucket = BucketOf(num_tokens);
  return bucket.split_wins != bucket.trial;
}

void MicroBatchPolicy::OnStep(int64_t num_tokens, const StepTimes& times) {
  if (mode_ != MicroBatchMode::kAuto || num_tokens < 2) return;
  Bucket& bucket = BucketOf(num_tokens);
  const auto add = [num_tokens](Average& average, absl::Duration time) {
    average.Add(absl::ToDoubleSeconds(time) / static_cast<double>(num_tokens));
  };
  add(times.split ? bucket.split : bucket.whole, times.attention + times.mlp + times.experts);
  if (!times.split) {
    add(bucket.attention, times.attention + times.mlp);
    add(bucket.experts, times.experts);
  }
  ++bucket.steps;
  if (bucket.trial) {
    if (bucket.steps == kTrialSteps) EndTrial(bucket);
    return;
  }
  // The first trial comes as soon as there is something to compare it with.
  const bool first = bucket.split.count == 0 && bucket.steps == kTrialSteps;
  if (!first && bucket.steps < bucket.pause) return;
  const double hidden = std::min(bucket.attention.value, bucket.experts.value);
  if (!bucket.split_wins && hidden < kWorthTrying * bucket.whole.value) return;
  bucket.trial = true;
  bucket.steps = 0;
  (bucket.split_wins ? bucket.whole : bucket.split) = Average();  // as it is now, not as it was
}

void MicroBatchPolicy::EndTrial(Bucket& bucket) {
  const Average& used = bucket.split_wins ? bucket.split : bucket.whole;
  const Average& tried = bucket.split_wins ? bucket.whole : bucket.split;
  const bool turns = tried.value < kWins * used.value;
  bucket.split_wins = bucket.split_wins != turns;
  bucket.pause = turns ? kFirstPause : std::min(2 * bucket.pause, kLongestPause);
  bucket.trial = false;
  bucket.steps = 0;
}

}  // namespace conclave
