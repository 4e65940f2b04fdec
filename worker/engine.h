#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/device.h"
#include "worker/block_pool.h"
#include "worker/decoder.h"
#include "worker/event_emitter.h"
#include "worker/sequence.h"
#include "worker/step_output.h"
#include "worker/step_planner.h"
#include "worker/worker_metrics.h"

namespace conclave {

struct EngineOptions {
  SequenceLimits limits;
  int64_t num_kv_blocks = 0;
  int max_running = 0;
  int max_waiting = 0;
  int max_step_tokens = 0;
  bool prefix_cache = true;
  TokenBytes token_bytes;  // called by any thread
  // Told once, by the engine's thread, when the device has failed (errors::IsDeviceFailure); may be
  // empty, must not block.
  std::function<void(const absl::Status&)> on_device_failure;
};

struct EngineLoad {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_blocks_used = 0;
  double tokens_per_second = 0;  // generated, over the last seconds
};

// The step loop: plan, forward, sample, in one thread; the events go out in another, beside the
// next step. Everything else hands it commands.
class Engine {
 public:
  // Everything passed in is borrowed and must outlive the engine.
  Engine(EngineOptions options, StepDecoder& decoder, const Device& device, WorkerMetrics& metrics);
  ~Engine();  // stops the thread; requests in flight end with Unavailable

  // Accepts a request; its events go to `sink` until OnDone. Errors (then the sink hears
  // nothing): InvalidArgument, AlreadyExists (request_id in flight), ResourceExhausted (queue
  // full), Unavailable (draining, the device has failed), FailedPrecondition (prefill_only without
  // a prefix cache).
  absl::Status Submit(const v1::TokenRequest& request, absl::Time deadline,
                      std::shared_ptr<TokenSink> sink);

  // NotFound unless the request is in flight. Takes effect before the next step.
  absl::Status FinishThinking(const std::string& request_id);
  absl::Status SetThinkingBudget(const std::string& request_id, int64_t budget);

  // From now on Submit refuses; what is in flight goes on.
  void StartDraining();
  // Blocks until nothing is in flight; false if `deadline` came first.
  bool AwaitIdle(absl::Time deadline);

  // Unavailable for good once the device has failed: what was in flight has ended with that, and
  // nothing is computed any more.
  absl::Status health() const;

  EngineLoad Load() const;
  const EngineOptions& options() const { return options_; }

 private:
  using Command = std::function<void()>;  // runs on the engine's thread, between steps

  void ThreadMain();
  // Runs what was handed over, waiting for it while there is nothing to compute.
  void RunCommands(bool wait);
  absl::Status OnSequence(const std::string& request_id, std::function<void(Sequence&)> action);
  void DropExpiredAndCancelled();
  // Background sequences end once there is other work, or no more work is wanted.
  void DropBackground();
  absl::Status Step(const std::vector<PlannedSequence>& plan);
  void Announce(const std::vector<PlannedSequence>& plan);
  void Advance(const PlannedSequence& planned, const SampleResult* drawn);
  // Applies a drawn id; returns the event's finish reason.
  v1::FinishReason Append(Sequence& sequence, uint32_t id);
  void Emit(Sequence& sequence, v1::FinishReason reason);
  // Appends the forced ids if the automaton says so; ends the request if they do not fit.
  void ForceIfDue(Sequence& sequence);
  void Finish(Sequence* sequence, const absl::Status& status);
  void FailAll(const absl::Status& status);
  // After a step that failed.
  void OnStepFailed(const absl::Status& status);
  void PublishLoad();

  const EngineOptions options_;
  const std::vector<uint32_t> splitting_ids_;
  StepDecoder& decoder_;
  const Device device_;
  WorkerMetrics& metrics_;

  // Engine's thread only.
  BlockPool blocks_;
  StepPlanner planner_;
  absl::flat_hash_map<std::string, std::unique_ptr<Sequence>> sequences_;
  EventEmitter emitter_;
  StepBatch batch_;
  std::vector<LogitRow> logit_rows_;
  std::vector<float> logits_;
  std::vector<SampleResult> drawn_;
  uint64_t next_arrival_ = 0;
  int64_t preemptions_reported_ = 0;
  int64_t evicted_reported_ = 0;
  PrefixCacheCounts prefix_cache_reported_;
  std::deque<std::pair<absl::Time, int64_t>> recent_tokens_;  // of the last seconds

  mutable absl::Mutex mutex_;
  std::vector<Command> commands_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> in_flight_ ABSL_GUARDED_BY(mutex_);
  int num_background_ ABSL_GUARDED_BY(mutex_) = 0;  // of in_flight_
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;  // last: starts when all else is there
};

}  // namespace conclave
