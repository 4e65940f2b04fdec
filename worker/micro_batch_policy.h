#pragma once

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace conclave {

// Whether a step is computed as two micro-batches, one's attention while the other's experts are
// at the shards.
enum class MicroBatchMode { kOff, kAuto, kOn };

// auto, off or on; else InvalidArgument.
absl::StatusOr<MicroBatchMode> ParseMicroBatchMode(absl::string_view name);

// Where a step's time went, summed over the layers.
struct StepTimes {
  absl::Duration attention;  // embedding, norms, projections, attention
  absl::Duration mlp;        // dense MLP, or gate and combine
  absl::Duration experts;    // dispatch to combine: compute and wire, less what went on meanwhile
  bool split = false;        // in two micro-batches
};

// Decides that by what steps took before. Splitting hides the smaller of attention and the wait for
// experts behind the larger, and reads every weight twice; which is more depends on the wire, on
// who else uses the cores and on the number of tokens. So steps of about equal size are compared
// with each other: the faster way is taken, the other tried again for a few steps now and then,
// more and more rarely while it goes on losing. Not thread-safe.
class MicroBatchPolicy {
 public:
  // A trial's steps. One alone would be at the mercy of a thread that was woken late.
  static constexpr int kTrialSteps = 4;
  // Steps from one trial to the next: 4 tries in 64 cost 3 % where the split takes half as long
  // again, and the pause doubles with each trial that changes nothing.
  static constexpr int kFirstPause = 60;
  static constexpr int kLongestPause = 4096;

  explicit MicroBatchPolicy(MicroBatchMode mode) : mode_(mode) {}

  // Whether to split the next step, which has so many tokens.
  bool Split(int64_t num_tokens);
  // What that step took.
  void OnStep(int64_t num_tokens, const StepTimes& times);

 private:
  // Seconds a token, a running average.
  struct Average {
    double value = 0;
    int count = 0;
    void Add(double seconds);
  };
  // What is known of steps of about one size.
  struct Bucket {
    Average whole, split;
    Average attention, experts;  // of the whole ones; attention is all but experts
    bool split_wins = false;
    int pause = kFirstPause;
    int steps = 0;  // since the last trial ended, or of the one going on
    bool trial = false;
  };
  Bucket& BucketOf(int64_t num_tokens);
  static void EndTrial(Bucket& bucket);

  const MicroBatchMode mode_;
  absl::flat_hash_map<int64_t, Bucket> buckets_;  // four for each power of two
};

}  // namespace conclave
